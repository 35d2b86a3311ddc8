"""What a resumed run says, and what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    MultiStepParamScheduler,
)
from omegaconf import OmegaConf

from sparsedet.changes import changes, run_facts, schedule_change, tell
from sparsedet.config import ConfigError, LazyConfig, get_config
from sparsedet.config import LazyCall as L
from sparsedet.config.files import dump_yaml

FACTS = {
    "sparsedet": "1.0",
    "torch": "2.0",
    "the number of processes": 1,
    "the device": "cpu",
    "the SHA-256 of the training annotations": "aa",
    "the SHA-256 of the validation annotations": "bb",
}


@pytest.fixture(scope="module")
def text() -> str:
    return dump_yaml(get_config("quickstart.py"))


def _changed(*overrides: str) -> str:
    return dump_yaml(LazyConfig.apply_overrides(get_config("quickstart.py"), overrides))


def _found(text: str, now: str, facts: dict[str, Any] = FACTS) -> dict[str, bool]:
    checkpoint = {"config": text, "run": FACTS}
    found = changes(checkpoint, "here", config=now, facts=facts)
    return {change.name: change.bends for change in found}


@pytest.mark.parametrize(
    ("override", "bends"),
    [
        ("dataloader.train.total_batch_size=2", True),
        ("train.accumulation_steps=2", True),
        ("optimizer.lr=1e-3", True),
        ("model.selector.keep_ratio=0.2", True),
        ("train.seed=5", True),
        ("train.clip_grad.params.max_norm=0.5", True),
        ("train.model_ema.decay=0.5", True),
        ("dataset.short_sides=[64]", True),
        ("dataset.class_names=[a,b]", True),
        ("+dataset.path_of_masks=x", True),  # another key than dataset.path
        ("train.epochs=7", False),  # its effect on the schedule is told apart
        ("train.eval_epochs=3", False),
        ("train.output_dir=elsewhere", False),
        ("train.log_period=3", False),
        ("train.tensorboard=false", False),
        ("train.checkpointer.max_to_keep=9", False),
        ("dataloader.train.num_workers=3", False),
        ("dataloader.test.batch_size=3", False),
        ("dataset.train_json=moved.json", False),
        ("dataset.val_images=moved", False),
        ("dataset.cache_dir=elsewhere", False),
        ("dataset.cache_gigabytes=3", False),
        ("model.backbone.weights=IMAGENET1K_V1", False),
    ],
)
def test_what_would_make_another_run_of_it(text: str, override: str, bends: bool) -> None:
    key = override.partition("=")[0].lstrip("+")
    found = _found(text, _changed(override))
    assert found == {key: bends}


def _without(key: str) -> str:
    cfg = get_config("quickstart.py")
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, group, throw_on_missing=True)
    del node[name]
    return dump_yaml(cfg)


@pytest.mark.parametrize(
    ("key", "override", "bends"),
    [
        ("dataloader.train.num_workers", "dataloader.train.num_workers=0", None),
        ("optimizer.weight_decay", "optimizer.weight_decay=0.01", None),  # that of torch
        ("optimizer.weight_decay", "optimizer.weight_decay=0.02", True),
        ("train.max_nonfinite_steps", "train.log_period=20", False),
    ],
)
def test_an_argument_that_one_config_leaves_to_its_default(
    key: str, override: str, bends: bool | None
) -> None:
    short, whole = _without(key), _changed(override)
    expected = {} if bends is None else {key: bends}
    assert _found(short, whole) == expected
    assert _found(whole, short) == expected


def test_the_same_config_has_not_changed(text: str) -> None:
    assert _found(text, text) == {}


def test_as_many_images_in_more_steps_are_the_same_batch(text: str) -> None:
    size = get_config("quickstart.py").dataloader.train.total_batch_size
    now = _changed(f"dataloader.train.total_batch_size={size // 2}", "train.accumulation_steps=2")
    assert set(_found(text, now).values()) == {False}


@pytest.mark.parametrize(("name", "bends"), [(name, "training" in name) for name in FACTS])
def test_facts(text: str, name: str, bends: bool) -> None:
    assert _found(text, text, FACTS | {name: "other"}) == {name: bends}


def test_an_older_checkpoint_tells_less(text: str) -> None:
    assert changes({"iteration": 3}, "here", config=text, facts=FACTS) == []
    assert changes({"config": text}, "here", config=None, facts=FACTS) == []


@pytest.mark.parametrize(
    ("scheduler", "before", "now", "bends"),
    [
        (L(ConstantParamScheduler)(value=1.0), 10, 20, False),
        (L(CosineParamScheduler)(start_value=1.0, end_value=0.0), 10, 20, True),
        (
            L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[8], num_updates=10),
            10,
            20,
            True,
        ),
        (
            L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[8], num_updates=10),
            20,
            10,
            True,
        ),
        # in iterations, as detectron2 has them
        (
            L(MultiStepParamScheduler)(
                values=[1.0, 0.1], milestones=[8], num_updates="${train.max_iter}"
            ),
            10,
            20,
            False,
        ),
    ],
    ids=["constant", "cosine", "longer", "shorter", "iterations"],
)
def test_another_length(scheduler: Any, before: int, now: int, bends: bool) -> None:
    cfg = get_config("quickstart.py")
    cfg.lr_multiplier, cfg.train.max_iter = scheduler, now
    change = schedule_change(cfg, before, now)
    assert change is not None and change.bends == bends
    assert cfg.train.max_iter == now
    assert schedule_change(cfg, now, now) is None
    assert schedule_change(cfg, None, now) is None


def test_what_bends_is_refused_and_the_rest_is_said(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = _changed("train.seed=5", "train.log_period=3")
    facts = FACTS | {"torch": "3.0", "the SHA-256 of the training annotations": "cc"}
    found = changes({"config": text, "run": FACTS}, "here", config=now, facts=facts)
    with pytest.raises(ConfigError) as caught:
        tell(found, Path("a.pth"), accept=False)
    message = str(caught.value)
    assert "train.seed was 0 in the checkpoint and is 5 now" in message
    assert "training annotations was aa in the checkpoint and is cc now" in message
    assert "--accept-changes" in message and "log_period" not in message
    assert not caplog.records
    tell(found, Path("a.pth"), accept=True)
    said = {record.message: record.levelname for record in caplog.records}
    assert said["accepted: train.seed was 0 in the checkpoint and is 5 now"] == "WARNING"
    assert said["torch was 2.0 in the checkpoint and is 3.0 now"] == "INFO"
    assert len(said) == 4


def test_annotations_are_known_by_what_they_say(tmp_path: Path) -> None:
    from sparsedet.data import open_dataset
    from tests.smoke.test_train_net import draw_set

    class Loader:
        def __init__(self, folder: Path) -> None:
            self.source = open_dataset(folder / "instances.json", folder / "images")

    name = "the SHA-256 of the training annotations"
    first, moved = (draw_set(tmp_path / each) for each in "ab")
    facts = [run_facts(torch.device("cpu"), {"training": Loader(each)}) for each in (first, moved)]
    assert facts[0] == facts[1] and len(facts[0][name]) == 16
    text = (moved / "instances.json").read_text()
    (moved / "instances.json").write_text(text.replace('"iscrowd": 0', '"iscrowd": 1', 1))
    changed = run_facts(torch.device("cpu"), {"training": Loader(moved)})
    assert {key for key in changed if changed[key] != facts[0][key]} == {name}
    assert name not in run_facts(torch.device("cpu"), {"training": object()})
