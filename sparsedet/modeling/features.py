"""Feature maps of a padded batch as one row of tokens: all level arithmetic lives here.

Axes as in ``sparsedet.modeling.stages``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from sparsedet.layers.arguments import SpatialShapes, on_host
from sparsedet.layers.constants import constants
from sparsedet.modeling.tokens import PooledTokens, TokenSelection, marked_tokens

Size = tuple[int, int]


@dataclass(frozen=True)
class Presence:
    """Which cells of a level are there, where a backbone saw parts of a picture alone.

    Attributes:
        mask: True = there; what it says of padding does not count.
        counts: the most cells that each image has, host integers, padding not counted.
        exact: whether every image has that many.
    """

    mask: Bool[Tensor, "B H W"]
    counts: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class MultiScaleFeatures:
    """Feature maps of a padded batch, flattened to tokens.

    A fine level may be there in parts, see ``Presence``: its other cells are absent. They are
    treated as padding is. What they hold has no influence on anything, they are neither selected
    nor proposed, and read as zero, as a place outside of the map does. One mask tells of both; the
    sizes tell them apart, since an absent cell lies inside of its image.

    Attributes:
        tokens: the features.
        pos: position plus level embedding of every token.
        padding_mask: True = no token here: padding, or an absent cell.
        valid_ratios: valid share (w, h) of each level's map.
        reference_points: centers (x, y) of the cells, in [0, 1] of the valid part of their own
            level.
        map_sizes: ``spatial_shapes`` on the device.
        valid_sizes: ``level_sizes`` on the device.
        spatial_shapes: (H, W) of each level's padded map, fine to coarse.
        strides: pixels per cell of each level.
        image_sizes: (h, w) of each unpadded image in pixels.
        level_sizes: valid (rows, columns) per image and level, the size the map would have for that
            image alone.
        level_counts: tokens of each image and level; the most there can be, unless ``exact``.
        present: the tokens that are there, in the order of the map; None = all but padding.
        pooled: set by an encoder that pools the tokens which it does not keep.
    """

    tokens: Float[Tensor, "B N C"]
    pos: Float[Tensor, "B N C"]
    padding_mask: Bool[Tensor, "B N"]
    valid_ratios: Float[Tensor, "B L 2"]
    reference_points: Float[Tensor, "B N 2"]
    map_sizes: Float[Tensor, "L 2"]
    valid_sizes: Float[Tensor, "B L 2"]
    spatial_shapes: tuple[Size, ...]
    strides: tuple[int, ...]
    image_sizes: tuple[Size, ...]
    level_sizes: tuple[tuple[Size, ...], ...]
    level_counts: tuple[tuple[int, ...], ...]
    present: TokenSelection | None = None
    pooled: PooledTokens | None = None

    @classmethod
    def from_tokens(
        cls,
        tokens: Float[Tensor, "B N C"],
        pos: Float[Tensor, "B N C"],
        spatial_shapes: SpatialShapes,
        padding_mask: Shaped[Tensor, "B N"] | None = None,
        *,
        strides: Sequence[int] | None = None,
        image_sizes: SpatialShapes | None = None,
    ) -> MultiScaleFeatures:
        """Features of tokens that are flattened already, as the encoders of other codebases get.

        What the host knows of the padding is read from the mask, with one wait for the device. Two
        ways avoid it: no mask where nothing is padded, and ``image_sizes`` in place of a mask.

        Args:
            tokens: the features, levels one after the other, fine to coarse, rows first.
            pos: position plus level embedding of every token, as other encoders get it, too.
            spatial_shapes: (H, W) of each level's padded map: pairs of ints, or an integer tensor
                or array ``[L 2]`` (a tensor on an accelerator waits for the device once more).
            padding_mask: True or 1 = padding; bool or uint8. The images are at the top left. The
                attention masks of the transformers package are the reverse: pass ``~mask.bool()``.
            strides: pixels per cell of each level; None = 8, 16, 32, ... They count where boxes
                meet tokens in pixels, as in ``ForegroundLoss``.
            image_sizes: (h, w) of each unpadded image in pixels. None = as many pixels as the valid
                cells of the finest level cover, up to one cell more than there are. Without a mask,
                the rows and columns that an image has on a map are ``level_size`` of its size.

        Returns:
            The features. Their ``level_sizes`` and ``valid_ratios`` are those of the mask.

        Raises:
            ValueError: the arguments do not go together; the message says what to change.
        """
        shapes = _checked_shapes(spatial_shapes, tokens, pos)
        steps = [8 * 2**level for level in range(len(shapes))] if strides is None else strides
        if len(steps) != len(shapes):
            raise _error("strides", f"one number for each of {len(shapes)} levels", f"{steps}")
        images = None if image_sizes is None else _pairs(image_sizes)
        sizes = _sizes_of_levels(len(tokens), shapes, steps, images)
        if padding_mask is not None:
            found = _sizes_in_mask(padding_mask, shapes, tokens)
            if images is not None:
                # masks that take the nearest pixel round otherwise
                _require_fit(sizes, found, steps, lambda own, there: abs(own - there) <= 1)
            sizes = found
        elif images is not None:
            _require_fit(sizes, [shapes] * len(tokens), steps, lambda own, there: own <= there)
        if images is None:
            images = tuple((h * steps[0], w * steps[0]) for (h, w), *_ in sizes)
        return _assemble(tokens, lambda *_: pos, shapes, sizes, steps, images)

    @property
    def num_tokens(self) -> int:
        """Tokens of the padded map over all levels."""
        return sum(h * w for h, w in self.spatial_shapes)

    @property
    def num_valid(self) -> tuple[int, ...]:
        """Tokens of each image, neither padding nor absent; at most so many, unless ``exact``."""
        return tuple(map(sum, self.level_counts))

    @property
    def exact(self) -> bool:
        """Whether the host knows how many tokens each image has."""
        return self.present is None or self.present.exact

    @property
    def least_side(self) -> int:
        """Pixels of the smallest box that holds the center of a cell wherever it lies."""
        return self.strides[0] + 1

    @property
    def padding_if_any(self) -> Bool[Tensor, "B N"] | None:
        """``padding_mask``, or None where the host knows that every cell holds a token."""
        return self.padding_mask if self.present is not None or self._padded else None

    @property
    def _padded(self) -> bool:
        return _are_padded(self.level_sizes, self.spatial_shapes)

    @property
    def present_rows(self) -> Int[Tensor, " R"] | None:
        """Places of the tokens that are there among those of all images; None = everywhere.

        Where an image has fewer than its companions, or than there can be, absent ones follow.
        """
        return None if self.present is None else self.present.rows(self.num_tokens)

    @property
    def all_tokens(self) -> TokenSelection:
        """The selection of every token that is there."""
        return TokenSelection(self.num_valid) if self.present is None else self.present

    def with_tokens(self, tokens: Float[Tensor, "B N C"]) -> MultiScaleFeatures:
        """The same geometry with other features."""
        return replace(self, tokens=tokens)

    def readable(
        self,
    ) -> tuple[Float[Tensor, "B S C"], Float[Tensor, "B S C"], Bool[Tensor, "B S"] | None]:
        """What attention over the whole map reads, its positions, and where there is something.

        These are all tokens that are there; if some are ``pooled``, the kept ones and these.
        The last is None where all of them are to be read.
        """
        padding, pooled = self.padding_if_any, self.pooled
        valid = None if padding is None else ~padding
        if pooled is None:
            return self.tokens, self.pos, valid
        tokens, pos = (pooled.kept.gather(x) for x in (self.tokens, self.pos))
        valid = valid if pooled.kept.indices is None else pooled.kept.valid
        seen = pooled.seen(valid, tokens.shape[1])
        return torch.cat((tokens, pooled.tokens), 1), torch.cat((pos, pooled.pos), 1), seen

    def level(self, index: int) -> MultiScaleFeatures:
        """One level as features of their own."""
        parts = (self.tokens, self.pos, self.padding_mask, self.reference_points)
        tokens, pos, padding, points = (self.split_levels(x)[index] for x in parts)
        counts = tuple((own[index],) for own in self.level_counts)
        present = self.present
        if present is not None:
            present = marked_tokens(~padding, tuple(map(sum, counts)), exact=self.exact)
        return MultiScaleFeatures(
            tokens=tokens,
            pos=pos,
            padding_mask=padding,
            valid_ratios=self.valid_ratios[:, index, None],
            reference_points=points,
            map_sizes=self.map_sizes[index, None],
            valid_sizes=self.valid_sizes[:, index, None],
            spatial_shapes=(self.spatial_shapes[index],),
            strides=(self.strides[index],),
            image_sizes=self.image_sizes,
            level_sizes=tuple((sizes[index],) for sizes in self.level_sizes),
            level_counts=counts,
            present=present,
        )

    def whole_levels(self, levels: Collection[int]) -> TokenSelection:
        """All tokens of some levels that are there, in the order of the map."""
        if len(levels) == len(self.spatial_shapes):
            return self.all_tokens
        counts = tuple(sum(own[level] for level in levels) for own in self.level_counts)
        masks = [
            ~padding if level in levels else torch.zeros_like(padding)
            for level, padding in enumerate(self.split_levels(self.padding_mask))
        ]
        return marked_tokens(torch.cat(masks, dim=1), counts, exact=self.exact)

    def split_levels(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split ``x[B N ...]`` into one ``[B H*W ...]`` per level."""
        return x.split([h * w for h, w in self.spatial_shapes], dim=1)

    def fold(self, x: Float[Tensor, "B N"], levels: int) -> Float[Tensor, "B _"]:
        """What the tokens of the other levels have, in the first of which falls what finer ones do.

        Args:
            x: of every token, 0 where there is none.
            levels: finest levels, whose numbers are added to those of the cell that they lie in.
        """
        maps = [
            own.unflatten(1, shape)
            for own, shape in zip(self.split_levels(x), self.spatial_shapes, strict=True)
        ]
        whole, (rows, columns) = maps[levels], self.spatial_shapes[levels]
        for own, stride in zip(maps[:levels], self.strides, strict=False):
            side = self.strides[levels] // stride
            right, below = columns * side - own.shape[2], rows * side - own.shape[1]
            cells = F.pad(own, (0, right, 0, below)).unflatten(2, (columns, side))
            whole = whole + cells.unflatten(1, (rows, side)).sum((2, 4))
        return torch.cat([each.flatten(1) for each in (whole, *maps[levels + 1 :])], dim=1)

    def to_levels(self, reference: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q L D"]:
        """Points or boxes of the image as points or boxes of every level's padded map."""
        if not self._padded:
            return reference[:, :, None].expand(-1, -1, len(self.spatial_shapes), -1)
        ratios = self.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
        return reference[:, :, None] * ratios[:, None]

    def proposals(self) -> tuple[Float[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
        """One box per token for two-stage detection (Deformable DETR, appendix A.4).

        The box is centered on the cell, its sides are ``0.05 * 2**level`` of the image, at most
        0.8, which is that of a fifth level.

        Returns:
            The boxes in logit space, clamped to [0.01, 0.99] (always finite), and which tokens are
            there and have a box wholly inside of these bounds.
        """
        centers = self.reference_points
        sides = torch.cat(
            [
                centers.new_full((h * w,), min(0.05 * 2.0**level, 0.8))
                for level, (h, w) in enumerate(self.spatial_shapes)
            ]
        )
        boxes = torch.cat((centers, sides[None, :, None].expand(centers.shape)), dim=-1)
        valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~self.padding_mask
        return torch.logit(boxes.clamp(0.01, 0.99)), valid


def level_size(image_size: Size, stride: int) -> Size:
    """Rows and columns that an image of ``image_size`` (h, w) has on a map of this stride."""
    return -(-image_size[0] // stride), -(-image_size[1] // stride)


def flatten_maps(
    maps: Sequence[Float[Tensor, "B C _ _"]],
    embed: Callable[[Tensor, Sequence[Size]], Float[Tensor, "B N C"]],
    *,
    strides: Sequence[int],
    image_sizes: Sequence[Size],
    presence: Sequence[Presence | None] = (),
) -> MultiScaleFeatures:
    """Join feature maps into ``MultiScaleFeatures``.

    Args:
        maps: one map per level, fine to coarse.
        embed: makes the position (plus level) embedding of every token, given ``valid_sizes`` and
            ``spatial_shapes``.
        strides: pixels per cell of each level.
        image_sizes: (h, w) of each unpadded image.
        presence: which cells of the first levels are there; None = all, as on levels after these.
    """
    shapes = tuple((int(m.shape[-2]), int(m.shape[-1])) for m in maps)
    images = tuple((int(h), int(w)) for h, w in image_sizes)
    sizes = _sizes_of_levels(len(images), shapes, strides, images)
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
    features = _assemble(tokens, embed, shapes, sizes, strides, images)
    return _in_parts(features, presence) if any(presence) else features


def _in_parts(
    features: MultiScaleFeatures, presence: Sequence[Presence | None]
) -> MultiScaleFeatures:
    """The same features, of which some cells are absent."""
    there = [~padding for padding in features.split_levels(features.padding_mask)]
    counts = [list(each) for each in features.level_counts]
    for level, own in enumerate(presence):
        if own is not None:
            there[level] = there[level] & own.mask.flatten(1)
            for image, count in zip(counts, own.counts, strict=True):
                image[level] = count
    exact = all(own is None or own.exact for own in presence)
    mask, level_counts = torch.cat(there, dim=1), tuple(map(tuple, counts))
    present = marked_tokens(mask, tuple(map(sum, level_counts)), exact=exact)
    return replace(features, padding_mask=~mask, level_counts=level_counts, present=present)


def _assemble(
    tokens: Float[Tensor, "B N C"],
    embed: Callable[[Tensor, Sequence[Size]], Float[Tensor, "B N C"]],
    shapes: tuple[Size, ...],
    sizes: tuple[tuple[Size, ...], ...],
    strides: Sequence[int],
    image_sizes: tuple[Size, ...],
) -> MultiScaleFeatures:
    """Tokens with all that follows from the sizes of their maps."""
    device = tokens.device
    map_sizes = _on_device((shapes,), device)
    padded = _are_padded(sizes, shapes)
    valid_sizes = _on_device(sizes, device) if padded else map_sizes.expand(len(sizes), -1, -1)
    places = torch.arange(max(length for shape in shapes for length in shape), device=device)
    return MultiScaleFeatures(
        tokens=tokens,
        pos=embed(valid_sizes, shapes).to(tokens.dtype),
        padding_mask=(
            _of_cells(places >= valid_sizes[..., None], shapes).any(-1)
            if padded
            else torch.zeros(tokens.shape[:2], dtype=torch.bool, device=device)
        ),
        valid_ratios=(valid_sizes / map_sizes).flip(-1),
        reference_points=_of_cells((places + 0.5) / valid_sizes[..., None], shapes),
        map_sizes=map_sizes[0],
        valid_sizes=valid_sizes,
        spatial_shapes=shapes,
        strides=tuple(strides),
        image_sizes=image_sizes,
        level_sizes=sizes,
        level_counts=tuple(tuple(h * w for h, w in each) for each in sizes),
    )


def _sizes_of_levels(
    batch: int, shapes: tuple[Size, ...], strides: Sequence[int], images: Sequence[Size] | None
) -> tuple[tuple[Size, ...], ...]:
    """Valid rows and columns of each image and level, the whole maps where no size is known."""
    if images is None:
        return (shapes,) * batch
    return tuple(tuple(level_size(size, stride) for stride in strides) for size in images)


def _are_padded(sizes: Sequence[tuple[Size, ...]], shapes: tuple[Size, ...]) -> bool:
    return any(each != shapes for each in sizes)


def _on_device(sizes: Sequence[tuple[Size, ...]], device: torch.device) -> Float[Tensor, "B L 2"]:
    """Sizes of every image and level; filled once where the images are alike."""
    kinds = sizes[:1] if all(each == sizes[0] for each in sizes) else sizes
    numbers = constants([n for image in kinds for size in image for n in size], device)
    return numbers.view(len(kinds), -1, 2).expand(len(sizes), -1, -1)


def _of_cells(axes: Shaped[Tensor, "B L 2 _"], shapes: Sequence[Size]) -> Shaped[Tensor, "B N 2"]:
    """What the rows and columns of every level say, as pairs (column's, row's) of the cells."""
    per_level = []
    for level, (h, w) in enumerate(shapes):
        y = axes[:, level, 0, :h, None].expand(-1, -1, w)
        x = axes[:, level, 1, None, :w].expand(-1, h, -1)
        per_level.append(torch.stack((x, y), dim=-1).flatten(1, 2))
    return torch.cat(per_level, dim=1)


# --- tokens from elsewhere


def _pairs(sizes: SpatialShapes) -> tuple[Size, ...]:
    return tuple((int(h), int(w)) for h, w in on_host(sizes))


def _checked_shapes(spatial_shapes: SpatialShapes, tokens: Tensor, pos: Tensor) -> tuple[Size, ...]:
    for name, given in (("tokens", tokens), ("pos", pos)):
        if not isinstance(given, Tensor):
            raise _error(name, "a tensor", type(given).__name__)
    try:
        shapes = _pairs(spatial_shapes)
    except (TypeError, ValueError) as error:
        form = "(height, width) of each level, a list, a tuple or a tensor"
        raise _error("spatial_shapes", form, str(spatial_shapes)) from error
    total = sum(h * w for h, w in shapes)
    if tokens.ndim != 3 or tokens.shape[1] != total:
        raise _error(
            "tokens",
            f"of shape (B, {total}, C) for maps of {list(shapes)}",
            f"{tuple(tokens.shape)}. Pass tokens.transpose(0, 1) where the batch is second",
        )
    if pos.shape != tokens.shape:
        raise _error(
            "pos",
            f"of shape {tuple(tokens.shape)} as tokens",
            f"{tuple(pos.shape)}. Expand it over the batch, the level embedding added",
        )
    return shapes


def _sizes_in_mask(
    padding_mask: Tensor, shapes: tuple[Size, ...], tokens: Tensor
) -> tuple[tuple[Size, ...], ...]:
    """Valid rows and columns of each image and level, by one copy to the host."""
    kinds = (torch.bool, torch.uint8)
    if not isinstance(padding_mask, Tensor):
        raise _error("padding_mask", "a tensor", f"{type(padding_mask).__name__}. True is padding")
    if padding_mask.dtype not in kinds or padding_mask.shape != tokens.shape[:2]:
        raise _error(
            "padding_mask",
            f"bool or uint8 of shape {tuple(tokens.shape[:2])}",
            f"{padding_mask.dtype} {tuple(padding_mask.shape)}. True is padding",
        )
    facts = []
    for level, (h, w) in zip(
        padding_mask.bool().split([h * w for h, w in shapes], dim=1), shapes, strict=True
    ):
        shown = ~level.unflatten(1, (h, w))
        rows, columns = shown[:, :, 0].sum(1), shown[:, 0].sum(1)
        down = torch.arange(h, device=shown.device) < rows[:, None]
        across = torch.arange(w, device=shown.device) < columns[:, None]
        fits = ((down[:, :, None] & across[:, None]) == shown).flatten(1).all(1) & (rows > 0)
        facts.append(torch.stack((rows, columns, fits.long()), dim=-1))
    found = torch.stack(facts, dim=1).tolist()
    for image, levels in enumerate(found):
        for level, (_, _, fits) in enumerate(levels):
            if not fits:
                raise _error(
                    "padding_mask",
                    "False on a rectangle at the top left of every level and True elsewhere",
                    f"another form for image {image} on level {level}. Pass ~mask where True means "
                    "that a token is valid",
                )
    return tuple(tuple((rows, columns) for rows, columns, _ in levels) for levels in found)


def _require_fit(
    sizes: Sequence[Sequence[Size]],
    found: Sequence[Sequence[Size]],
    strides: Sequence[int],
    fits: Callable[[int, int], bool],
) -> None:
    """Refuse sizes of images, or strides, that do not fit the maps.

    Args:
        sizes: what the sizes of the images say for each image and level.
        found: what the maps hold.
        strides: with which ``sizes`` were made.
        fits: whether a length of the first goes with one of the second.
    """
    lengths = [
        [length for image in each for size in image for length in size] for each in (sizes, found)
    ]
    if len(sizes) != len(found) or not all(map(fits, *lengths)):
        raise _error(
            "image_sizes",
            f"(h, w) of {len(found)} images that have maps of {[list(each) for each in found]}",
            f"sizes with maps of {[list(each) for each in sizes]} by strides {list(strides)}. Set "
            "strides to the pixels per cell of every level",
        )


def _error(argument: str, expected: str, got: str) -> ValueError:
    return ValueError(f"MultiScaleFeatures.from_tokens: {argument} must be {expected}, got {got}.")
