"""Time several things side by side, and record the facts about the machine."""

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
"""Milliseconds of one pass, by part."""
_END = "end"


@dataclass(frozen=True)
class Timing:
    """Statistics over the passes of one thing, in milliseconds.

    Attributes:
        median: the median.
        p10: the 10th percentile.
        p90: the 90th percentile.
        passes: the number of passes.
    """

    median: float
    p10: float
    p90: float
    passes: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Timing:
        """Summarize at least one pass."""
        if len(milliseconds) == 1:
            return cls(milliseconds[0], milliseconds[0], milliseconds[0], 1)
        deciles = statistics.quantiles(milliseconds, n=10, method="inclusive")
        return cls(statistics.median(milliseconds), deciles[0], deciles[-1], len(milliseconds))


class Clock:
    """Measures the time between marks: by the clock on the CPU, else by events on the stream.

    Events do not synchronize at the marks; ``parts`` waits for the last event.

    Args:
        device: the device that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """Start a part; it ends at the next mark or when the clock stops."""
        self._marks.append((part, self._now()))

    @property
    def part(self) -> str | None:
        """The part that is running; None before the first mark and after the stop."""
        part = self._marks[-1][0] if self._marks else _END
        return None if part == _END else part

    def stop(self) -> None:
        """End the last part."""
        self.mark(_END)

    def clear(self) -> None:
        """Delete the marks."""
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
        clock: measures its time; the work may mark further parts.
        first: name of the first part.
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
    """Run several things in turns, so that other load on the machine affects them equally.

    A round runs each of them once, in a new order every time.

    Args:
        passes: what to run; each call returns its milliseconds by part.
        seconds: minimum duration.
        rounds: minimum number of rounds.
        warm_up: number of rounds before them that do not count.

    Returns:
        For every name the parts of each round; entries with the same index are of the same round.
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
    """A ``Timing`` over the rounds for every part, and one for their sum, ``total``."""
    timings = {part: Timing.of([row[part] for row in rows]) for part in rows[0]}
    return {**timings, "total": Timing.of([sum(row.values()) for row in rows])}


def round_ratio(first: Sequence[Parts], second: Sequence[Parts]) -> float:
    """The median over the rounds of the ratio of both times, first / second."""
    return statistics.median(
        sum(one.values()) / sum(other.values()) for one, other in zip(first, second, strict=True)
    )


def machine_facts(device: torch.device) -> dict[str, object]:
    """Facts that milliseconds depend on, besides the work itself."""
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
