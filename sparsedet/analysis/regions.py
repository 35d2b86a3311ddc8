"""Whether regions look at the objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from sparsedet.analysis.passes import evaluating
from sparsedet.evaluation.rules import make_rules
from sparsedet.evaluation.tiles import LookedTiles
from sparsedet.evaluation.tiles import tile_recall as recall_of
from sparsedet.modeling import TokenSparseDetector, TopKSelector
from sparsedet.modeling.inputs import make_tiles
from sparsedet.modeling.parts import Selector
from sparsedet.modeling.stages import Glance, TokenScores


def tile_recall(
    model: TokenSparseDetector,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    ratios: Sequence[float] | None = None,
    *,
    area_bounds: str | Sequence[float] = "coco",
) -> list[dict[str, float]]:
    """Share of the objects whose center lies in a tile that the model looks at.

    There is one glance for each picture, whatever the number of ratios.

    Args:
        model: with regions; only backbone, neck and scorer of the glance run, in eval mode.
        batches: lists of samples with instances, for instance from a test loader.
        ratios: shares of the tiles in (0, 1], as ``regions.look_ratio``; None = the model's own.
        area_bounds: bounds between size classes of objects, see ``COCOEvaluator``; in square pixels
            of the original image.

    Returns:
        For each ratio the result of ``sparsedet.evaluation.tiles.tile_recall``, with ``ratio``.

    Raises:
        ValueError: the model has no regions, or no scorer for other ratios, or there is no object.
    """
    regions, rules = model.regions, make_rules(area_bounds)
    if regions is None:
        raise ValueError("tile_recall.model must have regions, got none. Set model.regions.")
    if ratios is not None and regions.scorer is None:
        raise ValueError("tile_recall.ratios needs scores of the tiles. Set model.regions.scorer.")
    selector: Any = getattr(regions, "selector", None)
    own = getattr(selector, "keep_ratio", 1.0)
    asked = [own] if ratios is None else list(ratios)
    images: list[list[LookedTiles]] = [[] for _ in asked]
    with evaluating(model), torch.inference_mode():
        for samples in batches:
            batch = model.preprocess(samples)
            glance = model.glance(batch.images, batch.image_sizes, batch.targets)
            for ratio, found in zip(asked, images, strict=True):
                chosen = glance if ratio == own else _at_ratio(glance, selector, ratio)
                found += [_looked(chosen, i, sample) for i, sample in enumerate(samples)]
    if not any(len(each.tile) for found in images for each in found):
        raise ValueError("tile_recall.batches must hold at least one object, got none.")
    return [
        {"ratio": ratio, **recall_of(found, rules)}
        for ratio, found in zip(asked, images, strict=True)
    ]


def _at_ratio(glance: Glance, selector: Any, ratio: float) -> Glance:
    """The tiles that another ratio would choose at the same glance."""
    scores = TokenScores(glance.tiles.tokens[..., 0])
    if not hasattr(selector, "keep_ratio"):
        return replace(glance, looked=TopKSelector(ratio)(scores, glance.tiles, 1)[0])
    with _ratio_of(selector, ratio):
        return replace(glance, looked=selector(scores, glance.tiles, 1)[0])


@contextmanager
def _ratio_of(selector: Any, ratio: float) -> Iterator[Selector]:
    before = selector.keep_ratio
    try:
        selector.keep_ratio = ratio
        yield selector
    finally:
        selector.keep_ratio = before


def _looked(glance: Glance, image: int, sample: Mapping[str, Any]) -> LookedTiles:
    """The tiles of one sample; sizes are in the original image."""
    h, w = glance.features.image_sizes[image]
    height, width = sample.get("height", h), sample.get("width", w)
    boxes = sample["instances"].gt_boxes.tensor.double().cpu().numpy()
    boxes = boxes * (width / w, height / h, width / w, height / h)
    sides = boxes[:, 2:] - boxes[:, :2]
    tiles = make_tiles(glance, image, (height, width))
    return LookedTiles.of(tiles, boxes[:, :2] + sides / 2, sides.prod(1))
