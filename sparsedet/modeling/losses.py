"""Loss terms. A term owns its weight; the criterion multiplies by it, once.

A *matched term* maps ``(prediction, matching, num_boxes)`` to a scalar, a *stage term* maps a
``DetectorOutput`` and the targets to a scalar and declares in ``requires`` what the detector must
record for it.
"""

from __future__ import annotations

from collections.abc import Sequence

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


SizeRanges = Sequence[Sequence[int | float]]


@LOSSES.register()
class ForegroundLoss:
    """Focal loss of token scores against the tokens that lie in objects of their level's size.

    Focus-DETR, section 3.2 and equation 1. A token is positive when the center of its cell lies
    inside a box and the largest of its distances to the four sides is in its level's range. The
    loss is summed over the unpadded tokens of an image, divided by the positive ones (at least 1)
    and averaged over the images. The ranges of the paper overlap, those of the released code do
    not; it also counts padding and fails for a batch without any object.

    Args:
        weight: factor in the objective.
        size_ranges: (low, high] in pixels for every level, fine to coarse.
        alpha: weight of the positive tokens, in [0, 1].
        gamma: exponent of the modulating factor.

    Raises:
        ValueError: for ranges that are not pairs of rising numbers.
    """

    name = "foreground"
    requires: frozenset[str] = frozenset()
    trains = "ForegroundTokenSelector"

    def __init__(
        self,
        *,
        weight: float,
        size_ranges: SizeRanges = ((-1, 64), (64, 256), (128, 512), (256, 999999)),
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.weight, self.alpha, self.gamma = weight, alpha, gamma
        if not all(isinstance(r, Sequence) and len(r) == 2 and r[0] < r[1] for r in size_ranges):
            raise ValueError(
                "ForegroundLoss.size_ranges must be pairs (low, high) with low < high, got "
                f"{list(size_ranges)}. Set size_ranges of the term in model.criterion.stage."
            )
        self.size_ranges = tuple((float(low), float(high)) for low, high in size_ranges)

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted loss.

        Raises:
            ValueError: if there is not one range per level.
        """
        foreground = foreground_tokens(output.features, targets, self.size_ranges)
        return _token_focal_loss(output, foreground.float(), self.alpha, self.gamma)


@LOSSES.register()
class SalienceLoss:
    """Focal loss of token scores against targets that fall from the centers of the boxes.

    Hou et al., "Salience DETR: Enhancing Detection Transformer with Hierarchical Salience Filtering
    Refinement", CVPR 2024, section 3.3: inside a box the target is 1 at its center and falls with
    the distance, measured in widths and heights of the box, to about 0.29 at its corners; where
    boxes overlap the larger target counts. It does not depend on the size of the box, and all
    levels have the same targets (the released code of that paper still gives every level a range
    of sizes). Normalized as ``ForegroundLoss``.

    Args:
        weight: factor in the objective.
        alpha: weight of the targets, in [0, 1]; ``1 - alpha`` is that of what they lack to 1.
        gamma: exponent of the modulating factor.
    """

    name = "salience"
    requires: frozenset[str] = frozenset()
    trains = "ForegroundTokenSelector"

    def __init__(self, *, weight: float, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted loss."""
        salience = token_salience(output.features, targets)
        return _token_focal_loss(output, salience, self.alpha, self.gamma)


@torch.no_grad()
def foreground_tokens(
    features: MultiScaleFeatures, targets: Targets, size_ranges: SizeRanges
) -> Bool[Tensor, "B N"]:
    """True at the unpadded tokens in a box of their level's size, see ``ForegroundLoss``.

    Raises:
        ValueError: if there is not one range per level.
    """
    if len(size_ranges) != len(features.strides):
        raise ValueError(
            f"ForegroundLoss.size_ranges must have one range for each of the "
            f"{len(features.strides)} levels, got {len(size_ranges)}: {list(size_ranges)}. "
            "Set size_ranges of the term in model.criterion.stage."
        )
    images = []
    for image, boxes in enumerate(targets.boxes):
        per_level = []
        for level, (low, high) in enumerate(size_ranges):
            x, y = _side_distances(features, image, level, boxes)
            size = torch.maximum(y.amax(-1)[:, None], x.amax(-1))
            found = _inside(x, y) & (size > low) & (size <= high)
            per_level.append(found.any(-1).flatten())
        images.append(torch.cat(per_level))
    return torch.stack(images) & ~features.padding_mask


@torch.no_grad()
def token_salience(features: MultiScaleFeatures, targets: Targets) -> Float[Tensor, "B N"]:
    """Targets in [0, 1] of the tokens, 0 at padding, see ``SalienceLoss``."""
    images = []
    for image, boxes in enumerate(targets.boxes):
        per_level = []
        for level in range(len(features.strides)):
            x, y = _side_distances(features, image, level, boxes)
            across, down = (0.5 * (d[..., 0] - d[..., 1]) / d.sum(-1) for d in (x, y))
            near = 1 - torch.hypot(down[:, None], across[None])
            near = near.where(_inside(x, y), 0.0)
            nothing = near.new_zeros(*near.shape[:2], 1)  # for images without objects
            per_level.append(torch.cat((near, nothing), dim=-1).amax(-1).flatten())
        images.append(torch.cat(per_level))
    return torch.stack(images).masked_fill(features.padding_mask, 0.0)


def _side_distances(
    features: MultiScaleFeatures, image: int, level: int, boxes: Float[Tensor, "n 4"]
) -> tuple[Float[Tensor, "W n 2"], Float[Tensor, "H n 2"]]:
    """Pixels from the cells' columns to the left and right sides, from rows to top and bottom.

    Positive towards the inside of the box.
    """
    (rows, columns), stride = features.spatial_shapes[level], features.strides[level]
    height, width = features.image_sizes[image]
    sides = cxcywh_to_xyxy(boxes.float()) * boxes.new_tensor((width, height, width, height))
    distances = []
    for count, axis in ((columns, 0), (rows, 1)):
        place = ((torch.arange(count, device=boxes.device) + 0.5) * stride)[:, None]
        distances.append(torch.stack((place - sides[:, axis], sides[:, axis + 2] - place), dim=-1))
    return distances[0], distances[1]


def _inside(x: Float[Tensor, "W n 2"], y: Float[Tensor, "H n 2"]) -> Bool[Tensor, "H W n"]:
    return (y > 0).all(-1)[:, None] & (x > 0).all(-1)


def _token_focal_loss(
    output: DetectorOutput, target: Float[Tensor, "B N"], alpha: float, gamma: float
) -> Tensor:
    """Focal loss for targets in [0, 1]; per image the sum over tokens by the positive ones."""
    assert output.scores is not None
    logits = output.scores.logits.float()
    probability = logits.sigmoid()
    factor = (
        alpha * target * (1 - probability) ** gamma
        + (1 - alpha) * (1 - target) * probability**gamma
    )
    loss = factor * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss.masked_fill(output.features.padding_mask, 0.0)
    return (loss.sum(1) / (target > 0).sum(1).clamp(min=1)).mean()


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
