"""Our configs in the guests' own train tools: the losses, the end and the AP of our tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# what both runs share: the config, made small, and its length
CONFIG = """
from sparsedet.config import get_config
{imports}
_ours = get_config("{name}")
model, dataset, dataloader = _ours.model, _ours.dataset, _ours.dataloader
optimizer, lr_multiplier = _ours.optimizer, _ours.lr_multiplier
train = {train}
dataloader.train.num_workers = dataloader.test.num_workers = 0
{changes}
train.update(max_iter=20, eval_period=0, log_period=1, device="cpu", seed=3)
train.output_dir = "{output}"
"""

GUEST = """
from sparsedet.config import LazyCall as L
from sparsedet.data import resolve_dataset
from sparsedet.engine import clipping_adamw
from reseeded import Reseeded
"""
IN_A_GUEST = """
optimizer.update(_target_=clipping_adamw, max_norm=0.1)
resolve_dataset(_ours)
dataloader.train = L(Reseeded)(loader=dataloader.train, seed="${train.seed}")
"""

QUICKSTART = "dataloader.train.total_batch_size = 4"
FOCUS_DETR = """
dataset.update(_shapes.dataset)
dataloader.evaluator.area_bounds = _shapes.dataloader.evaluator.area_bounds
dataloader.train.total_batch_size = 2
model.embed_dim = 64
model.backbone.weights = None
model.encoder.update(num_heads=4, feedforward_dim=64, num_layers=2)
model.selector.layer_ratios = [0.4, 0.2]
model.decoder.update(num_heads=4, feedforward_dim=64, num_layers=2)
model.query_initializer.num_queries = 40
model.denoising.num_queries = 20
model.max_detections = 40
"""
SHRUNK = {
    "quickstart": QUICKSTART,
    "focus_detr_r50_12ep": "_shapes = get_config('quickstart')" + FOCUS_DETR,
}


def write_config(folder: Path, name: str, guest: str | None) -> Path:
    train = 'get_config("common/train_detectron2.py").train' if guest else "_ours.train"
    path = folder / f"{name}_{guest or 'ours'}.py"
    path.write_text(
        CONFIG.format(
            imports=GUEST if guest else "",
            name=name,
            train=train,
            changes=SHRUNK[name] + (IN_A_GUEST if guest else ""),
            output=path.stem,
        )
    )
    return path


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=SHRUNK)
def ours(request, detectron2, shapes, root):
    """Name of a config, and the folder of a run of our tool, which the guests are to repeat."""
    config = write_config(shapes, request.param, None)
    done = subprocess.run(
        [sys.executable, "-m", "sparsedet", "train", config.name],
        cwd=shapes,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return request.param, shapes / config.stem


def check_equal(ours: Path, theirs: Path) -> None:
    expected = [row for row in rows(ours / "metrics.json") if "loss" in row]
    found = [row for row in rows(theirs / "metrics.json") if "total_loss" in row]
    assert len(expected) == 20
    by_iteration = {row["iteration"]: row for row in found}
    for row in expected:
        other = by_iteration[row["iteration"] - 1]  # theirs counts from 0
        assert other["total_loss"] == pytest.approx(row["loss"], rel=1e-5)
        for name, value in row.items():
            if name.startswith("loss/"):
                assert other[name.removeprefix("loss/")] == pytest.approx(value, rel=1e-5)
    results = json.loads((ours / "results.json").read_text())["metrics"]["bbox"]
    last = rows(theirs / "metrics.json")[-1]  # evaluation has a row of its own
    assert results["AP"] is not None
    for name, value in results.items():
        if value is not None:
            assert last[f"bbox/{name}"] == pytest.approx(value, abs=1e-6, nan_ok=True), name


def test_in_the_tool_of_detectron2(ours, detectron2, shapes, run_guest_tool):
    name, folder = ours
    config = write_config(shapes, name, "detectron2")
    tool = "tools/lazyconfig_train_net.py"
    done = run_guest_tool(detectron2, tool, "--config-file", config.name, cwd=shapes)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equal(folder, shapes / config.stem)


def test_in_the_tool_of_detrex(ours, detrex, shapes, run_guest_tool):
    name, folder = ours
    config = write_config(shapes, name, "detrex")
    done = run_guest_tool(detrex, "tools/train_net.py", "--config-file", config.name, cwd=shapes)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equal(folder, shapes / config.stem)
