"""Draw the tokens of an image that the encoder layers keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw

from sparsedet.modeling.stages import DetectorOutput, Size
from sparsedet.visualization.ink import Color, ramp, steps, to_picture

OBJECT: Color = (255, 40, 90)  # color of the dots; it is not in the ramp

_GRID_FROM = 8  # cells with at least this many pixels are separated by lines
_DIM, _TINT = 0.3, 0.3
_DOT, _MOST = 0.2, 5.0  # radius of a dot: share of its cell's side, and upper limit in pixels


@dataclass(frozen=True)
class LevelTokens:
    """The tokens of one image in one level, without padding.

    If the backbone processes only parts of the picture, the other cells are absent and have no
    tokens.

    Attributes:
        stride: pixels of the model's input per cell.
        kept: bool (layers, rows, columns), True if an encoder layer updates the cell's token.
        scores: float (rows, columns), the score logits; None without a scorer.
        objects: bool (layers, rows, columns), True for the tokens that attend to each other before
            the layer; None if the encoder has none.
        there: bool (rows, columns), False for absent cells; None = no cell is absent.
    """

    stride: int
    kept: np.ndarray
    scores: np.ndarray | None = None
    objects: np.ndarray | None = None
    there: np.ndarray | None = None

    @property
    def num_cells(self) -> int:
        """Cells of the level."""
        return self.kept[0].size

    @property
    def num_tokens(self) -> int:
        """Tokens of the level."""
        return self.num_cells if self.there is None else int(self.there.sum())

    @property
    def numbers(self) -> np.ndarray:
        """A distinct number for each cell, from 1."""
        return np.arange(1, self.num_cells + 1).reshape(self.kept.shape[1:])

    @property
    def counts(self) -> tuple[int, ...]:
        """Kept tokens by encoder layer."""
        return tuple(int(layer.sum()) for layer in self.kept)


def token_levels(output: DetectorOutput, image: int = 0) -> tuple[LevelTokens, ...]:
    """The tokens of one image of a batch that the encoder layers keep, by level, fine to coarse."""
    features = output.features
    masks = [
        ~features.padding_mask if selection.indices is None else selection.mask(features.num_tokens)
        for selection in output.selections
    ]
    maps = {"kept": masks}
    if output.scores is not None:
        maps["scores"] = [output.scores.logits.float()]
    if output.objects:
        maps["objects"] = [each.selection.mask(features.num_tokens) for each in output.objects]
    if features.in_parts:
        maps["there"] = [~features.padding_mask]
    sizes = [h * w for h, w in features.spatial_shapes]
    by_level = {}
    for name, each in maps.items():
        cells = torch.stack([features.to_cells(x)[image] for x in each])
        by_level[name] = cells.detach().cpu().split(sizes, dim=1)
    levels = []
    for index, (rows, columns) in enumerate(features.level_sizes[image]):
        shape = features.spatial_shapes[index]
        shown = {
            name: split[index].unflatten(1, shape)[:, :rows, :columns].numpy()
            for name, split in by_level.items()
        }
        single = {name: shown[name][0] for name in ("scores", "there") if name in shown}
        if "there" in single and single["there"].all():
            del single["there"]
        objects = shown.get("objects")
        levels.append(
            LevelTokens(features.strides[index], shown["kept"], objects=objects, **single)
        )
    return tuple(levels)


def cells_to_pixels(cells: np.ndarray, *, stride: int, image_size: Size, size: Size) -> np.ndarray:
    """For every pixel of a picture, the value of its cell.

    Cell (r, c) covers ``stride`` rows of the model's input from ``r * stride``, and ``stride``
    columns from ``c * stride``, even if the input ends within the cell.

    Args:
        cells: (rows, columns).
        stride: pixels of the model's input per cell.
        image_size: (h, w) of the model's input.
        size: (h, w) of the picture, which shows the whole input at any scale.
    """
    rows, columns = (
        ((np.arange(size[axis]) + 0.5) * image_size[axis] / size[axis] / stride).astype(int)
        for axis in (0, 1)
    )
    return cells[rows[:, None], columns]


def draw_kept_tokens(picture: Image.Image, level: LevelTokens, image_size: Size) -> Image.Image:
    """Draw the picture with cells dimmed whose tokens no encoder layer keeps.

    The color of a kept cell shows how many layers keep it, from violet (one) to yellow (all). Dots
    mark the object tokens of all layers. Absent cells are black.

    Args:
        picture: the image, at any scale.
        level: the tokens of the level.
        image_size: (h, w) of the model's input.
    """
    size = picture.height, picture.width
    spread = partial(cells_to_pixels, stride=level.stride, image_size=image_size, size=size)
    cells = spread(level.numbers) if _shows_cells(picture, level.stride, image_size) else None
    shown = _light(picture, spread(level.kept.sum(0)), len(level.kept), cells)
    if level.there is not None:
        shown = to_picture(np.asarray(shown) * spread(level.there)[..., None])
    if level.objects is not None:
        _draw_dots(shown, np.logical_or.reduce(level.objects), level.stride, image_size)
    return shown


def draw_layer_tokens(
    picture: Image.Image,
    levels: Sequence[LevelTokens],
    layer: int,
    image_size: Size,
    *,
    objects: bool = False,
) -> Image.Image:
    """Draw the picture dimmed where an encoder layer keeps no token in any level.

    The color shows the finest level with a kept token there, from violet (the coarsest level) to
    yellow (the finest).

    Args:
        picture: the image, at any scale.
        levels: the tokens of all levels, fine to coarse.
        layer: index of the layer.
        image_size: (h, w) of the model's input.
        objects: show object tokens instead of kept tokens; the levels must have them.
    """
    size = picture.height, picture.width
    finest, cells, first = np.zeros(size, dtype=int), np.zeros(size, dtype=int), 0
    for rank, level in enumerate(reversed(levels), start=1):
        layers = level.objects if objects else level.kept
        assert layers is not None
        spread = partial(cells_to_pixels, stride=level.stride, image_size=image_size, size=size)
        here = spread(layers[layer])
        finest[here], cells[here] = rank, first + spread(level.numbers)[here]
        first += level.num_cells
    parted = _shows_cells(picture, levels[0].stride, image_size)
    return _light(picture, finest, len(levels), cells if parted else None)


def draw_scores(
    picture: Image.Image, level: LevelTokens, image_size: Size, bounds: tuple[float, float]
) -> Image.Image:
    """Draw the token scores of a level as colors over the gray picture.

    Args:
        picture: the image, at any scale.
        level: the tokens of the level, with scores.
        image_size: (h, w) of the model's input.
        bounds: the scores of the darkest and the brightest color.
    """
    assert level.scores is not None
    gray = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    span = max(bounds[1] - bounds[0], 1e-6)
    cells = np.clip((level.scores - bounds[0]) / span, 0, 1)
    shares = cells_to_pixels(
        cells, stride=level.stride, image_size=image_size, size=(picture.height, picture.width)
    )
    return to_picture(0.25 * gray + 0.75 * ramp(shares))


def _shows_cells(picture: Image.Image, stride: int, image_size: Size) -> bool:
    return stride * picture.height >= _GRID_FROM * image_size[0]


def _light(
    picture: Image.Image, numbers: np.ndarray, most: int, cells: np.ndarray | None = None
) -> Image.Image:
    """The picture, dimmed where the number is 0, elsewhere tinted by the number.

    Thin lines separate ``cells``, thick lines separate different numbers.
    """
    shown = np.asarray(picture.convert("RGB"), dtype=np.float32)
    colors = np.stack([np.zeros(3), *steps(most)])[numbers]
    tint = np.full(numbers.shape, _TINT)
    if cells is not None:
        tint[_borders(cells)] = 0.6
        tint[_borders(numbers)] = 1.0
    lit = (1 - tint[..., None]) * shown + tint[..., None] * colors
    return to_picture(np.where(numbers[..., None] > 0, lit, _DIM * shown))


def _draw_dots(picture: Image.Image, cells: np.ndarray, stride: int, image_size: Size) -> None:
    """Draw a dot in the middle of every True cell."""
    draw = ImageDraw.Draw(picture)
    scale = picture.height / image_size[0], picture.width / image_size[1]
    radius = min(max(1.0, _DOT * stride * scale[0]), _MOST)
    for cell in np.argwhere(cells):
        starts, ends = cell * stride, np.minimum((cell + 1) * stride, image_size)
        y, x = (starts + ends) / 2 * scale
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=OBJECT)


def _borders(values: np.ndarray) -> np.ndarray:
    """True for pixels on both sides of a border between different values."""
    border = np.zeros(values.shape, dtype=bool)
    right, below = values[:, 1:] != values[:, :-1], values[1:] != values[:-1]
    border[:, :-1] |= right
    border[:, 1:] |= right
    border[:-1] |= below
    border[1:] |= below
    return border
