"""Seeds: all generators are meant, and every batch of every process has its own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler

from sparsedet import comm
from sparsedet.engine import Hook, Trainer
from sparsedet.engine.random_state import batch_seed, seed_everything
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


def test_a_seed_of_its_own_for_every_batch_and_process_and_user() -> None:
    places = list(itertools.product((0, 1), range(20), range(4), ("loader", "model")))
    seeds = [batch_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [batch_seed(*place) for place in places]


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


class DrawingLoader(TinyLoader):
    """Draws from the global generators when it is opened, when it begins and for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[list[Any]] = []

    def iter_from(self, iteration: int) -> Iterator[list[dict[str, Any]]]:
        for draw in GENERATORS.values():
            draw()
        return self.begun(iteration)

    def begun(self, iteration: int) -> Iterator[list[dict[str, Any]]]:
        for batch in super().iter_from(iteration):
            self.drawn.append([draw() for draw in GENERATORS.values()])
            yield batch


class Restless(TinyLoader):
    """As torch's DataLoader: it draws as it begins, with what the first batch takes."""

    def iter_from(self, iteration: int) -> Iterator[list[dict[str, Any]]]:
        for draw in GENERATORS.values():
            draw()
        yield from super().iter_from(iteration)


def run(
    *hooks: Hook,
    seed: int = 0,
    state: dict[str, Any] | None = None,
    loader: TinyLoader | None = None,
    accumulation_steps: int = 1,
) -> tuple[list[list[Any]], dict[str, Any]]:
    """What the iterations of a run drew, or those of the rest of one, and where it ended."""
    model = Drawing()
    trainer = Trainer(
        model,
        (loader or TinyLoader()).iter_from,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        lr_multiplier=ConstantParamScheduler(1.0),
        max_iter=6,
        accumulation_steps=accumulation_steps,
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


@pytest.mark.parametrize("steps", [1, 2])
def test_a_loader_takes_no_numbers_from_the_model(steps: int) -> None:
    expected, _ = run(accumulation_steps=steps)
    assert len({tuple(drawn) for drawn in expected}) == 6 * steps
    for loader in (DrawingLoader, Restless):
        begin, state = run(Disturbing(3), loader=loader(), accumulation_steps=steps)
        rest, _ = run(state=state, loader=loader(), accumulation_steps=steps)
        assert begin + rest == expected


def test_a_loader_that_draws_goes_on_as_if_the_run_had_not_stopped() -> None:
    whole, first, second = DrawingLoader(), DrawingLoader(), DrawingLoader()
    noise, _ = run(loader=whole)
    _, state = run(Disturbing(3), loader=first)
    run(state=state, loader=second)
    assert first.drawn + second.drawn == whole.drawn
    assert not {tuple(drawn) for drawn in noise} & {tuple(drawn) for drawn in whole.drawn}


def test_other_seeds_and_processes_draw_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(seed=0)
    other, _ = run(seed=1)
    assert first != other
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    neighbour, _ = run(seed=0)
    assert all(mine != others for mine, others in zip(first, neighbour, strict=True))
