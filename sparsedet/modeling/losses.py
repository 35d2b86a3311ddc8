"""Loss terms. A term owns its weight; the criterion multiplies by it, once.

A *matched term* maps ``(prediction, matching, num_boxes)`` to a scalar, a *stage term* maps a
``DetectorOutput`` and the targets to a scalar and declares in ``requires`` what the detector must
record for it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from sparsedet.events import log_scalar
from sparsedet.modeling.stages import (
    DetectorOutput,
    Matching,
    MultiScaleFeatures,
    Prediction,
    Targets,
)
from sparsedet.registry import LOSSES
from sparsedet.structures import cxcywh_to_xyxy, generalized_iou


@LOSSES.register()
class FocalLoss:
    """Sigmoid focal loss over all queries and classes, per object (RetinaNet, section 3).

    Args:
        weight: factor in the objective.
        alpha: weight of the positive class, in [0, 1].
        gamma: exponent of the modulating factor.
    """

    name = "focal"

    def __init__(self, *, weight: float, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(
        self, prediction: Prediction, matching: Matching, num_boxes: Tensor | float
    ) -> Tensor:
        """The unweighted loss."""
        logits = prediction.logits.float()
        target = torch.zeros_like(logits)
        target[matching.image, matching.query, matching.labels] = 1
        if prediction.valid is not None:
            logits, target = logits[prediction.valid], target[prediction.valid]
        return (
            sigmoid_focal_loss(logits, target, self.alpha, self.gamma, reduction="sum") / num_boxes
        )


@LOSSES.register()
class BoxL1Loss:
    """L1 distance of matched cxcywh boxes in [0, 1], summed over the numbers, per object.

    Args:
        weight: factor in the objective.
    """

    name = "box_l1"

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(
        self, prediction: Prediction, matching: Matching, num_boxes: Tensor | float
    ) -> Tensor:
        """The unweighted loss."""
        boxes = prediction.boxes[matching.image, matching.query].float()
        return F.l1_loss(boxes, matching.boxes, reduction="sum") / num_boxes


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
        self, prediction: Prediction, matching: Matching, num_boxes: Tensor | float
    ) -> Tensor:
        """The unweighted loss."""
        boxes = prediction.boxes[matching.image, matching.query].float()
        return (
            1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(matching.boxes))
        ).sum() / num_boxes


@LOSSES.register()
class DecoderAttentionLoss:
    """Binary cross-entropy of token scores against the tokens the decoder looks at most.

    Sparse DETR, section 3.3. In each image the target is 1 for as many tokens as the first encoder
    layer keeps, those with the most cross-attention mass (and some). The loss is the mean over the
    unpadded tokens of an image, then over images. The released code shifts the map by half a cell,
    counts padding in the mean and fails for keep ratios near 1.

    Args:
        weight: factor in the objective.
    """

    name = "decoder_attention"
    requires = frozenset({"token_mass"})
    trains = "DAMPredictor"

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted loss; ``targets`` are not used."""
        assert output.scores is not None and output.token_mass is not None
        kept = output.selections[0]
        target = most_attended(output.token_mass, output.features, kept.counts)
        if kept.indices is not None:
            share = (output.token_mass * kept.mask(target.shape[1])).sum() / output.token_mass.sum()
            log_scalar("token_mass_on_kept", share)
        loss = F.binary_cross_entropy_with_logits(
            output.scores.logits.float(), target.float(), reduction="none"
        )
        valid = ~output.features.padding_mask
        return ((loss * valid).sum(1) / valid.sum(1)).mean()


@torch.no_grad()
def most_attended(
    token_mass: Float[Tensor, "B N"], features: MultiScaleFeatures, counts: tuple[int, ...]
) -> Bool[Tensor, "B N"]:
    """True at the ``counts[i]`` unpadded tokens of image i with the most mass above zero."""
    mass = token_mass.masked_fill(features.padding_mask, 0.0)
    order = mass.topk(max(counts), dim=1)
    limits = torch.tensor(counts, device=mass.device)
    best = (torch.arange(max(counts), device=mass.device) < limits[:, None]) & (order.values > 0)
    return torch.zeros_like(mass, dtype=torch.bool).scatter(1, order.indices, best)
