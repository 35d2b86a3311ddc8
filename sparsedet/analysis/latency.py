"""Milliseconds, by stage."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsedet.analysis.passes import LOOK, Detector, evaluating, stage_modules
from sparsedet.analysis.timing import Clock, machine_facts, timed
from sparsedet.modeling.stages import Size
from sparsedet.structures import pad_images

FIRST_STAGE = "backbone"
"""The first stage of a pass."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of ``model.detect`` on one image, medians over the repetitions.

    Attributes:
        stages: the time of each stage; ``neck`` includes the embedding, ``decoder`` its heads, and
            the last stage of torchvision's detectors non-maximum suppression. With regions,
            ``backbone`` and ``neck`` are those of the glance.
        total: the whole pass; the median of the sums, not the sum of the medians.
        protocol: what the numbers depend on.
    """

    stages: Mapping[str, float]
    total: float
    protocol: Mapping[str, object]


def measure_latency(
    model: Detector,
    image_size: Size,
    *,
    image: Float[Tensor, "3 h w"] | None = None,
    repetitions: int = 20,
    warm_up: int = 3,
) -> Latency:
    """Time the stages of ``model.detect`` on a batch of one image.

    The CPU is timed by the clock, an accelerator by events on its stream, so that a repetition has
    no synchronization. Preprocessing and postprocessing are excluded.

    Args:
        model: in any mode; it runs in eval mode, on its device.
        image_size: (h, w) of the image, padded as the backbone needs it.
        image: a normalized image of this size; None = noise.
        repetitions: number of timed passes.
        warm_up: number of passes before them.

    Raises:
        ValueError: if ``repetitions`` is less than 1 or ``warm_up`` is negative.
    """
    if repetitions < 1 or warm_up < 0:
        raise ValueError(
            "measure_latency.repetitions must be at least 1 and warm_up at least 0, got "
            f"{repetitions} and {warm_up}."
        )
    shown = "noise" if image is None else "image"
    if image is None:
        batch, sizes = noise(model, image_size)
    else:
        batch, sizes = pad_images([image.to(model.device)], model.size_divisibility)
    clock = Clock(model.device)
    run = timed(lambda: model.detect(batch, sizes), clock, FIRST_STAGE)
    with evaluating(model), torch.inference_mode(), stage_marks(model, clock):
        rows = [run() for _ in range(warm_up + repetitions)][warm_up:]
    stages = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    total = statistics.median(sum(row.values()) for row in rows)
    protocol = {**_protocol(model, image_size, repetitions, warm_up), "input": shown}
    return Latency(stages, total, protocol)


def noise(model: Detector, image_size: Size) -> tuple[Float[Tensor, "1 3 H W"], tuple[Size, ...]]:
    """A picture of noise as ``model.detect`` takes it, padded as the backbone needs it."""
    image = torch.randn(3, *image_size, generator=torch.Generator().manual_seed(0))
    return pad_images([image.to(model.device)], model.size_divisibility)


@contextmanager
def stage_marks(model: Detector, clock: Clock) -> Iterator[None]:
    """Mark the start of every stage of the detector on a running clock."""
    looking = False  # at tiles, by backbone and neck

    def enter(stage: str) -> None:
        nonlocal looking
        if clock.part not in (None, stage) and not looking:
            clock.mark(stage)
        looking = looking or stage == LOOK

    def looked(*_: object) -> None:
        nonlocal looking
        looking = False
        enter("neck")

    with ExitStack() as hooks:
        for name, module in stage_modules(model):
            if name not in (FIRST_STAGE, "heads"):
                hook = module.register_forward_pre_hook(lambda *_, name=name: enter(name))
                hooks.callback(hook.remove)
            if name == LOOK:
                hooks.callback(module.register_forward_hook(looked).remove)
        yield


def _protocol(
    model: Detector, image_size: Size, repetitions: int, warm_up: int
) -> dict[str, object]:
    device = model.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else next(model.parameters()).dtype
    return {
        **machine_facts(device),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": 1,
        "image_size": list(image_size),
        "warm_up": warm_up,
        "repetitions": repetitions,
        "statistic": "median",
    }
