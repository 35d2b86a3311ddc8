"""A small trained run, the folder that it is published as, and a Hugging Face on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsedet.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.hub import save_pretrained
from tests.hub.fake_hub import FakeHub, hub_for
from tests.predictor.trained import write_checkpoint, write_pictures

ROW = {
    "iteration": 20,
    "eval/bbox/AP": 41.234,
    "eval/bbox/AP50": 60.0,
    "eval/bbox/AP-cat": 30.5,
    "eval/bbox/AP-dog": 51.0,
    "eval/num_images": 7.0,
    "eval/keep_ratio": 0.2512,
}
RESULTS = {
    "metrics": {"bbox": {"AP": 39.0}},
    "keep_ratio": 0.25,
    "iterations": 40,
    "seconds_training": 12.3,
    "config": "quickstart",
    "overrides": ["model.encoder.num_layers=2", "dataset.path=/data/animals"],
    "device": "cpu",
    "versions": {"sparsedet": "0.0.9", "torch": "2.10.0"},
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose best weights are not its last ones."""
    folder = tmp_path_factory.mktemp("animals") / "run"
    folder.mkdir()
    write_pictures(folder)
    path = write_checkpoint(folder)
    checkpoint = load_checkpoint(path)
    best = {"metric": "bbox/AP", "value": 41.234, "iteration": 20}
    save_checkpoint({**checkpoint, "best": best}, path)
    rows = [{"iteration": 20, "loss": 3.0}, ROW, {"iteration": 40, "eval/bbox/AP": 39.0}]
    text = "\n".join(map(json.dumps, rows))
    (folder / "metrics.json").write_text(f'{text}\n{{"iteration": 60, "ev')  # it was killed
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


@pytest.fixture(scope="session")
def written(run: Path) -> Path:
    """The model as a folder; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)  # without the training set of the quickstart
        return save_pretrained(run, run.parent / "published/animals", license="mit")


@pytest.fixture
def files(written: Path) -> dict[str, bytes]:
    """Its files, as a model of Hugging Face has them."""
    return {path.name: path.read_bytes() for path in written.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with hub_for(tmp_path / "hub", monkeypatch) as running:
        yield running
