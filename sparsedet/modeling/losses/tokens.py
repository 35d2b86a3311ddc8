"""Unmatched loss terms that train the scorer, and their target scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from sparsedet.events import log_scalar
from sparsedet.modeling.parts import Assembly, DecoderAttention, Foreground
from sparsedet.modeling.stages import (
    DetectorOutput,
    MultiScaleFeatures,
    Targets,
    TokenScores,
    TokenSelection,
)
from sparsedet.registry import LOSSES
from sparsedet.structures import cxcywh_to_xyxy


@LOSSES.register()
class DecoderAttentionLoss:
    """Binary cross-entropy of token scores against the tokens the decoder looks at most.

    Sparse DETR, section 3.3. In each image the target is 1 for the tokens with the most (and
    non-zero) cross-attention mass, as many as the first encoder layer keeps (in a compiled model,
    as it may keep at most). The loss is the mean over the unpadded tokens of an image, then over
    images. The released code shifts the map by half a cell, counts padding in the mean and fails
    for keep ratios near 1.

    Args:
        weight: factor in the objective.
    """

    name = "decoder_attention"
    requires = frozenset({"token_mass"})
    teaches = DecoderAttention

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted loss; ``targets`` are not used."""
        assert output.scores is not None and output.token_mass is not None
        return self.of_scores(
            output.scores, output.features, output.selections[0], output.token_mass
        )

    def of_scores(
        self,
        scores: TokenScores,
        features: MultiScaleFeatures,
        selection: TokenSelection,
        token_mass: Float[Tensor, "B N"],
    ) -> Tensor:
        """The unweighted loss, for a detector of another codebase.

        Args:
            scores: the output of the scorer.
            features: the input of the scorer.
            selection: tokens that the first encoder layer keeps.
            token_mass: cross-attention mass of the tokens, see ``attention_mass``, summed over the
                decoder's layers.
        """
        target = most_attended(token_mass, features, selection.max_counts)
        if selection.indices is not None:
            share = (token_mass * selection.mask(target.shape[1])).sum() / token_mass.sum()
            log_scalar("token_mass_on_kept", share)
        loss = F.binary_cross_entropy_with_logits(
            scores.logits.float(), target.float(), reduction="none"
        )
        valid = ~features.padding_mask
        return ((loss * valid).sum(1) / valid.sum(1)).mean()


SizeRanges = Sequence[Sequence[int | float]]
Distance = Literal["sides", "half_size", "center"]
# The distance along one axis, from those to the two sides; the larger of both axes is used.
_ALONG_AXIS: dict[Distance, Callable[[Tensor], Tensor]] = {
    "sides": lambda to_sides: to_sides.amax(-1),
    "half_size": lambda to_sides: to_sides.mean(-1),
    "center": lambda to_sides: 0.5 * (to_sides[..., 0] - to_sides[..., 1]).abs(),
}


