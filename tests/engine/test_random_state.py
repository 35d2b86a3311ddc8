"""Seeds and random states: all generators are meant, and every process has its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler

from sparsedet import comm
from sparsedet.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.engine import Hook, Trainer
from sparsedet.engine.random_state import (
    get_random_state,
    isolated_random_state,
    seed_everything,
    set_random_state,
)
from tests.engine.fakes import TinyLoader, TinyModel

CPU = torch.device("cpu")
GENERATORS: dict[str, Callable[[], Any]] = {
    "python": lambda: random.random(),
    "python's normal numbers": lambda: random.gauss(0, 1),  # come in pairs, one is kept
    "numpy": lambda: np.random.rand(),
    "numpy's normal numbers": lambda: np.random.randn(),
    "torch": lambda: torch.rand(()).item(),
}
each_generator = pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)


@each_generator
def test_a_seed_is_that_of_all_generators(draw: Callable[[], Any]) -> None:
    seed_everything(5)
    first = draw()
    draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert draw() != first


@each_generator
def test_a_state_is_put_back(draw: Callable[[], Any], tmp_path: Path) -> None:
    draw()
    state = {"model": {"a": torch.zeros(1)}, "random": get_random_state(CPU)}
    save_checkpoint(state, tmp_path / "a.pth")
    expected = [draw() for _ in range(3)]
    set_random_state(load_checkpoint(tmp_path / "a.pth")["random"], CPU)
    assert [draw() for _ in range(3)] == expected


@each_generator
def test_what_is_isolated_moves_nothing(draw: Callable[[], Any]) -> None:
    state = get_random_state(CPU)
    expected = draw()
    set_random_state(state, CPU)
    with isolated_random_state(CPU):
        assert draw() == expected
    assert draw() == expected


def make_trainer(loader: TinyLoader | None = None) -> Trainer:
    model = TinyModel()
    return Trainer(
        model,
        (loader or TinyLoader()).iter_from,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        lr_multiplier=ConstantParamScheduler(1.0),
        max_iter=6,
    )


class DrawingLoader(TinyLoader):
    """Draws when it begins, as the workers' seeds of a `DataLoader` are drawn."""

    def iter_from(self, iteration: int) -> Iterator[list[dict[str, Any]]]:
        torch.rand(7)
        yield from super().iter_from(iteration)


def test_what_a_loader_draws_does_not_move_a_resumed_run() -> None:
    losses: list[float] = []

    class Losses(Hook):
        def after_iteration(self, trainer: Trainer) -> None:
            losses.append(trainer.recorder.flush()["loss"])
            trainer.stop_requested = trainer.iteration == stop

    seed_everything(0)
    whole, stop = make_trainer(DrawingLoader()), None
    whole.hooks = [Losses()]
    whole.train()
    expected, losses = losses, []
    seed_everything(0)
    first, stop = make_trainer(DrawingLoader()), 3
    first.hooks = [Losses()]
    first.train()
    state = first.state_dict()
    second, stop = make_trainer(DrawingLoader()), None
    second.load_state_dict(state)
    second.hooks = [Losses()]
    second.train()
    assert losses == expected  # dropout draws in every iteration


def test_every_process_gets_its_own_state_back(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    states, expected = [], []
    for seed in (11, 12):
        seed_everything(seed)
        states.append(get_random_state(CPU))
        expected.append(torch.rand(()).item())
    checkpoint = trainer.state_dict() | {"random_states": states}
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        trainer.load_state_dict(checkpoint)
        assert torch.rand(()).item() == expected[rank]


def test_processes_without_a_state_are_seeded_each_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that goes on with another number of processes."""
    trainer, drawn = make_trainer(), []
    checkpoint = trainer.state_dict() | {"iteration": 3}
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in (0, 1, 0):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        trainer.load_state_dict(checkpoint)
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[2] != drawn[1]
