"""Denoising: decoder queries that start from noised objects and are matched by construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.positional import inverse_sigmoid
from sparsedet.modeling.heads import require_classes
from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.stages import (
    DenoisingOutput,
    Matching,
    NoisedTargets,
    Prediction,
    Queries,
    Targets,
)
from sparsedet.registry import DENOISINGS
from sparsedet.structures import cxcywh_to_xyxy, xyxy_to_cxcywh


class _NoisedQueries(nn.Module):
    """Base of both kinds of denoising: labels become queries, groups are masked from each other."""

    supervise_unused = True

    def __init__(
        self, num_classes: int, num_labels: int, label_dim: int, *, eps: float, mask_unused: bool
    ) -> None:
        super().__init__()
        self.num_classes, self.num_labels = num_classes, num_labels
        self.eps, self.mask_unused = eps, mask_unused
        self.label_embedding = nn.Embedding(num_labels, label_dim)

    def _check_noise(self, label_noise: float, box_noise: float) -> None:
        name = type(self).__name__
        if not 0 <= label_noise <= 1:
            raise ValueError(
                f"{name}.label_noise must be a probability in [0, 1], got {label_noise}. "
                "Set model.denoising.label_noise."
            )
        if not box_noise >= 0:  # NaN too
            raise ValueError(
                f"{name}.box_noise must not be negative, got {box_noise}. "
                "Set model.denoising.box_noise."
            )

    def check(self, assembly: Assembly) -> None:
        """Refuse queries that denoising does not work with, and another number of classes.

        Raises:
            ValueError: the message says what to change.
        """
        queries, name = assembly.query_initializer, type(self).__name__
        if queries.provides_pos or queries.reference_dim != 4:
            raise ValueError(
                f"TokenSparseDetector.denoising must be None for {type(queries).__name__}, whose "
                f"queries have positions or start from points, got {name}. "
                "Set model.denoising=null or model.query_initializer._target_=MixedQueries."
            )
        if self.num_classes != assembly.num_classes:
            raise ValueError(
                f"{name}.num_classes must be {assembly.num_classes} as in the detector, got "
                f"{self.num_classes}. Set model.denoising.num_classes to '${{..num_classes}}'."
            )

    def _content(self, labels: Int[Tensor, "B D"]) -> Float[Tensor, "B D C"]:
        return self.label_embedding(labels)

    def prepend(self, queries: Queries, noised: NoisedTargets) -> Queries:
        """Put the noised objects before the matching queries.

        Matching queries do not attend to them, and groups do not attend to each other (DN-DETR,
        section 4.3); all denoising queries attend to the matching queries.
        """
        total = noised.labels.shape[1]
        used = noised.valid[..., None]
        content = self._content(noised.labels) * used
        boxes = torch.where(used, noised.boxes, 0.5)
        reference = inverse_sigmoid(boxes.float(), self.eps).sigmoid()
        joined = torch.cat((content.to(queries.content.dtype), queries.content), dim=1)
        return replace(
            queries,
            content=joined,
            reference=torch.cat((reference.to(queries.reference.dtype), queries.reference), dim=1),
            valid=self._valid(queries, noised),
            attn_mask=group_mask(total, noised.num_groups, joined.shape[1], joined.device),
            num_denoising=total,
        )

    def _valid(self, queries: Queries, noised: NoisedTargets) -> Bool[Tensor, "B Q"] | None:
        if not self.mask_unused and queries.valid is None:
            return None
        noised_valid = noised.valid if self.mask_unused else torch.ones_like(noised.valid)
        if queries.valid is not None:
            matching_valid = queries.valid
        else:
            matching_valid = noised.valid.new_ones(queries.content.shape[:2])
        return torch.cat((noised_valid, matching_valid), dim=1)

    def split(
        self, predictions: Sequence[Prediction], noised: NoisedTargets, targets: Targets
    ) -> tuple[tuple[Prediction, ...], DenoisingOutput]:
        """Predictions of the matching queries, and of the noised objects with their matching."""
        total = noised.labels.shape[1]
        matching = tuple(_rows(prediction, slice(total, None)) for prediction in predictions)
        denoised = tuple(_rows(prediction, slice(0, total)) for prediction in predictions)
        if not self.supervise_unused:
            denoised = tuple(replace(prediction, valid=noised.valid) for prediction in denoised)
        found = match_slots(targets, total // noised.num_groups, noised.num_groups)
        return matching, DenoisingOutput(denoised, found, noised.num_groups)


def _rows(prediction: Prediction, rows: slice) -> Prediction:
    return replace(
        prediction,
        logits=prediction.logits[:, rows],
        boxes=prediction.boxes[:, rows],
        valid=None if prediction.valid is None else prediction.valid[:, rows],
    )


def group_mask(
    num_denoising: int, num_groups: int, num_queries: int, device: torch.device
) -> Bool[Tensor, "Q Q"]:
    """True where a query (row) must not attend to another (column).

    Args:
        num_denoising: queries of noised objects; they come first.
        num_groups: groups of the same size.
        num_queries: all queries.
        device: device of the mask.
    """
    index = torch.arange(num_queries, device=device)
    size = num_denoising // num_groups
    group = torch.where(index < num_denoising, index // size, -1)
    return (group >= 0) & (group != group[:, None])


def match_slots(targets: Targets, slots: int, num_groups: int) -> Matching:
    """Match slot j of every group of ``slots`` to object j of its image."""
    pairs, start = [], 0
    for index, count in enumerate(targets.counts):
        own = torch.arange(count)
        query = (torch.arange(num_groups)[:, None] * slots + own).flatten()
        target = own.repeat(num_groups)
        image = torch.full_like(query, index)
        pairs.append(torch.stack((image, query, target, start + target)))
        start += count
    boxes, labels = torch.cat(targets.boxes), torch.cat(targets.labels)
    # Built on the host and copied at once, without synchronizing with the device.
    image, query, target, place = torch.cat(pairs, dim=1).to(boxes.device, non_blocking=True)
    return Matching(image, query, target, boxes[place], labels[place])


def _pad(
    targets: Targets,
) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n 4"], Bool[Tensor, "B n"]]:
    """Labels, boxes and used slots; as many slots as the largest number of objects, at least 1."""
    counts = torch.tensor(targets.counts)
    slots = max(1, *targets.counts)
    labels, boxes = (
        pad_sequence(list(x), batch_first=True, padding_value=filler)
        for x, filler in ((targets.labels, 0), (targets.boxes, 0.5))
    )
    if boxes.shape[1] < slots:  # no object at all
        labels = labels.new_zeros(len(counts), slots)
        boxes = boxes.new_full((len(counts), slots, 4), 0.5)
    used = torch.arange(slots) < counts[:, None]
    return labels, boxes, used.to(labels.device, non_blocking=True)


@DENOISINGS.register()
class Denoising(_NoisedQueries):
    """Groups of noised copies of all objects (DN-DETR, section 4).

    Centers move by up to ``box_noise`` times half the size, sizes change by up to ``box_noise``
    times themselves, and all numbers are clamped to [0, 1]. The last channel is an indicator
    (section 4.3): 1 for denoising queries, 0 for those of ``AnchorQueries``. One additional label
    means "unknown" and may be drawn as noise.

    Args:
        embed_dim: channels.
        num_classes: classes.
        num_groups: copies of every object.
        label_noise: probability that a label is replaced by a random one.
        box_noise: see above.
        eps: clamp of the inverse sigmoid. Weights trained with detrex need 1e-3.
        mask_unused: unused slots, of images with fewer objects than others of the batch, are masked
            in attention and not supervised. In the released code, their group attends to them.
        supervise_unused: if unused slots are not masked, train them to predict "no object", as in
            detrex's code. DN-DETR's released code leaves them out of the losses.

    Raises:
        ValueError: for numbers outside of their ranges.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        *,
        num_groups: int = 5,
        label_noise: float = 0.2,
        box_noise: float = 0.4,
        eps: float = 1e-5,
        mask_unused: bool = True,
        supervise_unused: bool = True,
    ) -> None:
        require_classes(num_classes, "Denoising")
        super().__init__(
            num_classes, num_classes + 1, embed_dim - 1, eps=eps, mask_unused=mask_unused
        )
        require_positive(num_groups, "Denoising.num_groups", key="model.denoising.num_groups")
        self._check_noise(label_noise, box_noise)
        self.embed_dim, self.num_groups = embed_dim, num_groups
        self.supervise_unused = supervise_unused
        self.label_noise, self.box_noise = label_noise, box_noise

    def _content(self, labels: Int[Tensor, "B D"]) -> Float[Tensor, "B D C"]:
        return nn.functional.pad(self.label_embedding(labels), (0, 1), value=1.0)

    def sample(self, targets: Targets) -> NoisedTargets:
        """Draw noise for ``num_groups`` copies of the objects."""
        labels, boxes, used = (
            x.repeat(1, self.num_groups, *[1] * (x.ndim - 2)) for x in _pad(targets)
        )
        replaced = torch.rand(labels.shape, device=labels.device) < self.label_noise
        drawn = torch.randint_like(labels, self.num_labels)
        extent = torch.cat((boxes[..., 2:] / 2, boxes[..., 2:]), dim=-1)
        boxes = boxes + (2 * torch.rand_like(boxes) - 1) * extent * self.box_noise
        return NoisedTargets(
            torch.where(replaced, drawn, labels), boxes.clamp(0, 1), used, self.num_groups
        )


