"""One-to-one matching of predictions and objects."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparsedet.modeling.stages import Matching, Prediction, Targets
from sparsedet.structures import cxcywh_to_xyxy, generalized_iou

_FORBIDDEN = 1e8  # cost of a prediction that is not finite; the losses will show it
_FILLER = 2e8  # cost of a filler, which is never matched; both are exact in fp32


class HungarianMatcher:
    """Hungarian matching (DETR, section 3.1).

    The class cost is the focal cost of Deformable DETR (A.3); for softmax predictions it is the
    negative probability of the object's class, as in DETR.

    Args:
        class_cost: weight of the class cost (the focal cost has alpha 0.25, gamma 2).
        box_cost: weight of the L1 distance of cxcywh boxes in [0, 1].
        giou_cost: weight of the negative generalized IoU.
    """

    def __init__(
        self, *, class_cost: float = 2.0, box_cost: float = 5.0, giou_cost: float = 2.0
    ) -> None:
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost

    def __call__(self, prediction: Prediction, targets: Targets) -> Matching:
        """Match every image; with more objects than queries, the best-fitting ones are matched."""
        return self.match((prediction,), targets)[0]

    def pairs(
        self, prediction: Prediction, targets: Targets
    ) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
        """(source, target) indices of every image, as the criteria of the DETR family take them.

        For a criterion of another codebase: ``matcher.pairs(Prediction(out["pred_logits"],
        out["pred_boxes"]), Targets(...))``.

        Returns:
            For each image, int64 tensors of its matched queries (ascending) and of their objects,
            on the device of the prediction.
        """
        return self(prediction, targets).pairs(len(targets.labels))

    @torch.no_grad()
    def match(self, predictions: Sequence[Prediction], targets: Targets) -> tuple[Matching, ...]:
        """Match every stage separately; the costs of all stages are copied to the host at once.

        This is the only point where the criterion synchronizes with the device.
        """
        boxes = pad_sequence(list(targets.boxes), batch_first=True)
        labels = pad_sequence(list(targets.labels), batch_first=True)
        of_stage = [torch.zeros_like(labels) if p.class_agnostic else labels for p in predictions]
        costs = self._costs(predictions, boxes, of_stage).cpu().numpy()
        ends = accumulate((p.boxes.shape[1] for p in predictions), initial=0)
        found = [_assign(costs[:, a:b], targets.counts) for a, b in pairwise(ends)]
        pairs = torch.from_numpy(np.concatenate(found, axis=1))
        image, query, target = pairs.to(boxes.device, non_blocking=True)
        sizes = [stage.shape[1] for stage in found]
        columns = (x.split(sizes) for x in (image, query, target, boxes[image, target]))
        return tuple(
            Matching(image, query, target, box, own[image, target])
            for image, query, target, box, own in zip(*columns, of_stage, strict=True)
        )

    def _costs(
        self, predictions: Sequence[Prediction], boxes: Tensor, labels: Sequence[Tensor]
    ) -> Float[Tensor, "B Q n"]:
        """Costs of the queries of all predictions, concatenated."""
        predicted = torch.cat([p.boxes for p in predictions], dim=1).float()
        distance = torch.cdist(predicted, boxes, p=1)
        giou = generalized_iou(
            cxcywh_to_xyxy(predicted)[:, :, None], cxcywh_to_xyxy(boxes)[:, None]
        )
        cost = (
            self.class_cost * _class_costs(predictions, labels)
            + self.box_cost * distance
            - self.giou_cost * giou
        ).nan_to_num(_FORBIDDEN, _FORBIDDEN, -_FORBIDDEN)
        valid = _validity(predictions)
        return cost if valid is None else cost.masked_fill(~valid[..., None], _FILLER)


def _class_costs(
    predictions: Sequence[Prediction], labels: Sequence[Tensor]
) -> Float[Tensor, "B Q n"]:
    """Cost of the class of every object, for the queries of all predictions."""
    costs = []
    for prediction, own in zip(predictions, labels, strict=True):
        places = own[:, None].expand(-1, prediction.logits.shape[1], -1)
        if prediction.softmax:
            costs.append(-prediction.scores.gather(2, places))
        else:
            costs.append(_focal_cost(prediction.logits.gather(2, places).float().sigmoid()))
    return torch.cat(costs, dim=1)


def _focal_cost(p: Tensor) -> Tensor:
    positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
    return positive - negative


def _validity(predictions: Sequence[Prediction]) -> Tensor | None:
    """``valid`` ``[B Q]`` of all predictions, concatenated; None if there are no fillers."""
    if all(p.valid is None for p in predictions):
        return None
    valid = [
        p.boxes.new_ones(p.boxes.shape[:2], dtype=torch.bool) if p.valid is None else p.valid
        for p in predictions
    ]
    return torch.cat(valid, dim=1)


def _assign(costs: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Pairs of one stage: rows of image, query and object; ``costs`` are ``[B Q n]``."""
    pairs = [np.zeros((3, 0), dtype=np.int64)]
    for image, count in enumerate(counts):
        rows, columns = linear_sum_assignment(costs[image, :, :count])
        used = costs[image, rows, columns] < _FILLER
        rows, columns = rows[used], columns[used]
        pairs.append(np.stack((np.full_like(rows, image), rows, columns)))
    return np.concatenate(pairs, axis=1)
