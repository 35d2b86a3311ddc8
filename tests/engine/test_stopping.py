"""Signals end a run in an orderly way, and what is no signal to it does not."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sparsedet.checkpoint import CheckpointStore
from sparsedet.engine import CheckpointHook, EvalHook, StopHook
from tests.engine.test_hooks import At, Scores, make_trainer


@pytest.fixture
def _handlers() -> Iterator[None]:
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    yield
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    signal.signal(signal.SIGINT, found)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    trainer, store = make_trainer(100), CheckpointStore(tmp_path)
    kill = At(3, lambda: os.kill(os.getpid(), number))
    trainer.hooks = [StopHook(), kill, EvalHook(0, Scores()), CheckpointHook(store, 50)]
    trainer.train()
    assert trainer.stop_requested and trainer.stop_signal == number
    last = store.load_last()
    assert last is not None and last[0]["iteration"] == trainer.iteration == 4


@pytest.mark.usefixtures("_handlers")
def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """`nohup` ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make_trainer(5)
        trainer.hooks = [StopHook(), At(2, lambda: os.kill(os.getpid(), signal.SIGHUP))]
        trainer.train()
        assert trainer.iteration == 5 and not trainer.stop_requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_handlers")
def test_a_data_worker_leaves_a_signal_to_its_parent() -> None:
    """It inherits the way to take it, and would go on with the run's own business."""
    ended: list[int] = []

    def fork() -> None:
        worker = os.fork()
        if worker == 0:
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
            os._exit(0 if trainer.stop_signal is None else 1)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))

    trainer = make_trainer(3)
    trainer.hooks = [StopHook(), At(2, fork)]
    trainer.train()
    assert ended == [0]
    assert trainer.iteration == 3


@pytest.mark.usefixtures("_handlers")
def test_a_signal_breaks_off_an_evaluation(tmp_path: Path) -> None:
    """It is made up for when the run goes on."""
    store = CheckpointStore(tmp_path)

    def long_evaluation(model: nn.Module) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    trainer = make_trainer(4)
    trainer.hooks = [StopHook(), EvalHook(2, long_evaluation), CheckpointHook(store, 0)]
    trainer.train()
    assert trainer.iteration == 2
    last = store.load_last()
    assert last is not None
    resumed, scores = make_trainer(4), Scores(0.1, 0.2)
    resumed.load_state_dict(*last)
    resumed.hooks = [EvalHook(2, scores)]
    resumed.train()
    assert scores.values == []


@pytest.mark.usefixtures("_handlers")
def test_a_second_signal(tmp_path: Path) -> None:
    """Ctrl-C twice is not held back; SIGTERM twice does not spoil the checkpoint."""

    def twice(number: int) -> Callable[[], None]:
        return lambda: (os.kill(os.getpid(), number), os.kill(os.getpid(), number), None)[2]

    trainer = make_trainer(5)
    trainer.hooks = [StopHook(), At(2, twice(signal.SIGINT))]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer, store = make_trainer(5), CheckpointStore(tmp_path)
    trainer.hooks = [At(2, twice(signal.SIGTERM)), StopHook(), CheckpointHook(store, 0)]
    trainer.train()
    last = store.load_last()
    assert last is not None and last[0]["iteration"] == 2


@pytest.mark.usefixtures("_handlers")
def test_the_end_of_a_worker_does_not_break_the_iteration_off() -> None:
    """A signal to the whole group ends the data loader's workers as well."""

    def fail(number: int, frame: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    def kill_group() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGCHLD)

    before = signal.signal(signal.SIGCHLD, fail)
    try:
        trainer = make_trainer(5)
        trainer.hooks = [StopHook(), At(2, kill_group)]
        trainer.train()
        assert trainer.stop_requested
        assert signal.getsignal(signal.SIGCHLD) is fail
    finally:
        signal.signal(signal.SIGCHLD, before)
