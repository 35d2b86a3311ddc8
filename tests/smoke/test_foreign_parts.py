"""Configs of other libraries' projects in `sparsedet train`: any model, loader and evaluator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsedet.cli.main import main
from tests.smoke.foreign import TRAIN

CONFIG = """
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch.optim import SGD
from sparsedet.config import LazyCall as L
from sparsedet.engine.optim import param_groups
from tests.smoke.foreign import Evaluator, Loader, Model
model = L(Model)()
optimizer = L(SGD)(params=L(param_groups)(base_lr="${..lr}"), lr=0.1)
lr_multiplier = L(ConstantParamScheduler)(value=1.0)
dataloader = dict(
    train=L(Loader)(numbers=[1.0, 2.0]), test=L(Loader)(numbers=[0.0]), evaluator=L(Evaluator)()
)
"""


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`sparsedet train` of the config in an empty folder, with lines added to the config."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, added: str = "") -> int:
        Path("foreign.py").write_text(f"{CONFIG}train = {TRAIN}\n{added}")
        return main(["train", "foreign.py", *arguments])

    return run


def rows() -> list[dict[str, float]]:
    lines = Path("output/metrics.json").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def test_it_trains_epoch_after_epoch_and_evaluates(train):
    assert train() == 0
    found = rows()
    weight = 0.0
    for row, number in zip(found, (1.0, 2.0, 1.0), strict=True):
        assert row["loss/loss_mean"] == pytest.approx((weight - number) ** 2, rel=1e-5)
        assert "epoch" not in row
        weight -= 0.1 * 2 * (weight - number)
    results = json.loads(Path("output/results.json").read_text())
    assert results["metrics"]["bbox"]["AP"] == 10.0 and results["iterations"] == 3
    assert results["metrics"]["keep_ratio"] is None


def test_a_resumed_run_begins_a_new_epoch_and_says_so(train, capsys):
    assert train() == 0
    assert train("train.max_iter=5", "--resume") == 0
    assert "(Loader) has no iter_from and cannot resume in the middle" in capsys.readouterr().err
    assert len(rows()) == 5
    assert json.loads(Path("output/results.json").read_text())["iterations"] == 5


def test_a_config_with_a_function_is_trained_and_not_written(train, capsys):
    assert train(added="model.start = lambda: 0.5\n") == 0
    assert rows()[0]["loss"] == pytest.approx(0.25)
    assert (
        "config.yaml and the config in checkpoints cannot be written: " in capsys.readouterr().err
    )
    assert not Path("output/config.yaml").exists()
    saved = torch.load("output/model_final.pth", weights_only=True)
    assert "config" not in saved and saved["model"]["mean"] > 0.5


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("train['ddp']['fp16_compression'] = True", "train.ddp.fp16_compression must be False"),
        ("train['max_itr'] = 4", "train.max_itr is not a known setting. Nearest: train.max_iter"),
        ("del train['max_iter']", "train must have epochs or max_iter, got neither"),
        (
            "from sparsedet.config import get_config\ntrain = get_config('common/train.py').train",
            "(Loader) has no length, so epochs cannot be counted. Set train.max_iter",
        ),
    ],
)
def test_what_cannot_be_run_is_said(train, capsys, added, says):
    assert train(added=added + "\n") == 2
    assert says in capsys.readouterr().err
