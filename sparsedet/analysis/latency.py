"""Milliseconds, by stage."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from sparsedet.analysis.passes import divisibility, evaluating, stage_modules
from sparsedet.layers import has_compiled_kernel
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import Size
from sparsedet.structures import pad_images


@dataclass(frozen=True)
class Latency:
    """Milliseconds of ``model.detect`` on one image, medians over the repetitions.

    Attributes:
        stages: of each stage; ``neck`` includes the embedding, ``decoder`` its heads.
        total: of the whole; the median of the sums, not the sum of the medians.
        protocol: what the numbers depend on.
    """

    stages: Mapping[str, float]
    total: float
    protocol: Mapping[str, object]


def measure_latency(
    model: TokenSparseDetector, image_size: Size, *, repetitions: int = 20, warm_up: int = 3
) -> Latency:
    """Time the stages of ``model.detect`` on a batch of one image of noise.

    On the CPU by the clock, on an accelerator by events on its stream, so that nothing waits
    within a repetition. Preprocessing and postprocessing are not part of it.

    Args:
        model: in any mode; it runs in eval mode, on its device.
        image_size: (h, w) of the image, padded as the backbone asks for.
        repetitions: passes that are timed.
        warm_up: passes before them.

    Raises:
        ValueError: if there is no repetition.
    """
    if repetitions < 1 or warm_up < 0:
        raise ValueError(
            "measure_latency.repetitions must be at least 1 and warm_up at least 0, got "
            f"{repetitions} and {warm_up}."
        )
    noise = torch.randn(3, *image_size, generator=torch.Generator().manual_seed(0))
    batch, sizes = pad_images([noise.to(model.device)], divisibility(model))
    rows = []
    with evaluating(model), torch.inference_mode(), _marks(model) as marks:
        for repetition in range(warm_up + repetitions):
            marks.clear()
            marks.append(("backbone", _now(model.device)))
            model.detect(batch, sizes)
            marks.append(("end", _now(model.device)))
            if repetition >= warm_up:
                rows.append(_intervals(marks, model.device))
    stages = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    total = statistics.median(sum(row.values()) for row in rows)
    return Latency(stages, total, _protocol(model, image_size, repetitions, warm_up))


@contextmanager
def _marks(model: TokenSparseDetector) -> Iterator[list[tuple[str, Any]]]:
    """A list that gets (stage, time) whenever the next stage begins."""
    marks: list[tuple[str, Any]] = []

    def mark(name: str) -> None:
        if marks and marks[-1][0] != name:
            marks.append((name, _now(model.device)))

    with ExitStack() as hooks:
        for name, module in stage_modules(model):
            if name not in ("backbone", "heads"):
                hook = module.register_forward_pre_hook(lambda *_, name=name: mark(name))
                hooks.callback(hook.remove)
        yield marks


def _now(device: torch.device) -> Any:
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.Event(device=device, enable_timing=True)
    event.record()
    return event


def _intervals(marks: Sequence[tuple[str, Any]], device: torch.device) -> dict[str, float]:
    """Milliseconds of each stage, up to the beginning of the next one."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    stages: dict[str, float] = {}
    for (name, begin), (_, end) in pairwise(marks):
        on_host = isinstance(begin, float)
        stages[name] = 1e3 * (end - begin) if on_host else begin.elapsed_time(end)
    return stages


def _protocol(
    model: TokenSparseDetector, image_size: Size, repetitions: int, warm_up: int
) -> dict[str, object]:
    device = model.device
    name = platform.processor()
    if device.type != "cpu":
        name = torch.get_device_module(device).get_device_name(device)
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else model.level_embed.dtype
    return {
        "device": f"{device} {name}".strip(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compiled_kernel": has_compiled_kernel(device),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": 1,
        "image_size": list(image_size),
        "input": "noise",
        "warm_up": warm_up,
        "repetitions": repetitions,
        "statistic": "median",
    }
