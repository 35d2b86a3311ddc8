"""What a config says reaches the parts that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsedet import comm, training
from sparsedet.config import LazyConfig
from sparsedet.engine import Trainer
from tests.smoke.test_train_net import CONFIG, NARROW, draw_set, set_overrides

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, three batches of two."""
    return draw_set(tmp_path_factory.mktemp("set") / "three")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, root: Path, drawn: Path, tmp_path: Path):
    """Builds the job of a config with overrides; gives what its trainer was made of."""

    def build(*overrides: str) -> dict[str, Any]:
        given: dict[str, Any] = {}

        class Recording(Trainer):
            def __init__(self, model: Any, batches: Any, **options: Any) -> None:
                given.update(options, model=model)
                super().__init__(model, batches, **options)

        monkeypatch.setattr(training, "Trainer", Recording)
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        cfg = LazyConfig.load(root / CONFIG)
        more = (*NARROW, *set_overrides(drawn), f"train.output_dir={folder}", *overrides)
        cfg = LazyConfig.apply_overrides(cfg, list(more))
        training.resolve_run(cfg)
        training.Job(cfg, CPU)
        return given

    return build


def test_lengths_in_epochs_become_iterations(build):
    assert build("train.epochs=3")["max_iter"] == 9
    half = build("train.epochs=3", "train.accumulation_steps=2")
    assert half["accumulation_steps"] == 2
    assert half["max_iter"] == 5  # three epochs of one and a half steps
    assert build("train.epochs=3", "train.max_iter=7")["max_iter"] == 7


def test_clipping_and_precision(build):
    plain = build()
    assert plain["clip_grad"] == {"max_norm": 0.1, "norm_type": 2.0}
    assert plain["amp_dtype"] is None and plain["ema"] is None
    other = build(
        "train.clip_grad.params.max_norm=0.5",
        "train.amp.enabled=true",
        "train.amp.dtype=bfloat16",
    )
    assert other["clip_grad"]["max_norm"] == 0.5
    assert other["amp_dtype"] is torch.bfloat16
    assert build("train.clip_grad.enabled=false")["clip_grad"] is None


def test_the_average_has_the_decay_of_the_config(build):
    found = build("train.model_ema.enabled=true", "train.model_ema.decay=0.75")
    average, model = found["ema"], found["model"]
    name, parameter = next(iter(model.named_parameters()))
    before = parameter.detach().clone()
    average.num_updates = 10**9  # far behind the warm-up of the average
    with torch.no_grad():
        parameter += 1.0
    average.update(model)
    torch.testing.assert_close(average.module.get_parameter(name), before + 0.25)


def test_rates_and_decays_of_the_config(build):
    optimizer = build("optimizer.lr=0.001", "optimizer.weight_decay=0.02")["optimizer"]
    assert {round(group["lr"], 9) for group in optimizer.param_groups} == {1e-3, 1e-4}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}


def test_the_weights_follow_from_the_seed(build):
    def weights(seed: int) -> torch.Tensor:
        model = build(f"train.seed={seed}")["model"]
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    first = weights(3)
    assert torch.equal(weights(3), first)
    assert not torch.equal(weights(4), first)


def test_processes_begin_with_equal_weights(build, monkeypatch):
    """What they draw afterwards follows from the seed and from which process it is."""
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        given = build("train.seed=3")
        assert given["seed"] == 3
        found.append(torch.cat([each.flatten() for each in given["model"].parameters()]))
    assert torch.equal(*found)
