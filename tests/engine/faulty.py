"""Runs of several processes of which one fails; for the tests."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sparsedet import comm


def _raise() -> None:
    raise FileNotFoundError("pictures/0017.jpg is not there.")


def _die(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


FAULTS: dict[str, Callable[[], object]] = {
    "raise": _raise,
    "kill": _die(signal.SIGKILL),
    "crash": lambda: ctypes.string_at(0),
    "exit 0": lambda: os._exit(0),
    "exit 7": lambda: os._exit(7),
    "return 2": lambda: 2,
}


def say(folder: str, text: str) -> None:
    """Keep what a person is told, and by whom."""
    with (Path(folder) / "said.txt").open("a") as file:
        file.write(f"{os.environ.get('RANK', 'parent')}: {text}\n")


def work(device: torch.device, folder: str, kind: str, place: str) -> int:
    """Meet the others again and again, until one fails.

    Args:
        device: not used.
        folder: takes a file for each process and the time of the fault.
        kind: of the fault, a key of `FAULTS`; another one is no fault.
        place: "together": process 1 fails where the others wait for it; "apart": while process 0
            computes for ten minutes; "main": process 0 fails; "alike": all fail at once.
    """
    rank = comm.get_rank()
    (Path(folder) / f"pid-{rank}").write_text(str(os.getpid()))
    comm.synchronize()
    if place == "alike" or rank == (0 if place == "main" else 1):
        (Path(folder) / "fault").write_text(str(time.time()))
        answer = FAULTS.get(kind, lambda: None)()
        if isinstance(answer, int):
            return answer
    elif place == "apart":
        time.sleep(600)
    comm.synchronize()
    return 0
