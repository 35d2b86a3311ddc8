"""Signals: what asks a run to stop, and what must not break an iteration off."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["STOP_SIGNALS", "StopTraining", "undisturbed"]

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # not every system has all
)


class StopTraining(Exception):
    """The process was told to stop; training is as it was after the last whole iteration."""


@contextmanager
def undisturbed(*, forget: bool = False) -> Iterator[None]:
    """Hold back what torch raises when a worker process dies, which it may at any line of Python.

    Args:
        forget: Drop it; otherwise it is raised when the block has ended well.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "SIGCHLD"):  # then nothing is raised either
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
    if held and callable(before) and not forget:
        before(held[0], None)
