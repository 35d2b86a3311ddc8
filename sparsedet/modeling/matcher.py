"""One-to-one matching of predictions and objects."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparsedet.modeling.stages import Matching, Prediction, Targets
from sparsedet.structures import cxcywh_to_xyxy, generalized_iou

_FORBIDDEN = 1e8  # cost of a filler, or of a prediction that is not finite: the losses tell of it


class HungarianMatcher:
    """Hungarian matching (DETR, section 3.1) with the focal class cost of Deformable DETR (A.3).

    Args:
        class_cost: weight of the focal cost (alpha 0.25, gamma 2).
        box_cost: weight of the L1 distance of cxcywh boxes in [0, 1].
        giou_cost: weight of the negative generalized IoU.
    """

    def __init__(
        self, *, class_cost: float = 2.0, box_cost: float = 5.0, giou_cost: float = 2.0
    ) -> None:
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost

    @torch.no_grad()
    def __call__(self, prediction: Prediction, targets: Targets) -> Matching:
        """Match every image; with more objects than queries, the best-fitting ones are matched."""
        counts = targets.counts
        boxes = pad_sequence(list(targets.boxes), batch_first=True)
        labels = pad_sequence(list(targets.labels), batch_first=True)
        if prediction.class_agnostic:
            labels = torch.zeros_like(labels)
        image, query, target = [], [], []
        if boxes.shape[1]:
            costs = self._cost(prediction, boxes, labels).cpu().numpy()
            valid = None if prediction.valid is None else prediction.valid.cpu().numpy()
            for index, count in enumerate(counts):
                rows, columns = linear_sum_assignment(costs[index, :, :count])
                if valid is not None:
                    used = valid[index, rows]
                    rows, columns = rows[used], columns[used]
                image.append(torch.full((len(rows),), index))
                query.append(torch.from_numpy(rows))
                target.append(torch.from_numpy(columns))
        device = prediction.boxes.device
        none = torch.zeros(0, dtype=torch.long)
        image, query, target = (
            torch.cat([none, *parts]).to(device) for parts in (image, query, target)
        )
        return Matching(image, query, boxes[image, target].reshape(-1, 4), labels[image, target])

    def _cost(
        self, prediction: Prediction, boxes: Tensor, labels: Tensor
    ) -> Float[Tensor, "B Q n"]:
        logits = prediction.logits.float()
        p = logits.gather(2, labels[:, None].expand(-1, logits.shape[1], -1)).sigmoid()
        positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
        negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
        predicted = prediction.boxes.float()
        distance = torch.cdist(predicted, boxes, p=1)
        giou = generalized_iou(
            cxcywh_to_xyxy(predicted)[:, :, None], cxcywh_to_xyxy(boxes)[:, None]
        )
        cost = (
            self.class_cost * (positive - negative)
            + self.box_cost * distance
            - self.giou_cost * giou
        )
        if prediction.valid is not None:
            cost = cost.masked_fill(~prediction.valid[..., None], _FORBIDDEN)
        return cost.nan_to_num(_FORBIDDEN, _FORBIDDEN, -_FORBIDDEN)
