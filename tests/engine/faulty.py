"""A run of several processes in which one fails; for the tests, and started by them.

python -m tests.engine.faulty KIND NUM_PROCESSES
torchrun --nproc-per-node 2 -m tests.engine.faulty KIND
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

import torch

from sparsedet import comm
from sparsedet.engine.launch import launch, together

STEPS = 2000


def _raise() -> None:
    raise FileNotFoundError("pictures/0017.jpg is not there.")


def _die(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


FAULTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "raise": _raise,
    "kill": _die(signal.SIGKILL),
    "crash": lambda: ctypes.string_at(0),
    "exit0": lambda: os._exit(0),
    "exit7": lambda: os._exit(7),
}


def say(text: str) -> None:
    """A sentence for a person, on one line whatever the other processes write."""
    os.write(2, f"SAID by {os.environ.get('RANK', 'the parent')}: {text}\n".encode())


def work(device: torch.device, kind: str, place: str) -> int:
    """Meet the others again and again; process 1 fails.

    `place` is "together" where all meet, "apart" where process 0 computes for long meanwhile,
    "first" where process 1 fails before it ever meets the others, "main" where process 0 fails.
    """
    torch.set_num_threads(1)
    failing = comm.get_rank() == (0 if place == "main" else 1)
    print(f"PID {comm.get_rank()} {os.getpid()}", flush=True)
    for step in range(STEPS if kind != "none" else 5):
        if failing and step == {"first": 0, "apart": 4}.get(place, 5):
            FAULTS[kind]()
        if place == "apart" and step == 4 and not failing:
            time.sleep(600)
        comm.any_process(False)
        time.sleep(0.01)
    return 0


def alike(device: torch.device, kind: str, place: str) -> int:
    """All processes fail with the same words."""
    _raise()
    return 0


def main(kind: str, place: str = "together", number: str = "1") -> int:
    """Run; the exit code."""
    body = alike if place == "alike" else work
    args = (kind, place)
    return together(
        lambda: launch(body, args, num_processes=int(number), device_type="cpu", say=say), say
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
