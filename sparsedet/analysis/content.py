"""How the share of tokens that an image keeps depends on its content."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sparsedet.analysis.passes import evaluating
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import Size

_GREY = 128
Measure = Callable[[Mapping[str, Any]], float]
"""A share that a model kept of a picture, computed from its output."""


def _keep_ratio(output: Mapping[str, Any]) -> float:
    return output["keep_ratio"]


def depends_on_image(model: nn.Module) -> bool:
    """Whether the number of chosen tokens, or tiles, depends on the content of an image."""
    parts = (model, getattr(model, "regions", None))
    selectors = [getattr(part, "selector", None) for part in parts]
    return any(getattr(selector, "depends_on_image", False) for selector in selectors)


@dataclass(frozen=True)
class ImageShare:
    """The share that one image keeps, and its content.

    Attributes:
        image_id: id in the data set.
        kept: kept / all tokens, the mean over the encoder layers; or another share.
        objects: number of objects.
        area: summed areas of their boxes / area of the image.
    """

    image_id: Any
    kept: float
    objects: int
    area: float


@dataclass
class WatchedEvaluator:
    """An evaluator that also records the share that every image keeps.

    Attributes:
        evaluator: the evaluator that computes the results.
        share: computes the share from the model's output for an image.
        shares: one entry for each processed image.
    """

    evaluator: Any
    share: Measure = _keep_ratio
    shares: list[ImageShare] = field(default_factory=list)

    def reset(self) -> None:
        """Discard everything recorded so far."""
        self.shares.clear()
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the samples of a batch, with their instances, and the model's outputs."""
        for sample, output in zip(inputs, outputs, strict=True):
            boxes = sample["instances"].gt_boxes
            height, width = sample["image"].shape[-2:]
            area = float(boxes.area().sum()) / (height * width)
            share = ImageShare(sample["image_id"], self.share(output), len(boxes), area)
            self.shares.append(share)
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        """The results of the evaluator."""
        return self.evaluator.evaluate()


def share_by_content(shares: Sequence[ImageShare]) -> dict[str, dict[str, float | None]]:
    """How kept shares depend on the ``area`` and on the number of ``objects``.

    For each of the two: ``correlation`` (Pearson's; None if all values are equal), and the mean
    share of the eighth of the images with the lowest (``plain``) and the highest (``busy``) value.

    Args:
        shares: at least one image.
    """
    found = {}
    for name, other in (("area", "objects"), ("objects", "area")):
        ordered = sorted(shares, key=lambda each: (getattr(each, name), getattr(each, other)))
        kept, amounts = [x.kept for x in ordered], [float(getattr(x, name)) for x in ordered]
        count = max(1, len(ordered) // 8)
        alike = len(set(kept)) == 1 or len(set(amounts)) == 1
        found[name] = {
            "correlation": None if alike else statistics.correlation(kept, amounts),
            "plain": statistics.fmean(kept[:count]),
            "busy": statistics.fmean(kept[-count:]),
        }
    return found


def blank_share(
    model: TokenSparseDetector, image_size: Size, share: Measure = _keep_ratio
) -> float:
    """The share that a gray picture of this size (h, w) keeps: of its tokens, or another share."""
    sample: Mapping[str, Any] = {"image": torch.full((3, *image_size), _GREY, dtype=torch.uint8)}
    with evaluating(model), torch.inference_mode():
        return share(model([sample])[0])
