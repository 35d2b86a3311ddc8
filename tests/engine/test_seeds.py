"""Seeds: all generators are meant, and every iteration of every process has its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler

from sparsedet import comm
from sparsedet.engine import Hook, Trainer
from sparsedet.engine.random_state import iteration_seed, seed_everything
from tests.engine.fakes import TinyLoader, TinyModel

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


def test_a_seed_of_its_own_for_every_iteration_and_process() -> None:
    places = [(seed, i, rank) for seed in (0, 1) for i in range(20) for rank in range(4)]
    seeds = [iteration_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [iteration_seed(*place) for place in places]


class Drawing(TinyModel):
    """Keeps what an iteration draws."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[list[Any]] = []

    def forward(self, samples: list[dict[str, Any]]) -> Any:
        self.drawn.append([draw() for draw in GENERATORS.values()])
        return super().forward(samples)


class Disturbing(Hook):
    """Draws between the iterations, as an evaluation may, and stops after some of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def after_iteration(self, trainer: Trainer) -> None:
        for draw in GENERATORS.values():
            draw()
        trainer.stop_requested = trainer.iteration == self.stop


def run(
    *hooks: Hook, seed: int = 0, state: dict[str, Any] | None = None
) -> tuple[list[list[Any]], dict[str, Any]]:
    """What the iterations of a run drew, or those of the rest of one, and where it ended."""
    model = Drawing()
    trainer = Trainer(
        model,
        TinyLoader().iter_from,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        lr_multiplier=ConstantParamScheduler(1.0),
        max_iter=6,
        seed=seed,
    )
    if state is not None:
        trainer.load_state_dict(state)
    trainer.hooks = list(hooks)
    trainer.train()
    return model.drawn, trainer.state_dict()


def test_what_an_iteration_draws_depends_on_nothing_that_was_drawn_before() -> None:
    expected, _ = run()
    assert len({tuple(drawn) for drawn in expected}) == 6  # another draw in every iteration
    for place, name in enumerate(GENERATORS):
        assert len({drawn[place] for drawn in expected}) == 6, name
    disturbed, _ = run(Disturbing())
    assert disturbed == expected
    begin, state = run(Disturbing(3))
    rest, _ = run(state=state)
    assert begin + rest == expected


def test_other_seeds_and_processes_draw_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(seed=0)
    other, _ = run(seed=1)
    assert first != other
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    neighbour, _ = run(seed=0)
    assert all(mine != others for mine, others in zip(first, neighbour, strict=True))
