"""Signals that ask a run to stop, and errors that must not interrupt an iteration."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["STOP_SIGNALS", "StopTraining", "undisturbed"]

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # not every system has all of them
)


class StopTraining(Exception):
    """The process was told to stop; the state is that after the last complete iteration."""


@contextmanager
def undisturbed(*, forget: bool = False) -> Iterator[None]:
    """Delay the error that torch raises at any line of Python when a worker process dies.

    Args:
        forget: Drop the error; otherwise it is raised after the block, unless the block failed.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "SIGCHLD"):  # torch raises nothing in these cases
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
