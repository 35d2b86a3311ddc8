"""Whether regions look at what there is to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sparsedet.analysis.passes import evaluating
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.regions import tile_numbers
from sparsedet.modeling.stages import Glance, Targets


def looked_at(glance: Glance, targets: Targets) -> tuple[Bool[Tensor, " n"], ...]:
    """For each object of each image, whether its center lies in a tile that was looked at.

    Args:
        glance: of a pass of the detector.
        targets: the objects of the same images.
    """
    tiles = glance.tiles
    if glance.looked.indices is None:
        return tuple(torch.ones_like(labels, dtype=torch.bool) for labels in targets.labels)
    mask = glance.looked.mask(tiles.num_tokens)
    return tuple(
        mask[image][tile_numbers(tiles, image, boxes)] for image, boxes in enumerate(targets.boxes)
    )


def tile_recall(
    model: TokenSparseDetector, batches: Iterable[Sequence[Mapping[str, Any]]]
) -> float:
    """Share of the objects whose center lies in a tile that the model looks at.

    Args:
        model: with regions; it runs in eval mode, backbone, neck and regions alone.
        batches: lists of samples with instances, of a test loader for instance.

    Raises:
        ValueError: the model has no regions, or there is no object.
    """
    if model.regions is None:
        raise ValueError("tile_recall.model must have regions, got none. Set model.regions.")
    found = total = 0
    with evaluating(model), torch.inference_mode():
        for samples in batches:
            batch = model.preprocess(samples)
            _, glance = model.see(batch.images, batch.image_sizes, batch.targets)
            if glance is None or batch.targets is None:
                continue
            found += sum(int(each.sum()) for each in looked_at(glance, batch.targets))
            total += sum(batch.targets.counts)
    if not total:
        raise ValueError("tile_recall.batches must hold at least one object, got none.")
    return found / total