@DENOISINGS.register()
class ContrastiveDenoising(_NoisedQueries):
    """Groups of slightly noised objects and of strongly noised ones to reject (DINO, section 3.3).

    A group holds one positive slot for every object, then one negative. Each corner coordinate
    moves by r times half the size, times ``box_noise``: r is drawn from (0, 1) for positives, from
    (1, 2) for negatives, in a random direction. Corners are clamped to the image.

    Args:
        embed_dim: channels.
        num_classes: classes.
        num_queries: approximate number of positive slots. There are ``num_queries // n`` groups, at
            least 1, if n is the largest number of objects of an image.
        label_noise: probability that a label is replaced by a random one (half of the ratio in the
            paper).
        box_noise: see above.
        eps: clamp of the inverse sigmoid. Weights trained with detrex need 1e-3.
        mask_unused: unused slots, of images with fewer objects than others of the batch, are masked
            in attention and not supervised. In the released code they are attended to and
            supervised.

    Raises:
        ValueError: for numbers outside of their ranges.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        *,
        num_queries: int = 100,
        label_noise: float = 0.25,
        box_noise: float = 1.0,
        eps: float = 1e-5,
        mask_unused: bool = True,
    ) -> None:
        require_classes(num_classes, "ContrastiveDenoising")
        super().__init__(num_classes, num_classes, embed_dim, eps=eps, mask_unused=mask_unused)
        name = "ContrastiveDenoising.num_queries"
        require_positive(num_queries, name, key="model.denoising.num_queries")
        self._check_noise(label_noise, box_noise)
        self.embed_dim, self.num_queries = embed_dim, num_queries
        self.label_noise, self.box_noise = label_noise, box_noise

    def sample(self, targets: Targets) -> NoisedTargets:
        """Draw noise for all groups, see ``num_queries``."""
        labels, boxes, used = _pad(targets)
        num_groups = max(self.num_queries // labels.shape[1], 1)
        copies = 2 * num_groups
        labels, used = labels.repeat(1, copies), used.repeat(1, copies)
        replaced = torch.rand(labels.shape, device=labels.device) < self.label_noise
        labels = torch.where(replaced, torch.randint_like(labels, self.num_labels), labels)
        noised = self._move_corners(boxes[:, None].expand(-1, copies, -1, -1))
        return NoisedTargets(labels, noised.flatten(1, 2), used, num_groups)

    def _move_corners(self, boxes: Float[Tensor, "B G n 4"]) -> Float[Tensor, "B G n 4"]:
        """Groups with an even index are positive, others negative."""
        negative = torch.arange(boxes.shape[1], device=boxes.device)[:, None, None] % 2
        sign = 2.0 * torch.randint_like(boxes, 2) - 1
        distance = sign * (torch.rand_like(boxes) + negative) * self.box_noise
        half = boxes[..., 2:].repeat(1, 1, 1, 2) / 2
        corners = cxcywh_to_xyxy(boxes) + distance * half
        return xyxy_to_cxcywh(corners.clamp(0, 1))
