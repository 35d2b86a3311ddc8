"""Feature maps of a padded batch as one sequence of tokens, and all arithmetic on levels.

Axes as in ``sparsedet.modeling.stages``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from sparsedet.layers.arguments import SpatialShapes
from sparsedet.layers.constants import constants
from sparsedet.layers.placing import in_places
from sparsedet.modeling.given_tokens import (
    checked_shapes,
    given_error,
    pairs,
    require_fit,
    sizes_in_mask,
)
from sparsedet.modeling.tokens import (
    PooledTokens,
    Size,
    TokenSelection,
    gather_rows,
    marked_tokens,
)

Embed = Callable[[Tensor, Sequence[Size], "Sequence[Tensor | None]"], Float[Tensor, "B N C"]]


@dataclass(frozen=True)
class PartialMap:
    """A level that has only some cells, because the backbone saw only parts of the pictures.

    Attributes:
        tokens: the features of these cells; the same number for every image.
        cells: their indices in the padded map, row by row.
        there: False = filler, whose ``tokens`` and ``cells`` are ignored; other cells are distinct.
        shape: (H, W) of the padded map.
        counts: upper bound of the cells of each image, as Python integers, without padding.
        exact: whether every image has exactly that many.
    """

    tokens: Float[Tensor, "B n C"]
    cells: Int[Tensor, "B n"]
    there: Bool[Tensor, "B n"]
    shape: Size
    counts: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class MultiScaleFeatures:
    """Feature maps of a padded batch, flattened to tokens.

    A fine level may be partial, see ``PartialMap``: some of its cells are absent. Absent cells have
    no tokens, so nothing is computed or stored for them, and sampling them gives zero, as outside
    the map. ``N`` is then the number of tokens, which is smaller than the number of cells.
    ``to_cells`` converts token values to maps, and ``of_cells`` converts maps to token values.

    Attributes:
        tokens: the features.
        pos: position plus level embedding of every token.
        padding_mask: True = padding, or filler in an image with fewer tokens than others.
        valid_ratios: valid share (w, h) of each level's map.
        reference_points: centers (x, y) of the cells, in [0, 1] of the valid part of their own
            level.
        map_sizes: ``spatial_shapes`` on the device.
        valid_sizes: ``level_sizes`` on the device.
        spatial_shapes: (H, W) of each level's padded map, fine to coarse.
        strides: pixels per cell of each level.
        image_sizes: (h, w) of each unpadded image in pixels, or one entry for all images.
        level_sizes: valid (rows, columns) per image and level, the size the map would have for that
            image alone.
        level_counts: tokens of each image and level; an upper bound unless ``exact``.
        cells: for each level the cell indices of its tokens; None = all cells, in order.
        exact: whether the host knows how many tokens each image has.
        pooled: pooled tokens, set by an encoder that pools the tokens which it does not keep.
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
    cells: tuple[Int[Tensor, "B _"] | None, ...]
    exact: bool = True
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
        """Features from flattened tokens, as encoders of other codebases take them.

        The padding is read from the mask, which synchronizes with the device once. To avoid this,
        pass no mask if nothing is padded, or ``image_sizes`` instead of a mask.

        Args:
            tokens: the features, level by level from fine to coarse, each row by row.
            pos: position plus level embedding of every token.
            spatial_shapes: (H, W) of each level's padded map: pairs of ints, or an integer tensor
                or array ``[L 2]`` (a tensor on an accelerator synchronizes once more).
            padding_mask: True or 1 = padding; bool or uint8. The images are at the top left.
                Attention masks of the transformers package are inverted: pass ``~mask.bool()``.
            strides: pixels per cell of each level; None = 8, 16, 32, ... They matter where boxes
                and tokens are compared in pixels, as in ``ForegroundLoss``.
            image_sizes: (h, w) of each unpadded image in pixels. None = the pixels that the valid
                cells of the finest level cover, up to one cell more than the image. Without a mask,
                the valid rows and columns of a map are ``level_size`` of the image size.

        Returns:
            The features. Their ``level_sizes`` and ``valid_ratios`` follow the mask.

        Raises:
            ValueError: the arguments do not fit together; the message says what to change.
        """
        shapes = checked_shapes(spatial_shapes, tokens, pos)
        steps = [8 * 2**level for level in range(len(shapes))] if strides is None else strides
        if len(steps) != len(shapes):
            raise given_error("strides", f"one number for each of {len(shapes)} levels", f"{steps}")
        images = None if image_sizes is None else pairs(image_sizes)
        sizes = _sizes_of_levels(len(tokens), shapes, steps, images)
        if padding_mask is not None:
            found = sizes_in_mask(padding_mask, shapes, tokens)
            if images is not None:
                # masks resized by nearest neighbor round differently
                require_fit(sizes, found, steps, lambda own, there: abs(own - there) <= 1)
            sizes = found
        elif images is not None:
            require_fit(sizes, [shapes] * len(tokens), steps, lambda own, there: own <= there)
        if images is None:
            images = tuple((h * steps[0], w * steps[0]) for (h, w), *_ in sizes)
        parts = [None] * len(shapes)
        return _assemble(tokens, lambda *_: pos, shapes, sizes, steps, images, parts)

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.tokens.shape[0]

    @property
    def num_cells(self) -> int:
        """Number of cells of the padded maps of all levels."""
        return sum(h * w for h, w in self.spatial_shapes)

    @property
    def level_lengths(self) -> tuple[int, ...]:
        """Number of tokens of each level."""
        return _lengths(self.cells, self.spatial_shapes)

    @property
    def num_tokens(self) -> int:
        """The number ``N``: all cells of the padded maps, unless some are absent."""
        return sum(self.level_lengths)

    @property
    def in_parts(self) -> bool:
        """Whether some cells of a level are absent."""
        return any(own is not None for own in self.cells)

    @property
    def num_valid(self) -> tuple[int, ...]:
        """Number of tokens of each image without padding; an upper bound unless ``exact``."""
        return tuple(map(sum, self.level_counts))

    @property
    def least_side(self) -> int:
        """Side in pixels of the smallest box that contains a cell center wherever the box lies."""
        return self.strides[0] + 1

    @property
    def padding_if_any(self) -> Bool[Tensor, "B N"] | None:
        """``padding_mask``, or None if the host knows that it is False everywhere."""
        full = self.exact and all(count == self.num_tokens for count in self.num_valid)
        return None if full else self.padding_mask

    @property
    def all_tokens(self) -> TokenSelection:
        """The selection of every token."""
        if self.exact:
            return TokenSelection(self.num_valid)
        return TokenSelection(self.num_valid, valid=~self.padding_mask, exact=False)

    @property
    def places(self) -> Int[Tensor, "B N"] | None:
        """The cell index of every token over all levels and images; None = cells in order.

        Padding and fillers have the index after the last cell.
        """
        if not self.in_parts:
            return None
        batch, device = self.batch_size, self.tokens.device
        per_level, start = [], 0
        for (h, w), own in zip(self.spatial_shapes, self.cells, strict=True):
            own = torch.arange(h * w, device=device).expand(batch, -1) if own is None else own
            per_level.append(own + start)
            start += h * w
        first = torch.arange(batch, device=device)[:, None] * start
        return (torch.cat(per_level, dim=1) + first).masked_fill(self.padding_mask, batch * start)

    def to_cells(self, x: Shaped[Tensor, "B N *_"]) -> Shaped[Tensor, "B cells *_"]:
        """Convert token values to values of the cells of the padded maps; zero at absent cells."""
        places = self.places
        return x if places is None else in_places(x, places, self.num_cells)

    def of_cells(self, x: Shaped[Tensor, "B cells"]) -> Shaped[Tensor, "B N"]:
        """Convert values of the cells of the padded maps to token values; zero at fillers."""
        if not self.in_parts:
            return x
        found = by_tokens(x, self.cells, self.spatial_shapes)
        return found.masked_fill(self.padding_mask, 0)

    def map_of(self, x: Shaped[Tensor, "B n"], level: int) -> Shaped[Tensor, "B H W"]:
        """Convert the token values of a level to its padded map; zero at absent cells."""
        shape, own = self.spatial_shapes[level], self.cells[level]
        if own is None:
            return x.unflatten(1, shape)
        return self.level(level).to_cells(x).unflatten(1, shape)

    def of_map(self, x: Shaped[Tensor, "B H W"], level: int) -> Shaped[Tensor, "B n"]:
        """Convert the padded map of a level to token values."""
        own = self.cells[level]
        return x.flatten(1) if own is None else x.flatten(1).gather(1, own)

    def with_tokens(self, tokens: Float[Tensor, "B N C"]) -> MultiScaleFeatures:
        """The same geometry with other features."""
        return replace(self, tokens=tokens)

    def readable(
        self,
    ) -> tuple[Float[Tensor, "B S C"], Float[Tensor, "B S C"], Bool[Tensor, "B S"] | None]:
        """The tokens for attention over the whole map, their positions, and a mask of valid ones.

        These are all tokens, or the kept and the pooled tokens if there are ``pooled`` ones. The
        mask is None if all of them are valid.
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
        """One level as separate features."""
        parts = (self.tokens, self.pos, self.padding_mask, self.reference_points)
        tokens, pos, padding, points = (self.split_levels(x)[index] for x in parts)
        counts = tuple((own[index],) for own in self.level_counts)
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
            cells=(self.cells[index],),
            exact=self.exact or self.cells[index] is None,
        )

    def whole_levels(self, levels: Collection[int]) -> TokenSelection:
        """All tokens of some levels."""
        if len(levels) == len(self.spatial_shapes):
            return self.all_tokens
        counts = tuple(sum(own[level] for level in levels) for own in self.level_counts)
        masks = [
            ~padding if level in levels else torch.zeros_like(padding)
            for level, padding in enumerate(self.split_levels(self.padding_mask))
        ]
        return marked_tokens(torch.cat(masks, dim=1), counts, exact=self.exact)

    def split_levels(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split ``x[B N ...]`` into one ``[B n ...]`` per level, see ``level_lengths``."""
        return x.split(self.level_lengths, dim=1)

    def fold(self, x: Float[Tensor, "B N"], levels: int) -> Float[Tensor, "B _"]:
        """Values of the cells of the coarser levels, with the values of finer levels added.

        Args:
            x: value of every token, 0 for padding and fillers.
            levels: number of finest levels, whose values are added to the containing cells of the
                next level.
        """
        maps = [self.map_of(own, level) for level, own in enumerate(self.split_levels(x))]
        whole, (rows, columns) = maps[levels], self.spatial_shapes[levels]
        for own, stride in zip(maps[:levels], self.strides, strict=False):
            side = self.strides[levels] // stride
            right, below = columns * side - own.shape[2], rows * side - own.shape[1]
            cells = F.pad(own, (0, right, 0, below)).unflatten(2, (columns, side))
            whole = whole + cells.unflatten(1, (rows, side)).sum((2, 4))
        return torch.cat([each.flatten(1) for each in (whole, *maps[levels + 1 :])], dim=1)

    def to_levels(self, reference: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q L D"]:
        """Points or boxes of the image as points or boxes of every level's padded map."""
        if not _are_padded(self.level_sizes, self.spatial_shapes):
            return reference[:, :, None].expand(-1, -1, len(self.spatial_shapes), -1)
        ratios = self.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
        return reference[:, :, None] * ratios[:, None]

    def proposals(self) -> tuple[Float[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
        """One box per token for two-stage detection (Deformable DETR, appendix A.4).

        The box is centered on the cell, its sides are ``0.05 * 2**level`` of the image, at most 0.8
        (the value of a fifth level).

        Returns:
            The boxes in logit space, clamped to [0.01, 0.99] (always finite), and a mask of the
            valid tokens whose box lies inside these bounds.
        """
        centers = self.reference_points
        sides = torch.cat(
            [
                centers.new_full((length,), min(0.05 * 2.0**level, 0.8))
                for level, length in enumerate(self.level_lengths)
            ]
        )
        boxes = torch.cat((centers, sides[None, :, None].expand(centers.shape)), dim=-1)
        valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~self.padding_mask
        return torch.logit(boxes.clamp(0.01, 0.99)), valid


def level_size(image_size: Size, stride: int) -> Size:
    """Rows and columns that an image of ``image_size`` (h, w) has on a map of this stride."""
    return -(-image_size[0] // stride), -(-image_size[1] // stride)


def flatten_maps(
    maps: Sequence[Float[Tensor, "B C _ _"] | PartialMap],
    embed: Embed,
    *,
    strides: Sequence[int],
    image_sizes: Sequence[Size],
) -> MultiScaleFeatures:
    """Join feature maps into ``MultiScaleFeatures``.

    Args:
        maps: one map per level, fine to coarse.
        embed: makes the position (plus level) embedding of every token, given ``valid_sizes``,
            ``spatial_shapes`` and ``cells``.
        strides: pixels per cell of each level.
        image_sizes: (h, w) of each unpadded image, or one entry for all.
    """
    shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
    images = tuple((h, w) for h, w in image_sizes)
    sizes = _sizes_of_levels(len(images), shapes, strides, images)
    tokens = torch.cat(
        [m.tokens if isinstance(m, PartialMap) else m.flatten(2).transpose(1, 2) for m in maps],
        dim=1,
    )
    parts = [m if isinstance(m, PartialMap) else None for m in maps]
    return _assemble(tokens, embed, shapes, sizes, strides, images, parts)


def _assemble(
    tokens: Float[Tensor, "B N C"],
    embed: Embed,
    shapes: tuple[Size, ...],
    sizes: tuple[tuple[Size, ...], ...],
    strides: Sequence[int],
    image_sizes: tuple[Size, ...],
    parts: Sequence[PartialMap | None],
) -> MultiScaleFeatures:
    """Features with everything that follows from the sizes of the maps."""
    device = tokens.device
    map_sizes = _on_device((shapes,), device)
    padded = _are_padded(sizes, shapes)
    valid = _on_device(sizes, device) if padded else map_sizes
    valid_sizes = valid.expand(tokens.shape[0], -1, -1)
    cells = tuple(None if part is None else part.cells for part in parts)
    places = torch.arange(max(length for shape in shapes for length in shape), device=device)
    padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=device)
    if padded:
        beyond = _of_axes(places >= valid_sizes[..., None], shapes).any(-1)
        padding = by_tokens(beyond, cells, shapes)
    return MultiScaleFeatures(
        tokens=tokens,
        pos=embed(valid_sizes, shapes, cells).to(tokens.dtype),
        padding_mask=_without_fillers(padding, parts, shapes),
        valid_ratios=(valid_sizes / map_sizes).flip(-1),
        reference_points=by_tokens(
            _of_axes((places + 0.5) / valid_sizes[..., None], shapes), cells, shapes
        ),
        map_sizes=map_sizes[0],
        valid_sizes=valid_sizes,
        spatial_shapes=shapes,
        strides=tuple(strides),
        image_sizes=image_sizes,
        level_sizes=sizes,
        level_counts=_counts(sizes, parts),
        cells=cells,
        exact=all(part is None or part.exact for part in parts),
    )


def _counts(
    sizes: tuple[tuple[Size, ...], ...], parts: Sequence[PartialMap | None]
) -> tuple[tuple[int, ...], ...]:
    """Upper bound of the tokens of each image and level."""
    return tuple(
        tuple(
            h * w if part is None else part.counts[image]
            for (h, w), part in zip(own, parts, strict=True)
        )
        for image, own in enumerate(sizes)
    )


def _lengths(cells: Sequence[Tensor | None], shapes: Sequence[Size]) -> tuple[int, ...]:
    return tuple(
        h * w if own is None else own.shape[1] for (h, w), own in zip(shapes, cells, strict=True)
    )


def _without_fillers(
    padding: Bool[Tensor, "B N"], parts: Sequence[PartialMap | None], shapes: Sequence[Size]
) -> Bool[Tensor, "B N"]:
    """``padding``, also True at fillers."""
    if not any(parts):
        return padding
    lengths = _lengths([None if part is None else part.cells for part in parts], shapes)
    levels = zip(padding.split(lengths, dim=1), parts, strict=True)
    return torch.cat([own if part is None else own | ~part.there for own, part in levels], dim=1)


def by_tokens(
    x: Shaped[Tensor, "B cells *_"], cells: Sequence[Tensor | None], shapes: Sequence[Size]
) -> Shaped[Tensor, "B N *_"]:
    """Values of the cells of the padded maps, gathered for the tokens.

    Args:
        x: value of every cell.
        cells: see ``MultiScaleFeatures``.
        shapes: (H, W) of each level.
    """
    if all(own is None for own in cells):
        return x
    levels = zip(x.split([h * w for h, w in shapes], dim=1), cells, strict=True)
    return torch.cat([one if own is None else _at(one, own) for one, own in levels], dim=1)


def _at(x: Tensor, cells: Int[Tensor, "B n"]) -> Tensor:
    return gather_rows(x, cells) if x.ndim > 2 else x.gather(1, cells)


def _sizes_of_levels(
    batch: int, shapes: tuple[Size, ...], strides: Sequence[int], images: Sequence[Size] | None
) -> tuple[tuple[Size, ...], ...]:
    """Valid rows and columns of each image and level; the whole maps if no size is known."""
    if images is None:
        return (shapes,) * batch
    return tuple(tuple(level_size(size, stride) for stride in strides) for size in images)


def _are_padded(sizes: Sequence[tuple[Size, ...]], shapes: tuple[Size, ...]) -> bool:
    return any(each != shapes for each in sizes)


def _on_device(sizes: Sequence[tuple[Size, ...]], device: torch.device) -> Float[Tensor, "B L 2"]:
    """Sizes of every image and level; filled once if the images are alike."""
    kinds = sizes[:1] if all(each == sizes[0] for each in sizes) else sizes
    numbers = constants([n for image in kinds for size in image for n in size], device)
    return numbers.view(len(kinds), -1, 2).expand(len(sizes), -1, -1)


def _of_axes(axes: Shaped[Tensor, "B L 2 _"], shapes: Sequence[Size]) -> Shaped[Tensor, "B N 2"]:
    """Values of the columns and rows of every level, as a pair (column, row) for each cell."""
    per_level = []
    for level, (h, w) in enumerate(shapes):
        y = axes[:, level, 0, :h, None].expand(-1, -1, w)
        x = axes[:, level, 1, None, :w].expand(-1, h, -1)
        per_level.append(torch.stack((x, y), dim=-1).flatten(1, 2))
    return torch.cat(per_level, dim=1)
