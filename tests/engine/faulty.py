"""Runs of several processes of which one fails; for the tests.

`FAULT="place kind rank"` tells the parts of a config below where to fail, how, and which process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsedet import comm
from sparsedet.engine import peers
from sparsedet.evaluation import COCOEvaluator


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


def _fail(place: str) -> None:
    wanted, kind, rank = os.environ["FAULT"].split()
    if (wanted, int(rank)) == (place, comm.get_rank()):
        Path(os.environ["FAULT_TIME"]).write_text(str(time.time()))
        FAULTS[kind.replace("_", " ")]()


class Schedule:
    """A learning rate that does not change, of which a process fails."""

    def __init__(self) -> None:
        _fail("build")
        self._asked: list[float] = []

    def __call__(self, where: float) -> float:
        """Called at every iteration, and for the whole run before it."""
        if where >= 0.3 and 0.0 in self._asked[1:]:
            _fail("train")
        self._asked.append(where)
        return 1.0


class Evaluator(COCOEvaluator):
    """An evaluation of which a process fails."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Takes a batch; the others are not done yet, or wait already."""
        _fail("evaluate")
        time.sleep(0.5 * comm.get_rank())
        super().process(inputs, outputs)

    def _evaluate(self, detections: Any) -> Any:
        _fail("metric")
        return super()._evaluate(detections)


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


def write_slowly(device: torch.device, folder: str) -> int:
    """Process 0 writes a file, for longer than a process has to leave, when process 1 fails."""
    peers._LEAVING = 0.2
    if comm.get_rank() == 0:
        with peers.unhurried():
            comm.synchronize()
            time.sleep(1.5)
            (Path(folder) / "file").write_text("whole")
        time.sleep(600)
    comm.synchronize()
    raise FileNotFoundError("pictures/0017.jpg is not there.")
