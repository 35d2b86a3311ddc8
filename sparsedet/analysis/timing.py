"""Milliseconds measured side by side, and the facts about a machine that they depend on."""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from sparsedet.layers import has_compiled_kernel

Parts = dict[str, float]
"""Milliseconds of one pass by its parts."""
_END = "end"


@dataclass(frozen=True)
class Timing:
    """Milliseconds over the passes of one thing.

    Attributes:
        median: half of the passes took less.
        p10: a tenth of them took less.
        p90: a tenth of them took more.
        passes: how many there were.
    """

    median: float
    p10: float
    p90: float
    passes: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Timing:
        """Summarize passes, at least one."""
        if len(milliseconds) == 1:
            return cls(milliseconds[0], milliseconds[0], milliseconds[0], 1)
        deciles = statistics.quantiles(milliseconds, n=10, method="inclusive")
        return cls(statistics.median(milliseconds), deciles[0], deciles[-1], len(milliseconds))


class Clock:
    """Takes the time between marks: by the clock on the CPU, else by events on the stream.

    Events let nothing wait between the marks; ``parts`` waits for the last one.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """A part begins here and ends at the next mark, or where the clock stops."""
        self._marks.append((part, self._now()))

    @property
    def part(self) -> str | None:
        """The part that runs; None before the first mark and when stopped."""
        part = self._marks[-1][0] if self._marks else _END
        return None if part == _END else part

    def stop(self) -> None:
        """The last part ends here."""
        self.mark(_END)

    def clear(self) -> None:
        """Forget the marks."""
        self._marks.clear()

    def parts(self) -> Parts:
        """Milliseconds of every part that has ended."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        parts: Parts = {}
        for (name, begin), (_, end) in pairwise(self._marks):
            on_host = isinstance(begin, float)
            took = 1e3 * (end - begin) if on_host else begin.elapsed_time(end)
            parts[name] = parts.get(name, 0.0) + took
        return parts

    def _now(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(device=self.device, enable_timing=True)
        event.record()
        return event


def timed(call: Callable[[], object], clock: Clock, first: str = "total") -> Callable[[], Parts]:
    """A pass for ``time_in_turns``.

    Args:
        call: the work.
        clock: takes its time; the work may mark further parts.
        first: name of the part that the work begins with.
    """

    def run() -> Parts:
        clock.clear()
        clock.mark(first)
        call()
        clock.stop()
        parts = clock.parts()
        clock.clear()
        return parts

    return run


def time_in_turns(
    passes: Mapping[str, Callable[[], Parts]],
    *,
    seconds: float,
    rounds: int = 3,
    warm_up: int = 1,
) -> dict[str, list[Parts]]:
    """Run several things in turns, so that what else the machine does hits all of them alike.

    A round runs each once, in another order every time.

    Args:
        passes: what to run; each call returns its milliseconds by part.
        seconds: go on for so long.
        rounds: and for at least so many rounds.
        warm_up: rounds before them that do not count.

    Returns:
        For every name the parts of each round; the i-th of all names are of the same round.
    """
    order, shuffle = list(passes), random.Random(0).shuffle
    rows: dict[str, list[Parts]] = {name: [] for name in passes}
    for _ in range(warm_up):
        for name in order:
            passes[name]()
    end, done = time.perf_counter() + seconds, 0
    while done < rounds or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            rows[name].append(passes[name]())
        done += 1
    return rows


def summarize(rows: Sequence[Parts]) -> dict[str, Timing]:
    """One ``Timing`` for every part over the rounds, and one for their sum, ``total``."""
    timings = {part: Timing.of([row[part] for row in rows]) for part in rows[0]}
    return {**timings, "total": Timing.of([sum(row.values()) for row in rows])}


def round_ratio(first: Sequence[Parts], second: Sequence[Parts]) -> float:
    """How many times the first takes as long as the second: the median over their rounds."""
    return statistics.median(
        sum(one.values()) / sum(other.values()) for one, other in zip(first, second, strict=True)
    )


def machine_facts(device: torch.device) -> dict[str, object]:
    """What milliseconds depend on, beside the work itself."""
    name = platform.processor()
    if device.type != "cpu":
        name = torch.get_device_module(device).get_device_name(device)
    return {
        "device": f"{device} {name}".strip(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compiled_kernel": has_compiled_kernel(device),
    }
