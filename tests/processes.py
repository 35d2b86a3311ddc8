"""What tests of several processes need."""

from __future__ import annotations

import functools
import multiprocessing
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forked(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process of its own.

    torch raises the death of a worker at any later line of the process that the worker belongs to,
    and workers live until their loader is collected.
    """

    @functools.wraps(test)
    def run(*args: object, **options: object) -> None:
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)

        def tell() -> None:
            try:
                test(*args, **options)
                sender.send("")
            except BaseException:
                sender.send(traceback.format_exc())

        process = context.Process(target=tell)
        process.start()
        sender.close()
        try:
            failure = receiver.recv()
        except EOFError:
            failure = "the process of the test died"
        process.join()
        if failure:
            pytest.fail(failure, pytrace=False)

    return run


def wait_for(path: Path, seconds: float) -> None:
    """Wait until another process has written a file."""
    latest = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < latest, f"{path} does not come"
        time.sleep(0.02)
