"""Processes that are measured, their peak memory, and that of the allocator on a GPU."""

from __future__ import annotations

import gc
import multiprocessing
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MB = 1e6
_STATUS = Path("/proc/self/status")


class Worker:
    """A fresh process that makes a call whenever it is asked to.

    It starts with the same environment and number of threads, so the same allocator settings hold,
    and prepares the call beside whatever else runs.

    Args:
        prepare: at the top of a module; called with ``args`` there, it returns the call, which
            returns a plain value.
        args: plain values.
    """

    def __init__(self, prepare: Callable[..., Callable[[], Any]], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        words = (other, torch.get_num_threads(), prepare, args)
        self._process = context.Process(target=_serve, args=words, daemon=True)
        self._process.start()
        self._is_prepared = False
        other.close()

    def wait(self) -> None:
        """Wait until the call is prepared.

        Raises:
            RuntimeError: it cannot be prepared.
        """
        if not self._is_prepared:
            self._answer()
        self._is_prepared = True

    def __call__(self) -> tuple[Any, dict[str, float]]:
        """What the call returns, and the memory of the process.

        That is ``peak_mb``: the most that was resident so far; ``before_mb``: what was before the
        first call.

        Raises:
            RuntimeError: the call failed, or the process was killed.
        """
        self.wait()
        with suppress(OSError):  # a process that has ended says below why
            self._pipe.send(True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            answer = f"it ended with {self._process.exitcode}"
            if self._process.exitcode == -9:
                answer = "it was killed, as systems do where memory is short"
        if isinstance(answer, str):
            raise RuntimeError(f"The process that is measured failed: {answer}.")
        return answer


def _serve(
    pipe: Connection, threads: int, prepare: Callable[..., Callable[[], Any]], args: Any
) -> None:
    try:
        torch.set_num_threads(threads)
        call = prepare(*args)
        gc.collect()
        before = _resident("VmRSS")
        pipe.send(None)
        while pipe.recv():
            result = call()
            pipe.send((result, {"peak_mb": _resident("VmHWM"), "before_mb": before}))
    except Exception as error:
        with suppress(OSError):  # nobody listens any more
            pipe.send(f"{type(error).__name__}: {error}")


def take_turns(
    workers: Mapping[str, Worker], *, seconds: float, rounds: int, warm_up: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Call workers in rounds, as ``time_in_turns`` does; one that fails leaves the rounds.

    Args:
        workers: by name; each returns a dict.
        seconds: go on for so long.
        rounds: and for at least so many rounds.
        warm_up: rounds before them that do not count.

    Returns:
        What the calls of each worker returned, with the ``memory`` of its process, and the errors
        of those that failed.
    """
    errors: dict[str, str] = {}

    def attempt(name: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            errors[name] = str(error)
            print(f"failed: {name}: {error}", file=sys.stderr)

    for name, worker in workers.items():
        attempt(name, worker.wait)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    shuffle, done, end = random.Random(0).shuffle, -warm_up, 0.0
    while done < rounds or time.perf_counter() < end:
        end = time.perf_counter() + seconds if done == 0 else end
        order = [name for name in workers if name not in errors]
        if not order:
            break
        shuffle(order)
        for name in order:
            answer = attempt(name, workers[name])
            if answer is not None and done >= 0:
                answers[name].append({**answer[0], "memory": answer[1]})
        done += 1
    return {name: answers[name] for name in workers if name not in errors}, errors


def process_peak(prepare: Callable[..., Callable[[], object]], *args: Any) -> dict[str, float]:
    """Run a pass twice in a fresh process and see how large that becomes.

    Args:
        prepare: at the top of a module; called with ``args`` there, it returns the pass.
        args: plain values.

    Returns:
        ``peak_mb``: most resident memory of the process; ``before_mb``: that of the process with
        the model loaded, before the passes.

    Raises:
        RuntimeError: the pass failed.
    """
    with closing(Worker(_without_result, prepare, args)) as worker:
        worker()
        return worker()[1]


def _without_result(
    prepare: Callable[..., Callable[[], object]], args: Sequence[Any]
) -> Callable[[], None]:
    call = prepare(*args)

    def run() -> None:
        call()

    return run


def _resident(field: str) -> float:
    """Megabytes of this process. On Linux of its own: getrusage counts the parent's before exec."""
    if _STATUS.is_file():
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.M)
        assert found is not None
        return int(found[1]) * 1024 / MB
    import resource  # Windows has none

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MB


def device_peak(
    call: Callable[[], object], owned: Sequence[Tensor], device: torch.device
) -> dict[str, float]:
    """Peak of one pass on an accelerator, as if nothing but its own tensors were there.

    Args:
        call: the pass, after a warm-up.
        owned: weights and other tensors that it needs and that are there already.
        device: the accelerator.
    """
    torch.accelerator.synchronize(device)
    before = torch.accelerator.memory_allocated(device)
    torch.accelerator.reset_peak_memory_stats(device)
    call()
    torch.accelerator.synchronize(device)
    peak = torch.accelerator.max_memory_allocated(device)
    own = sum(tensor.nbytes for tensor in owned)
    return {"peak_mb": (peak - before + own) / MB, "before_mb": own / MB}
