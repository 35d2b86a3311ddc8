"""What each stage of a pass costs."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from sparsedet.analysis import count_flops, depends_on_image, machine_facts, measure_latency
from sparsedet.modeling.stages import Size
from sparsedet.predictor import Picture
from sparsedet.predictor.pictures import make_sample
from sparsedet.report.looking import ExplainedModel

_WARM_UP = 1


class StageCosts:
    """GFLOPs and milliseconds of a model by stage, measured once for each size of the input.

    A model whose cost depends on what a picture shows is measured for each picture.

    Args:
        model: to be measured.
        repetitions: timed passes, of which the median counts; 0 = no milliseconds.
    """

    def __init__(self, model: ExplainedModel, repetitions: int) -> None:
        self._model, self._repetitions = model, repetitions
        self._known: dict[tuple[Size, float | None], dict[str, Any]] = {}
        self._has_stages = hasattr(model.model, "detect")
        self._always = self._has_stages and depends_on_image(model.model)

    @property
    def protocol(self) -> str:
        """How milliseconds were measured, in words."""
        if not self._repetitions:
            return "Milliseconds were not measured."
        facts = machine_facts(self._device)
        passes = "one pass" if self._repetitions == 1 else f"{self._repetitions} passes"
        threads = f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}"
        return (
            f"Milliseconds are the median of {passes} over one picture on {facts['device']}, "
            f"{threads}, torch {facts['torch']}."
        )

    def __call__(self, picture: Picture, ratio: float | None) -> dict[str, Any]:
        """The cost of one pass: ``gflops`` and ``ms``, each by stage, or None where not known.

        Args:
            picture: what the model sees; for its size alone, if only that matters.
            ratio: of ``ExplainedModel.ratios``.
        """
        sample = make_sample(self._model.predictor.mapper, picture)
        height, width = sample["image"].shape[-2:]
        key = (int(height), int(width)), ratio
        if self._always or key not in self._known:
            with self._model.keeping(ratio):
                self._known[key] = self._measure(sample, key[0])
        return self._known[key]

    @property
    def _device(self) -> torch.device:
        return getattr(self._model.model, "device", torch.device("cpu"))

    def _measure(self, sample: dict[str, Any], size: Size) -> dict[str, Any]:
        if not self._has_stages:
            return {"gflops": None, "ms": self._whole(sample)}
        model = self._model.model
        image = None
        if self._always:
            height, width = size
            image = model.preprocess([sample]).images[0, :, :height, :width]
        counted = count_flops(model, size, image=image)
        gflops = {name: round(value, 4) for name, value in counted.stages.items() if value}
        if not self._repetitions:
            return {"gflops": gflops, "ms": None}
        timed = measure_latency(
            model, size, image=image, repetitions=self._repetitions, warm_up=_WARM_UP
        )
        return {"gflops": gflops, "ms": {k: round(v, 3) for k, v in timed.stages.items()}}

    def _whole(self, sample: dict[str, Any]) -> dict[str, float] | None:
        """Milliseconds of a detector that does not tell its stages."""
        if not self._repetitions:
            return None
        passes = []
        for _ in range(_WARM_UP + self._repetitions):
            started = time.perf_counter()
            self._model.model([sample])
            passes.append(1e3 * (time.perf_counter() - started))
        return {"whole": round(median(passes[_WARM_UP:]), 3)}
