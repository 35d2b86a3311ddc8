"""Matched loss terms: classes and boxes, for all stages at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparsedet.modeling.stages import Matching, Prediction
from sparsedet.registry import LOSSES
from sparsedet.structures import cxcywh_to_xyxy, generalized_iou


@dataclass(frozen=True)
class SupervisedStages:
    """Predictions of several stages and the objects that they are matched to, stage after stage.

    One row per image and query of every stage, one pair per matched query. A matched term looks at
    all stages at once: on an accelerator a training step then starts a few large operations
    instead of thousands of small ones.

    Attributes:
        logits: class logits of every row, fp32.
        valid: False = a filler, to be left out; None = no fillers.
        boxes: predicted boxes of the pairs, cxcywh, fp32.
        rows: row of every pair.
        target_boxes: box of the object of each pair.
        labels: class of the object of each pair.
        num_rows: rows of each stage, host integers.
        num_pairs: pairs of each stage, host integers.
    """

    logits: Float[Tensor, "R classes"]
    valid: Bool[Tensor, " R"] | None
    boxes: Float[Tensor, "n 4"]
    rows: Int[Tensor, " n"]
    target_boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, " n"]
    num_rows: tuple[int, ...]
    num_pairs: tuple[int, ...]

    @staticmethod
    def join(predictions: Sequence[Prediction], matchings: Sequence[Matching]) -> SupervisedStages:
        """Concatenate the predictions and matchings of all stages."""
        num_rows = tuple(p.boxes.shape[:2].numel() for p in predictions)
        num_pairs = tuple(len(m.query) for m in matchings)
        queries = [p.boxes.shape[1] for p in predictions]
        first = list(accumulate(num_rows, initial=0))[:-1]
        # Sizes are known on the host, so nothing synchronizes with the device.
        sizes = torch.tensor([queries, first, num_pairs])
        sizes = sizes.to(predictions[0].boxes.device, non_blocking=True)
        width, start = sizes[:2].repeat_interleave(sizes[2], dim=1, output_size=sum(num_pairs))
        rows = start + torch.cat([m.image for m in matchings]) * width
        rows = rows + torch.cat([m.query for m in matchings])
        boxes = torch.cat([p.boxes.flatten(0, 1) for p in predictions])
        return SupervisedStages(
            logits=torch.cat([p.logits.flatten(0, 1) for p in predictions]).float(),
            valid=_validity(predictions),
            boxes=boxes.index_select(0, rows).float(),
            rows=rows,
            target_boxes=torch.cat([m.boxes for m in matchings]),
            labels=torch.cat([m.labels for m in matchings]),
            num_rows=num_rows,
            num_pairs=num_pairs,
        )


def _validity(predictions: Sequence[Prediction]) -> Bool[Tensor, " R"] | None:
    if all(p.valid is None for p in predictions):
        return None
    valid = [
        p.boxes.new_ones(p.boxes.shape[:2], dtype=torch.bool) if p.valid is None else p.valid
        for p in predictions
    ]
    return torch.cat([each.flatten() for each in valid])


def stage_sums(values: Float[Tensor, " n"], sizes: Sequence[int]) -> Float[Tensor, " S"]:
    """Sums of consecutive runs of ``values``; runs of one size are summed together."""
    sums, start = [], 0
    for size, run in groupby(sizes):
        count = len(list(run))
        sums.append(values.narrow(0, start, count * size).view(count, size).sum(1))
        start += count * size
    return torch.cat(sums)


@LOSSES.register()
class FocalLoss:
    """Sigmoid focal loss over all queries and classes, per object (RetinaNet, section 3).

    All logits are first treated as negative, then the few positive ones are corrected, so no array
    of targets is needed.

    Args:
        weight: factor in the objective.
        alpha: weight of the positive class, in [0, 1].
        gamma: exponent of the modulating factor.
    """

    name = "focal"
    softmax = False

    def __init__(self, *, weight: float, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(
        self, stages: SupervisedStages, num_boxes: Float[Tensor, " S"]
    ) -> Float[Tensor, " S"]:
        """The unweighted loss of each stage."""
        absent = self._absent(stages.logits).sum(1)
        if stages.valid is not None:
            absent = absent.where(stages.valid, 0.0)
        own = stages.logits[stages.rows, stages.labels]
        present = self.alpha * (-own).sigmoid() ** self.gamma * F.softplus(-own)
        found = stage_sums(present - self._absent(own), stages.num_pairs)
        return (stage_sums(absent, stages.num_rows) + found) / num_boxes

    def _absent(self, logits: Tensor) -> Tensor:
        return (1 - self.alpha) * logits.sigmoid() ** self.gamma * F.softplus(logits)


@LOSSES.register()
class CrossEntropyLoss:
    """Cross-entropy of a softmax over the classes and "no object" (DETR, section 3.1).

    The target of unmatched queries is "no object". The loss is the mean over all queries of a
    stage, weighted by their target classes; it is not divided by the number of objects.

    Args:
        weight: factor in the objective.
        no_object_weight: weight of a query whose target is "no object"; others have weight 1.
    """

    name = "cross_entropy"
    softmax = True

    def __init__(self, *, weight: float, no_object_weight: float = 0.1) -> None:
        self.weight, self.no_object_weight = weight, no_object_weight

    def __call__(
        self, stages: SupervisedStages, num_boxes: Float[Tensor, " S"]
    ) -> Float[Tensor, " S"]:
        """The unweighted loss of each stage; ``num_boxes`` is not used."""
        log_p = stages.logits.log_softmax(-1)
        surprise = -log_p[:, -1].index_copy(0, stages.rows, log_p[stages.rows, stages.labels])
        matched = torch.zeros_like(surprise).index_fill(0, stages.rows, 1.0)
        weights = self.no_object_weight + (1 - self.no_object_weight) * matched
        if stages.valid is not None:
            weights = weights.where(stages.valid, 0.0)
        total = stage_sums(weights, stages.num_rows)
        tiny = torch.finfo(total.dtype).tiny  # a stage may have no query
        return stage_sums(weights * surprise, stages.num_rows) / total.clamp(min=tiny)


@LOSSES.register()
class BoxL1Loss:
    """L1 distance of matched cxcywh boxes in [0, 1], summed over the four numbers, per object.

    Args:
        weight: factor in the objective.
    """

    name = "box_l1"

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(
        self, stages: SupervisedStages, num_boxes: Float[Tensor, " S"]
    ) -> Float[Tensor, " S"]:
        """The unweighted loss of each stage."""
        distance = (stages.boxes - stages.target_boxes).abs().sum(1)
        return stage_sums(distance, stages.num_pairs) / num_boxes


@LOSSES.register()
class GIoULoss:
    """One minus the generalized IoU of matched boxes, per object.

    Args:
        weight: factor in the objective.
    """

    name = "giou"

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(
        self, stages: SupervisedStages, num_boxes: Float[Tensor, " S"]
    ) -> Float[Tensor, " S"]:
        """The unweighted loss of each stage."""
        giou = generalized_iou(cxcywh_to_xyxy(stages.boxes), cxcywh_to_xyxy(stages.target_boxes))
        return stage_sums(1 - giou, stages.num_pairs) / num_boxes
