"""Names that earlier versions gave to arguments and classes still work."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsedet
from sparsedet import list_components
from sparsedet.changes import changes
from sparsedet.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.config import ConfigError, LazyCall, LazyConfig, check_overrides, get_config
from sparsedet.config.earlier import RENAMED_ARGUMENTS
from sparsedet.config.naming import locate
from sparsedet.modeling import ForegroundScorer, ForegroundTokenSelector
from sparsedet.registry import find_component
from tests.predictor.trained import write_checkpoint

OLD = {
    "unmatched:": "stage:",
    "makes_pos:": "conditional_pos:",
    "modeling.ForegroundScorer": "modeling.ForegroundTokenSelector",
}
IMAGE = torch.linspace(0, 255, 3 * 64 * 96).reshape(3, 64, 96).to(torch.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint as it is written now, and one with the old names."""
    folder = tmp_path_factory.mktemp("run")
    path = write_checkpoint(folder)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    for present, old in OLD.items():
        assert text.count(present) == 1
        text = text.replace(present, old)
    (folder / "old.yaml").write_text(text, encoding="utf-8")
    save_checkpoint(load_checkpoint(path) | {"config": text}, folder / "old.pth")
    return folder


def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    (found,) = model([{"image": IMAGE}])
    instances = found["instances"]
    return [instances.pred_boxes.tensor, instances.scores, instances.pred_classes]


def small(**model: Any) -> Any:
    cfg = get_config("quickstart")
    cfg.model.update(model)
    return cfg


def test_an_old_config_is_read_as_the_present_one(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        old = LazyConfig.load(run / "old.yaml")
    assert old == LazyConfig.load(run / "config.yaml")
    assert list(old.model.criterion) == list(LazyConfig.load(run / "config.yaml").model.criterion)
    assert [record.getMessage() for record in caplog.records] == [
        "model.decoder.conditional_pos is called model.decoder.makes_pos now",
        "model.criterion.stage is called model.criterion.unmatched now",
    ]


def test_an_old_checkpoint_finds_the_same_objects(run: Path) -> None:
    expected = outputs(sparsedet.load(run / "model_best.pth", "cpu"))
    for one, other in zip(outputs(sparsedet.load(run / "old.pth", "cpu")), expected, strict=True):
        assert torch.equal(one, other)
    assert len(expected[1]) > 0


def test_an_old_run_is_resumed_without_a_change(run: Path) -> None:
    text = (run / "config.yaml").read_text(encoding="utf-8")
    assert changes(load_checkpoint(run / "old.pth"), "old", config=text, facts={}) == []


@pytest.mark.parametrize(
    ("typed", "key", "value", "now"),
    [
        (
            "model.criterion.stage.0.weight=0.25",
            "criterion.unmatched.0.weight",
            0.25,
            "model.criterion.unmatched.0.weight",
        ),
        ("model.criterion.stage=[]", "criterion.unmatched", [], "model.criterion.unmatched"),
        (
            "model.criterion.stage.0._target_=SalienceLoss",
            "criterion.unmatched.0._target_",
            "sparsedet.modeling.SalienceLoss",
            "model.criterion.unmatched.0._target_",
        ),
        (
            "model.decoder.conditional_pos=false",
            "decoder.makes_pos",
            False,
            "model.decoder.makes_pos",
        ),
        (
            "model.decoder={conditional_pos: false}",
            "decoder.makes_pos",
            False,
            "model.decoder.makes_pos",
        ),
    ],
)
def test_an_override_by_the_old_name_names_the_new_one(
    typed: str, key: str, value: Any, now: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = small()
    check_overrides("quickstart", [typed])  # by the description of the config, without imports
    assert not caplog.records
    LazyConfig.apply_overrides(cfg, [typed])
    found = cfg.model
    for part in key.split("."):
        found = found[int(part) if part.isdigit() else part]
    assert found == value
    (line,) = [each.getMessage() for each in caplog.records if "is called" in each.getMessage()]
    assert line.endswith(f"is called {now} now")
    assert "stage" not in cfg.model.criterion and "conditional_pos" not in cfg.model.decoder


def test_a_typed_component_may_have_old_arguments() -> None:
    cfg = small()
    term = "{_target_: ForegroundLoss, weight: 2.0}"
    typed = f"model.criterion={{_target_: sparsedet.modeling.SetCriterion, stage: [{term}]}}"
    LazyConfig.apply_overrides(cfg, [typed])
    assert list(cfg.model.criterion) == ["_target_", "unmatched"]
    assert cfg.model.criterion.unmatched[0].weight == 2.0


@pytest.mark.parametrize(
    "typed", ["model.stage=1", "model.neck.stage=1", "train.conditional_pos=1"]
)
def test_old_names_mean_nothing_elsewhere(typed: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown key {typed.removesuffix('=1')}"):
        LazyConfig.apply_overrides(small(), [typed])


def test_classes_of_others_keep_their_arguments(tmp_path: Path) -> None:
    scorer = "{_target_: mine.ForegroundTokenSelector}"
    text = f"model: {{_target_: mine.SetCriterion, stage: 1, scorer: {scorer}}}"
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert LazyConfig.load(path).model == {
        "_target_": "mine.SetCriterion",
        "stage": 1,
        "scorer": {"_target_": "mine.ForegroundTokenSelector"},
    }


def test_both_names_at_once_are_refused(run: Path, tmp_path: Path) -> None:
    text = (run / "config.yaml").read_text(encoding="utf-8")
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("    unmatched:", "    stage: []\n    unmatched:"))
    with pytest.raises(ConfigError, match=r"SetCriterion\.stage is called unmatched now"):
        sparsedet.config.instantiate(LazyConfig.load(path).model)


@pytest.mark.parametrize("name", RENAMED_ARGUMENTS)
def test_python_is_told_the_new_name(name: str) -> None:
    cls = locate(f"sparsedet.modeling.{name}")
    for old, new in RENAMED_ARGUMENTS[name].items():
        with pytest.raises(ValueError, match=rf"^{name}\.{old} is called {new} now\. Write {new} "):
            cls(**{old: True})


def test_the_scorer_has_the_name_of_its_paper_too() -> None:
    assert ForegroundTokenSelector is ForegroundScorer
    assert find_component("ForegroundTokenSelector") is ForegroundScorer
    assert {"ForegroundScorer", "ForegroundTokenSelector"} <= set(list_components()["scorer"])
    cfg = small(scorer=None)
    LazyConfig.apply_overrides(cfg, ["model.scorer._target_=ForegroundTokenSelector"])
    assert cfg.model.scorer._target_ == "sparsedet.modeling.ForegroundScorer"
    described = LazyCall("sparsedet.modeling.ForegroundTokenSelector")(embed_dim=32)
    assert isinstance(sparsedet.config.instantiate(described), ForegroundScorer)
