"""What a training run leaves for its report, and that it never fails because of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsedet import training
from sparsedet.config import LazyConfig
from sparsedet.report import record
from tests.report.test_runs import words
from tests.smoke.test_train_net import CONFIG, NARROW, draw_set, set_overrides

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("set") / "three")


def train(root: Path, drawn: Path, folder: Path, *overrides: str, resume: bool = False) -> Any:
    cfg = LazyConfig.load(root / CONFIG)
    ours = (f"train.output_dir={folder}", "train.epochs=1", "train.max_iter=2", *overrides)
    cfg = LazyConfig.apply_overrides(cfg, [*NARROW, *set_overrides(drawn), *ours])
    folder.mkdir(exist_ok=True)
    training.resolve_run(cfg)
    origin = {"config": str(root / CONFIG), "overrides": [f"{resume=}"]}
    return training.Job(cfg, CPU, origin=origin, resume=resume).train()


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_run_leaves_its_report_and_what_it_is_made_of(root, drawn, tmp_path):
    train(root, drawn, tmp_path)
    data = read(tmp_path / "data.json")
    assert [part["name"] for part in data["survey"]] == ["training", "validation"]
    content = read(drawn / "instances.json")
    assert data["survey"][0]["pictures"] == len(content["images"])
    assert data["survey"][0]["boxes"] == len(content["annotations"])
    counted = {row["class"]: row["boxes"] for row in data["survey"][0]["classes"]}
    assert sum(counted.values()) == len(content["annotations"]) and set(counted) == {
        *("box", "dot", "bar")
    }
    costs = read(tmp_path / "analysis.json")
    ((height, width, images),) = costs["gflops"]["sizes"]
    assert images == 1 and min(height, width) == 64
    assert costs["gflops"]["total"] == pytest.approx(sum(costs["gflops"]["stages"].values()))
    run = read(tmp_path / "run.json")
    assert run["max_iter"] == 2 and [each["iteration"] for each in run["starts"]] == [0]
    shown = words(tmp_path / "report.html")
    assert not [line for line in shown if "missing" in line or "cannot be" in line]
    assert any(line.startswith("Changes to the recipe ") for line in shown), "its config was run"
    assert "2 iterations" in " ".join(shown)


def test_a_resumed_run_keeps_where_it_came_from(root, drawn, tmp_path):
    train(root, drawn, tmp_path)
    (tmp_path / "analysis.json").write_text('{"mine": 1}')
    train(root, drawn, tmp_path, "train.max_iter=3", "lr_multiplier.warmup_length=0", resume=True)
    starts = read(tmp_path / "run.json")["starts"]
    assert [each["iteration"] for each in starts] == [0, 2]
    assert [each["overrides"] for each in starts] == [["resume=False"], ["resume=True"]]
    assert read(tmp_path / "analysis.json") == {"mine": 1}, "what `analyze` wrote is kept"


def test_a_report_that_fails_is_a_warning(root, drawn, tmp_path, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(record, "write_report", fail)
    monkeypatch.setattr(record, "count_parameters", fail)
    with caplog.at_level(logging.WARNING, "sparsedet"):
        assert train(root, drawn, tmp_path)["bbox"]
    said = [text for text in caplog.messages if "the disk is full" in text]
    assert len(said) == 2
    assert said[1].endswith(f"then run: sparsedet report {tmp_path}")
    assert (tmp_path / "results.json").is_file() and not (tmp_path / "report.html").exists()
