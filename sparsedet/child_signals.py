"""The signal that a child process sends when it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
