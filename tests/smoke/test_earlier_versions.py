"""What an earlier version wrote is read: its config, its weights, and a run to resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparsedet.cli.main import main
from sparsedet.config import LazyConfig, instantiate
from sparsedet.config.earlier import in_present_terms
from sparsedet.data import AnnotatedDataset
from tests.smoke.test_train_net import CONFIG, SMALL, draw_set, set_overrides


def as_before(content: dict[str, Any]) -> dict[str, Any]:
    """The config as it was saved when loaders read the annotations by themselves."""
    loaders, train = content["dataloader"], content["train"]
    for name, split in (("train", "train"), ("test", "val"), ("evaluator", "val")):
        del loaders[name]["dataset"]
        loaders[name]["annotations"] = f"${{dataset.{split}_json}}"
        loaders[name]["class_names"] = "${dataset.class_names}"
        if name != "evaluator":
            loaders[name]["images"] = f"${{dataset.{split}_images}}"
            loaders[name]["mapper"].pop("pictures", None)
    for key in ("path", "format", "value_range", "max_image_pixels", "cache_dir"):
        del content["dataset"][key]
    del content["dataset"]["cache_gigabytes"]
    for key in ("max_nonfinite_steps", "early_stopping", "wandb", "mlflow"):
        del train[key]
    return content


@pytest.fixture(scope="module")
def aged(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended at iteration 2, as an earlier version left it."""
    drawn, folder = tmp_path_factory.mktemp("set") / "three", tmp_path_factory.mktemp("run")
    places = set_overrides(draw_set(drawn))
    lengths = [
        "train.max_iter=2",
        "train.eval_period=0",
        "lr_multiplier.scheduler.values=[1.0,1.0]",
    ]
    command = ["train", str(root / CONFIG), *SMALL, *places, *lengths]
    assert main([*command, f"train.output_dir={folder}"]) == 0
    config = folder / "config.yaml"
    old = yaml.safe_dump(as_before(yaml.safe_load(config.read_text())))
    config.write_text(old)
    for path in folder.glob("*.pth"):
        content = torch.load(path) | {"config": old}
        content.pop("run", None)  # the facts of a run are newer
        torch.save(content, path)
    return folder


def test_its_weights_are_evaluated(aged: Path, tmp_path: Path) -> None:
    results = json.loads((aged / "results.json").read_text())["metrics"]["bbox"]
    assert main(["eval", str(aged / "model_best.pth"), f"train.output_dir={tmp_path}"]) == 0
    found = json.loads((tmp_path / "eval_results.json").read_text())["metrics"]["bbox"]
    assert found["AP"] == results["AP"]


def test_its_weights_find_objects(aged: Path, tmp_path: Path) -> None:
    (picture, *_) = sorted(
        Path(LazyConfig.load(aged / "config.yaml").dataset.val_images).glob("*.png")
    )
    arguments = ["predict", str(aged / "model_best.pth"), str(picture)]
    assert main([*arguments, "--output", str(tmp_path / "found")]) == 0
    assert any((tmp_path / "found").iterdir())


def test_its_run_goes_on(aged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in aged.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    command = ["train", str(folder / "config.yaml"), "--resume", f"train.output_dir={folder}"]
    assert main([*command, "train.max_iter=4"]) == 0
    said = capsys.readouterr().err
    assert "resuming at iteration 2" in said
    (filled,) = [line for line in said.splitlines() if "train lacks" in line]
    assert "max_nonfinite_steps (3)" in filled and "early_stopping" in filled
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["train"]["max_nonfinite_steps"] == 3
    assert "annotations" not in saved["dataloader"]["train"]


def test_the_command_that_began_it_resumes_it(
    aged: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(aged, folder, ignore=shutil.ignore_patterns("config.yaml"))
    dataset = LazyConfig.load(aged / "config.yaml").dataset
    keys = [f"{part}_{what}" for part in ("train", "val") for what in ("json", "images")]
    places = [f"dataset.{key}={dataset[key]}" for key in keys]
    command = ["train", str(root / CONFIG), *SMALL, *places, "lr_multiplier.scheduler.values=[1,1]"]
    lengths = ["train.max_iter=3", "train.eval_period=0"]
    assert main([*command, *lengths, f"train.output_dir={folder}", "--resume"]) == 0
    assert "resuming at iteration 2" in capsys.readouterr().err


def test_loaders_open_what_they_read_by_themselves(aged: Path) -> None:
    cfg = LazyConfig.load(aged / "config.yaml")
    opened = instantiate(cfg.dataloader.train.dataset)
    assert isinstance(opened, AnnotatedDataset) and len(opened.records) == 6
    assert cfg.dataloader.train.dataset.skip_broken_images
    assert "skip_broken_images" not in cfg.dataloader.test.dataset
    assert cfg.dataloader.evaluator.dataset == cfg.dataloader.test.dataset


@pytest.mark.parametrize(
    "content",
    [
        {"dataloader": None},
        {"dataloader": {"train": {"_target_": "other.Loader", "annotations": "a.json"}}},
        {"dataloader": {"evaluator": {"_target_": "mine.Evaluator", "annotations": "a"}}},
        {"model": {"annotations": "a"}},
    ],
)
def test_what_is_not_ours_stays(content: dict[str, Any]) -> None:
    assert in_present_terms(json.loads(json.dumps(content))) == content
