"""Rows of a run that ended between two of them: the next one counts what came before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsedet.checkpoint import CheckpointStore, load_checkpoint
from sparsedet.engine import CheckpointHook, Hook, LogHook, Trainer
from sparsedet.events import JsonWriter, log_scalar
from tests.engine.fakes import TinyModel, tiny_trainer


class Telling(TinyModel):
    """Logs the place of each batch, and may fail right after."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at

    def forward(self, samples: list[dict[str, Any]]) -> Any:
        log_scalar("first", samples[0]["image_id"])
        if samples[0]["image_id"] == self.fails_at:
            raise ValueError("broken")
        return super().forward(samples)


class StopAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_iteration(self, trainer: Trainer) -> None:
        trainer.stop_requested = trainer.iteration == self.iteration


def run(folder: Path, fails_at: int | None = None, stops_at: int = 0) -> list[dict]:
    """Train for eight iterations, or until it ends, with a row for every four."""
    torch.manual_seed(0)
    trainer, store = tiny_trainer(Telling(fails_at), 8), CheckpointStore(folder)
    last = store.load_last()
    if last is not None:
        trainer.load_state_dict(*last)
    path = folder / "metrics.json"
    writer = JsonWriter(path, start_iteration=trainer.iteration)
    trainer.hooks = [StopAt(stops_at), LogHook(4, [writer]), CheckpointHook(store, 0)]
    trainer.train()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("stops_at", [4, 6])  # with a row, between two
def test_a_run_that_was_stopped(tmp_path: Path, stops_at: int) -> None:
    whole = run(tmp_path / "whole")
    assert [row["first"] for row in whole] == [1006.0, 1022.0]  # of four batches of four each
    assert len(run(tmp_path / "run", stops_at=stops_at)) == 1
    resumed = run(tmp_path / "run")
    assert [row["first"] for row in resumed] == [1006.0, 1022.0]
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in whole])


@pytest.mark.parametrize("fails_at", [1016, 1024])  # right after a row, between two
def test_a_run_that_failed(tmp_path: Path, fails_at: int) -> None:
    """What the broken iteration had logged by then is not counted."""
    whole = run(tmp_path / "whole")
    with pytest.raises(ValueError, match="broken"):
        run(tmp_path / "run", fails_at=fails_at)
    resumed = run(tmp_path / "run")
    assert [row["first"] for row in resumed] == [1006.0, 1022.0]
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in whole])


def test_a_run_of_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the first process holds the means over all."""

    def of_two_processes(scalars: dict[str, float]) -> list[dict[str, float]]:
        return [scalars, {name: value + 4.0 for name, value in scalars.items()}]

    monkeypatch.setattr("sparsedet.engine.hooks.comm.all_gather", of_two_processes)
    trainer = tiny_trainer(Telling(), 2)
    trainer.hooks = [CheckpointHook(CheckpointStore(tmp_path), 0)]
    trainer.train()
    saved = load_checkpoint(tmp_path / "checkpoint_0000002.pth")["recorded"]
    assert saved["averages"]["first"] == 1002.0 + 4.0 / 2
    assert saved["counts"]["first"] == 2
