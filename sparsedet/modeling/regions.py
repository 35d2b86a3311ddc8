"""Which parts of a picture the backbone sees: a glance at all of it, then a look at some tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.constants import constants
from sparsedet.modeling.parts import Assembly, Scorer, Selector
from sparsedet.modeling.selection import TopKSelector
from sparsedet.modeling.selection.shares import is_share
from sparsedet.modeling.stages import (
    Glance,
    MultiScaleFeatures,
    PartialMap,
    Size,
    Targets,
    TokenScores,
    TokenSelection,
    flatten_maps,
    level_size,
)
from sparsedet.registry import REGIONS

_FIRST = 1e4  # more than any score: tiles with it come first


@REGIONS.register()
class GlanceAndLook(nn.Module):
    """The whole picture at a reduced resolution, and some of its tiles at full resolution.

    For the glance, the picture is downsampled by ``glance_factor`` (by averaging) and passes
    through backbone and neck. A scorer scores the tokens of these maps, and the score of a tile is
    the best score of its tokens on the finest map. A selector keeps some tiles. The same backbone
    and neck process these tiles as one batch, with ``halo`` pixels of context on every side. The
    levels of the result are the tile levels that are finer than the glance, whose cells outside the
    chosen tiles are absent, then the levels of the glance. So encoder and decoder see one picture,
    with one set of queries: there are no borders and no duplicates to remove.

    Inside a tile, the maps equal those of the whole picture if the receptive field of the backbone
    does not exceed the halo and nothing is normalized over the map; outside the picture, both see
    zeros. ``GroupNorm`` in the neck takes its statistics from a tile with its halo, so the maps of
    a tile do not depend on the other chosen tiles.

    The only additional losses in training are those of ``SetCriterion.regions`` for the scorer.
    Early in training, tiles with objects too small for the glance are often chosen first, and
    random noise is added to the scores. Both fade until only the scores decide.

    Args:
        glance_factor: downsampling factor of the glance, at least 2.
        tile: side of a tile in pixels, a multiple of the glance's finest stride.
        halo: pixels of context around a tile, a multiple of the coarsest stride of the tile levels.
        look_ratio: share of the tiles of a picture that are chosen, in (0, 1]; rounded as
            ``TopKSelector`` does. None = decided by the selector.
        scorer: scores the tokens of the glance; None if the selector uses no scores.
        selector: chooses the tiles; None = ``TopKSelector(look_ratio)``.
        min_visible: length in pixels of the glance; an object whose longer side is shorter is too
            small for the glance.
        taught_passes: training passes after which only the scores decide.

    Raises:
        ValueError: for numbers outside of these ranges, or both or none of ``look_ratio`` and
            ``selector``.
    """

    passes: Tensor
    scorer: Scorer | None
    selector: Selector

    def __init__(
        self,
        glance_factor: int = 4,
        tile: int = 256,
        *,
        halo: int = 32,
        look_ratio: float | None = None,
        scorer: Scorer | None = None,
        selector: Selector | None = None,
        min_visible: int = 16,
        taught_passes: int = 1000,
    ) -> None:
        super().__init__()
        self.glance_factor, self.tile, self.halo = glance_factor, tile, halo
        self.min_visible, self.taught_passes = min_visible, taught_passes
        self._check_numbers()
        if (look_ratio is None) == (selector is None):
            both = "both" if selector is not None else "neither"
            raise _error("look_ratio", "given without a selector, and only then", both)
        if selector is None and not is_share(look_ratio):
            raise _error("look_ratio", "a number in (0, 1]", repr(look_ratio))
        self.scorer = scorer
        self.selector = TopKSelector(look_ratio) if selector is None else selector
        self.look = _Look(tile, halo)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def _check_numbers(self) -> None:
        least = dict(glance_factor=2, tile=1, min_visible=1, halo=0, taught_passes=0)
        for name, number in least.items():
            key, own = f"model.regions.{name}", f"GlanceAndLook.{name}"
            require_positive(getattr(self, name), own, key=key, least=number)

    def check(self, assembly: Assembly) -> None:
        """Refuse sizes that do not fit the strides, and a scorer or selector that cannot be used.

        Raises:
            ValueError: the message says what to change.
        """
        fine = self._fine(assembly.neck.strides)
        cell = self.glance_factor * assembly.neck.strides[0]
        if not fine or any(cell % stride for stride in fine):
            what = f"such that it times {assembly.neck.strides[0]} is a multiple of {list(fine)}"
            raise _error("glance_factor", what, self.glance_factor)
        if self.tile % cell:
            raise _error(
                "tile", f"a multiple of {cell}, the finest stride of the glance", self.tile
            )
        if self.halo % fine[-1]:
            raise _error("halo", f"a multiple of {fine[-1]}, the stride of a level", self.halo)
        self._check_parts(assembly)

    def _check_parts(self, assembly: Assembly) -> None:
        scorer, name = self.scorer, type(self.selector).__name__
        if not isinstance(self.selector, Selector):
            raise _error("selector", "a Selector (see sparsedet.modeling.parts)", name)
        if self.selector.needs_scorer != (scorer is not None):
            what = "given" if self.selector.needs_scorer else "null"
            raise _error("scorer", f"{what} for {name}", type(scorer).__name__)
        if getattr(self.selector, "layer_ratios", None) is not None:
            raise _error("selector.layer_ratios", "null, tiles are chosen once", "some")
        if scorer is None:
            return
        if not isinstance(scorer, Scorer) or getattr(scorer, "needs_images", False):
            what = "a Scorer (see sparsedet.modeling.parts) of features alone"
            raise _error("scorer", what, type(scorer).__name__)
        sizes = {"embed_dim": assembly.embed_dim, "num_levels": len(assembly.neck.strides)}
        for size, expected in sizes.items():
            got = getattr(scorer, size, None)
            if got not in (None, expected):
                raise _error(f"scorer.{size}", f"{expected} as in the neck", got)

    @property
    def look_ratio(self) -> float | None:
        """Share of the tiles that are chosen; None if the selector has none."""
        return getattr(self.selector, "keep_ratio", None)

    def strides(self, own: Sequence[int]) -> tuple[int, ...]:
        """Pixels per cell of each level of the result, given the strides ``own`` of the neck."""
        return (*self._fine(own), *(self.glance_factor * stride for stride in own))

    def _fine(self, own: Sequence[int]) -> tuple[int, ...]:
        """Strides of the tile levels."""
        return tuple(stride for stride in own if stride < self.glance_factor * own[0])

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        image_sizes: Sequence[Size],
        *,
        see: Callable[[Tensor, int], Sequence[Tensor]],
        embed: Callable[..., MultiScaleFeatures],
        strides: Sequence[int],
        heads: Any,
        targets: Targets | None = None,
    ) -> tuple[MultiScaleFeatures, Glance]:
        """Glance, choose tiles and look; see ``sparsedet.modeling.parts.Regions``."""
        maps, glance = self.glance(
            images,
            image_sizes,
            see=see,
            embed=embed,
            strides=strides,
            heads=heads,
            targets=targets,
        )
        looked = self.look(images, glance.looked, glance.tiles, see, self._fine(strides))
        return embed((*looked, *maps), image_sizes), glance

    def glance(
        self,
        images: Float[Tensor, "B 3 H W"],
        image_sizes: Sequence[Size],
        *,
        see: Callable[[Tensor, int], Sequence[Tensor]],
        embed: Callable[..., MultiScaleFeatures],
        strides: Sequence[int],
        heads: Any,
        targets: Targets | None = None,
    ) -> tuple[Sequence[Tensor], Glance]:
        """Glance and choose tiles; see ``sparsedet.modeling.parts.Regions``."""
        maps = see(self._smaller(images), len(strides))
        features = embed(maps, image_sizes)
        scores = None
        if self.scorer is not None:
            side = features.least_side
            objects = None if targets is None else targets.at_least(side, image_sizes)
            scores = self.scorer(features, heads, objects)
        tiles = self._tiles(features, scores)
        return maps, Glance(features, scores, tiles, self._choose(tiles, scores, targets))

    def _smaller(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        factor, (height, width) = self.glance_factor, images.shape[-2:]
        return F.avg_pool2d(F.pad(images, (0, -width % factor, 0, -height % factor)), factor)

    def _tiles(
        self, features: MultiScaleFeatures, scores: TokenScores | None
    ) -> MultiScaleFeatures:
        """The tiles as a map of one level, whose tokens are their scores."""
        shape = features.spatial_shapes[0]
        side = self.tile // features.strides[0]
        logits = features.tokens.new_zeros(features.batch_size, *shape, dtype=torch.float32)
        if scores is not None:
            padding, own = (
                features.split_levels(x)[0] for x in (features.padding_mask, scores.logits)
            )
            logits = own.float().masked_fill(padding, float("-inf")).unflatten(1, shape)
        beyond = (0, -shape[1] % side, 0, -shape[0] % side)
        best = F.max_pool2d(F.pad(logits[:, None], beyond, value=float("-inf")), side)
        return flatten_maps(
            [best],
            lambda *_: torch.zeros_like(best).flatten(2).transpose(1, 2),
            strides=(self.tile,),
            image_sizes=features.image_sizes,
        )

    # --- where to look

    def _choose(
        self, tiles: MultiScaleFeatures, scores: TokenScores | None, targets: Targets | None
    ) -> TokenSelection:
        rated = None
        if scores is not None:
            rated = TokenScores(tiles.tokens[..., 0], weighs=scores.weighs)
        looked = self.selector(rated, tiles, 1)[0]
        if not self.training or targets is None or looked.indices is None:
            return looked
        return self._taught(looked, tiles, targets)

    def _taught(
        self, looked: TokenSelection, tiles: MultiScaleFeatures, targets: Targets
    ) -> TokenSelection:
        """Choose the same number of tiles, first those with invisible objects, then with noise."""
        assert looked.indices is not None
        logits = tiles.tokens[..., 0]
        self.passes.add_(1)
        chance = (1 - self.passes / (self.taught_passes + 1)).clamp(min=0)
        # Gumbel noise samples tiles with probabilities proportional to the exponentials of their
        # scores
        noise = -torch.empty_like(logits).exponential_().log()
        taught = torch.rand(len(logits), 1, device=logits.device) < chance
        first = taught & invisible_tiles(tiles, targets, self.min_visible * self.glance_factor)
        order = (logits.detach() + chance * noise) + _FIRST * first
        order = order.masked_fill(tiles.padding_mask, float("-inf"))
        indices = order.topk(looked.indices.shape[1], dim=1).indices
        weight = None if looked.weight is None else logits.gather(1, indices).sigmoid()
        return replace(looked, indices=indices, weight=weight)


class _Look(nn.Module):
    """Computes the levels of the chosen tiles."""

    def __init__(self, tile: int, halo: int) -> None:
        super().__init__()
        self.tile, self.halo = tile, halo

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        looked: TokenSelection,
        tiles: MultiScaleFeatures,
        see: Callable[[Tensor, int], Sequence[Tensor]],
        strides: Sequence[int],
    ) -> list[Tensor | PartialMap]:
        """Levels of the pictures with these strides, with cells only in the chosen tiles.

        Inference on a CPU processes one tile at a time, to save memory.
        """
        crops = self._crops(images, looked, tiles)
        together = crops.device.type != "cpu" or torch.is_grad_enabled()
        together = together or torch.compiler.is_compiling()
        parts = [crops] if together else crops.split(1)
        seen = [self._seen(part, see, strides) for part in parts]
        size = images.shape[-2], images.shape[-1]
        return [
            self._level(torch.cat(found), looked, tiles, stride, level_size(size, stride))
            for found, stride in zip(zip(*seen, strict=True), strides, strict=True)
        ]

    def _seen(
        self,
        crops: Float[Tensor, "b 3 s s"],
        see: Callable[[Tensor, int], Sequence[Tensor]],
        strides: Sequence[int],
    ) -> list[Float[Tensor, "b n C"]]:
        """Tokens of the tiles without their halo, by level."""
        levels = []
        for maps, stride in zip(see(crops, len(strides)), strides, strict=True):
            inner = slice(self.halo // stride, (self.halo + self.tile) // stride)
            levels.append(maps[..., inner, inner].flatten(2).transpose(1, 2).contiguous())
        return levels

    def _crops(
        self, images: Float[Tensor, "B 3 H W"], looked: TokenSelection, tiles: MultiScaleFeatures
    ) -> Float[Tensor, "b 3 s s"]:
        """The chosen tiles with their halo, image by image."""
        (rows, columns), halo = tiles.spatial_shapes[0], self.halo
        right, below = columns * self.tile - images.shape[-1], rows * self.tile - images.shape[-2]
        padded = F.pad(images, (halo, right + halo, halo, below + halo))
        side = self.tile + 2 * halo
        windows = padded.unfold(2, side, self.tile).unfold(3, side, self.tile)
        if looked.indices is None:
            return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        image = torch.arange(images.shape[0], device=images.device)[:, None]
        place = looked.indices
        return windows[image, :, place // columns, place % columns].flatten(0, 1)

    def _level(
        self,
        tokens: Float[Tensor, "b n C"],
        looked: TokenSelection,
        tiles: MultiScaleFeatures,
        stride: int,
        shape: Size,
    ) -> Tensor | PartialMap:
        """One level of the chosen tiles, with ``n`` cells each."""
        tokens = tokens.unflatten(0, (tiles.batch_size, -1))
        if looked.weight is not None:
            tokens = tokens * looked.weight[..., None, None].to(tokens.dtype)
        if looked.indices is None or (looked.exact and looked.max_counts == tiles.num_valid):
            return self._whole_level(tokens, looked, tiles, shape)
        side, columns = self.tile // stride, tiles.spatial_shapes[0][1]
        place = torch.arange(side, device=tokens.device)
        y = (looked.indices // columns * side)[..., None, None] + place[:, None]
        x = (looked.indices % columns * side)[..., None, None] + place
        there = (y < shape[0]) & (x < shape[1])
        cells = (y * shape[1] + x).where(there, 0)
        if looked.valid is not None:
            there = there & looked.valid[..., None, None]
        counts, exact = [], looked.exact
        for size, count in zip(tiles.image_sizes, looked.max_counts, strict=True):
            areas = _areas(level_size(size, stride), side)
            counts.append(sum(areas[:count]))
            exact = exact and (count == len(areas) or areas[0] == areas[-1])
        given = (tokens.flatten(1, 2), cells.flatten(1), there.flatten(1))
        return PartialMap(*given, shape, tuple(counts), exact)

    def _whole_level(
        self,
        tokens: Float[Tensor, "B K n C"],
        looked: TokenSelection,
        tiles: MultiScaleFeatures,
        shape: Size,
    ) -> Float[Tensor, "B C H W"]:
        """The map of a level if every tile is chosen."""
        batch, side = tokens.shape[0], math.isqrt(tokens.shape[2])
        rows, columns = tiles.spatial_shapes[0]
        cells = tokens.flatten(2)
        if looked.indices is not None:
            cells = looked.scatter_(cells.new_zeros(batch, rows * columns, cells.shape[2]), cells)
        whole = cells.view(batch, rows, columns, side, side, -1).transpose(2, 3)
        whole = whole.reshape(batch, rows * side, columns * side, -1).permute(0, 3, 1, 2)
        return whole[..., : shape[0], : shape[1]]


def tile_numbers(
    tiles: MultiScaleFeatures, image: int, boxes: Float[Tensor, "n 4"]
) -> Int[Tensor, " n"]:
    """Indices, as in the tokens of ``Glance.tiles``, of the tiles that contain box centers.

    Args:
        tiles: see ``Glance``.
        image: which image of the batch.
        boxes: cxcywh in [0, 1] of the unpadded image.
    """
    h, w = tiles.image_sizes[image]
    rows, columns = tiles.level_sizes[image][0]
    column, row = (
        (boxes[:, axis] * length / tiles.strides[0]).long().clamp(0, count - 1)
        for axis, length, count in ((0, w, columns), (1, h, rows))
    )
    return row * tiles.spatial_shapes[0][1] + column


def invisible_tiles(
    tiles: MultiScaleFeatures, targets: Targets, side: float
) -> Bool[Tensor, "B N"]:
    """True at tiles with the center of an object whose longer side is below ``side`` pixels."""
    marks = []
    for image, boxes in enumerate(targets.boxes):
        h, w = tiles.image_sizes[image]
        pixels = boxes[:, 2:] * constants((w, h), boxes.device).to(boxes.dtype)
        small = (pixels < side).all(1).to(boxes.dtype)
        nothing = boxes.new_zeros(tiles.num_tokens)
        marks.append(nothing.scatter_add(0, tile_numbers(tiles, image, boxes), small) > 0)
    return torch.stack(marks)


def _areas(size: Size, side: int) -> list[int]:
    """Cells of the tiles of a map, from the largest to the smallest."""
    rows, columns = (
        [min(side, length - start) for start in range(0, length, side)] for length in size
    )
    return sorted((down * across for down in rows for across in columns), reverse=True)


def _error(argument: str, expected: str, got: object) -> ValueError:
    return ValueError(
        f"GlanceAndLook.{argument} must be {expected}, got {got}. Set model.regions.{argument}."
    )
