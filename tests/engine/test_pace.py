"""How long a run takes is said after its first iterations."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler

from sparsedet.engine import Hook, PaceHook, Trainer
from tests.engine.fakes import TinyLoader, TinyModel


class Clock(Hook):
    """Says that the first iteration took a minute and the others two seconds each."""

    def after_iteration(self, trainer):
        first = self.start = getattr(self, "start", trainer.iteration)
        trainer.train_seconds = 60.0 + 2.0 * (trainer.iteration - first)


def trained(iterations: int, start: int = 0) -> None:
    model = TinyModel()
    trainer = Trainer(
        model,
        TinyLoader().iter_from,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        lr_multiplier=ConstantParamScheduler(1.0),
        max_iter=iterations,
    )
    trainer.iteration = start
    trainer.hooks = [Clock(), PaceHook()]
    trainer.train()


@pytest.mark.parametrize("start", [0, 5])
def test_it_is_said_once_without_the_first_iteration(caplog, start):
    caplog.set_level(logging.INFO)
    trained(40 + start, start)
    (line,) = [r.getMessage() for r in caplog.records if "per iteration" in r.getMessage()]
    assert line.startswith("2 s per iteration over the last 9; memory: ")
    assert re.search(r"\d\.\d GB of this process", line)
    assert f"about 60 s left for 30 of {40 + start} iterations" in line


def test_a_run_that_is_over_before_has_nothing_to_say(caplog):
    caplog.set_level(logging.INFO)
    trained(9)
    assert not caplog.records