@LOSSES.register()
class ForegroundLoss:
    """Focal loss of token scores against the tokens that lie in objects of their level's size.

    Focus-DETR, section 3.2 and equation 1. A token is positive when the center of its cell lies
    inside a box and its distance is in its level's range. The loss is summed over the unpadded
    tokens of an image, divided by the positive ones (at least 1) and averaged over the images.

    The paper and its released code use different distances: equation 1 uses the checkerboard
    distance to the center of the box, the code the largest distance to the four sides. The
    published AP was reached with the code. Inside a box, "center" <= "half_size" <= "sides". The
    ranges of the paper overlap, those of the released code do not. The code also counts padding and
    fails for a batch without objects.

    Args:
        weight: factor in the objective.
        size_ranges: (low, high] in pixels for every level, fine to coarse.
        distance: the distance that must be in the range: "sides" = the largest of the distances to
            the four sides, as in the released code; "center" = the larger of the horizontal and the
            vertical distance to the center of the box, equation 1 as it is printed; "half_size" =
            half of the longer side, the largest "center" in the box.
        alpha: weight of the positive tokens, in [0, 1].
        gamma: exponent of the modulating factor.

    Raises:
        ValueError: for ranges that are not pairs of increasing numbers, or another ``distance``.
    """

    name = "foreground"
    teaches = Foreground

    def __init__(
        self,
        *,
        weight: float,
        size_ranges: SizeRanges = ((-1, 64), (64, 256), (128, 512), (256, 999999)),
        distance: Distance = "sides",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.weight, self.alpha, self.gamma = weight, alpha, gamma
        if not all(isinstance(r, Sequence) and len(r) == 2 and r[0] < r[1] for r in size_ranges):
            raise ValueError(
                "ForegroundLoss.size_ranges must be pairs (low, high) with low < high, got "
                f"{list(size_ranges)}. Set size_ranges of the term in model.criterion."
            )
        if distance not in _ALONG_AXIS:
            raise ValueError(
                f"ForegroundLoss.distance must be one of {list(_ALONG_AXIS)}, got {distance!r}. "
                "Set distance of the term in model.criterion."
            )
        self.size_ranges = tuple((float(low), float(high)) for low, high in size_ranges)
        self.distance: Distance = distance

    def check(self, assembly: Assembly) -> None:
        """Refuse a wrong number of ranges.

        Raises:
            ValueError: if there is not one range per level.
        """
        _check_ranges(self.size_ranges, assembly.num_levels)

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted loss.

        Raises:
            ValueError: if there is not one range per level.
        """
        assert output.scores is not None
        return self.of_scores(output.scores, output.features, targets)

    def of_scores(
        self, scores: TokenScores, features: MultiScaleFeatures, targets: Targets
    ) -> Tensor:
        """The unweighted loss, for a detector of another codebase.

        Args:
            scores: the output of the scorer.
            features: the input of the scorer; ``strides`` and ``image_sizes`` must be right.
            targets: the objects; their labels are not used.

        Raises:
            ValueError: if there is not one range per level.
        """
        foreground = foreground_tokens(features, targets, self.size_ranges, distance=self.distance)
        return _token_focal_loss(scores, features, foreground.float(), self.alpha, self.gamma)


@LOSSES.register()
class SalienceLoss:
    """Focal loss of token scores against targets that decrease from the centers of the boxes.

    Hou et al., "Salience DETR: Enhancing Detection Transformer with Hierarchical Salience Filtering
    Refinement", CVPR 2024, section 3.3: inside a box the target is 1 at the center and decreases
    with the distance, in units of width and height of the box, to about 0.29 at the corners. If
    boxes overlap, the larger target is used. Targets do not depend on the size of the box, and all
    levels have the same targets (the released code of that paper still gives every level a range of
    sizes). It is normalized like ``ForegroundLoss``.

    Args:
        weight: factor in the objective.
        alpha: weight of the target, in [0, 1]; the complement of the target to 1 has weight ``1 -
            alpha``.
        gamma: exponent of the modulating factor.
    """

    name = "salience"
    teaches = Foreground

    def __init__(self, *, weight: float, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted loss."""
        assert output.scores is not None
        return self.of_scores(output.scores, output.features, targets)

    def of_scores(
        self, scores: TokenScores, features: MultiScaleFeatures, targets: Targets
    ) -> Tensor:
        """The unweighted loss, for a detector of another codebase; see ``ForegroundLoss``."""
        salience = token_salience(features, targets)
        return _token_focal_loss(scores, features, salience, self.alpha, self.gamma)


@torch.no_grad()
def foreground_tokens(
    features: MultiScaleFeatures,
    targets: Targets,
    size_ranges: SizeRanges,
    *,
    distance: Distance,
) -> Bool[Tensor, "B N"]:
    """True at the unpadded tokens in a box whose distance is in the range of their level.

    See ``ForegroundLoss``.

    Raises:
        ValueError: if there is not one range per level.
    """
    _check_ranges(size_ranges, len(features.strides))
    sides, levels = _sides(features, targets), []
    for level, (low, high) in enumerate(size_ranges):
        x, y = _distances(features, level, sides)
        x_distance, y_distance = _ALONG_AXIS[distance](x), _ALONG_AXIS[distance](y)
        across = (x > 0).all(-1) & (x_distance <= high)
        down = (y > 0).all(-1) & (y_distance <= high)
        # The larger distance exceeds `low` if one of both does. A matrix product finds the cells
        # with such a box, without an array of cells times boxes.
        rows = torch.cat((down & (y_distance > low), down), dim=-1).float()
        columns = torch.cat((across, across & (x_distance > low)), dim=-1).float()
        levels.append((rows @ columns.transpose(1, 2) > 0).flatten(1))
    return features.of_cells(torch.cat(levels, dim=1)) & ~features.padding_mask


def _check_ranges(size_ranges: SizeRanges, num_levels: int) -> None:
    if len(size_ranges) != num_levels:
        raise ValueError(
            f"ForegroundLoss.size_ranges must have one range for each of the {num_levels} levels, "
            f"got {len(size_ranges)}: {list(size_ranges)}. Set size_ranges of the term in "
            "model.criterion."
        )


@torch.no_grad()
def token_salience(features: MultiScaleFeatures, targets: Targets) -> Float[Tensor, "B N"]:
    """Targets in [0, 1] of the tokens, 0 at padding, see ``SalienceLoss``."""
    images = []
    for sides, count in zip(_sides(features, targets), targets.counts, strict=True):
        per_level = []
        for level in range(len(features.strides)):
            x, y = _distances(features, level, sides[:count])
            across, down = (0.5 * (d[..., 0] - d[..., 1]) / d.sum(-1) for d in (x, y))
            near = 1 - torch.hypot(down[:, None], across[None])
            near = near.where((y > 0).all(-1)[:, None] & (x > 0).all(-1), 0.0)
            nothing = near.new_zeros(*near.shape[:2], 1)  # for images without objects
            per_level.append(torch.cat((near, nothing), dim=-1).amax(-1).flatten())
        images.append(torch.cat(per_level))
    return features.of_cells(torch.stack(images)).masked_fill(features.padding_mask, 0.0)


def _sides(features: MultiScaleFeatures, targets: Targets) -> Float[Tensor, "B n 4"]:
    """Boxes of all images as corners in pixels; fillers have size 0 at (0, 0)."""
    boxes = pad_sequence(list(targets.boxes), batch_first=True).float()
    sizes = torch.tensor([(w, h, w, h) for h, w in features.image_sizes], dtype=torch.float32)
    return cxcywh_to_xyxy(boxes) * sizes[:, None].to(boxes.device, non_blocking=True)


def _distances(
    features: MultiScaleFeatures, level: int, sides: Float[Tensor, "*B n 4"]
) -> tuple[Float[Tensor, "*B W n 2"], Float[Tensor, "*B H n 2"]]:
    """Pixels from the cells' columns to the left and right sides, from rows to top and bottom.

    Positive towards the inside of the box.
    """
    (rows, columns), stride = features.spatial_shapes[level], features.strides[level]
    distances = []
    for count, axis in ((columns, 0), (rows, 1)):
        place = ((torch.arange(count, device=sides.device) + 0.5) * stride)[:, None]
        low, high = (sides[..., None, :, side] for side in (axis, axis + 2))
        distances.append(torch.stack((place - low, high - place), dim=-1))
    return distances[0], distances[1]


def _token_focal_loss(
    scores: TokenScores,
    features: MultiScaleFeatures,
    target: Float[Tensor, "B N"],
    alpha: float,
    gamma: float,
) -> Tensor:
    """Focal loss for targets in [0, 1]: sum over the tokens of an image / its positive tokens."""
    logits = scores.logits.float()
    probability = logits.sigmoid()
    factor = (
        alpha * target * (1 - probability) ** gamma
        + (1 - alpha) * (1 - target) * probability**gamma
    )
    loss = factor * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss.masked_fill(features.padding_mask, 0.0)
    return (loss.sum(1) / (target > 0).sum(1).clamp(min=1)).mean()


@torch.no_grad()
def most_attended(
    token_mass: Float[Tensor, "B N"], features: MultiScaleFeatures, counts: tuple[int, ...]
) -> Bool[Tensor, "B N"]:
    """True at the ``counts[i]`` unpadded tokens of image i with the most mass above zero."""
    mass = token_mass.masked_fill(features.padding_mask, 0.0)
    order = mass.topk(max(counts), dim=1)
    limits = torch.tensor(counts).to(mass.device, non_blocking=True)
    best = (torch.arange(max(counts), device=mass.device) < limits[:, None]) & (order.values > 0)
    return torch.zeros_like(mass, dtype=torch.bool).scatter(1, order.indices, best)
