"""Pictures of what a detector keeps and what it finds, drawn with Pillow alone.

Sizes are (height, width), as everywhere in the package; Pillow's own order is (width, height).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sparsedet.modeling.stages import DetectorOutput, Size
from sparsedet.structures import Instances

__all__ = [
    "LevelTokens",
    "cells_to_pixels",
    "class_color",
    "draw_detections",
    "draw_kept_tokens",
    "draw_scores",
    "draw_targets",
    "token_figure",
    "token_levels",
]

Color = tuple[int, int, int]

_PANEL_SIDE = 360  # wanted long side of a level's picture, in pixels
_PANEL_LIMIT = 900  # and how far it grows to give every cell this many pixels
_CELL_SIDE = 4
_GRID_FROM = 8  # cells of so many pixels are told apart by lines
_GAP, _LINE, _TEXT = 12, 18, 14
_BOX_LINE, _BOX_TYPE = 2.0, 14.0  # of boxes, where a picture's long side has 1000 pixels
_LEAST_TYPE = 10.0
_PAPER: Color = (255, 255, 255)
_INK: Color = (32, 32, 32)
_DIM, _TINT = 0.3, 0.3

# viridis at five points, without its darkest part, which a dimmed image would swallow
_RAMP = np.array([(72, 60, 160), (49, 104, 200), (33, 165, 150), (110, 206, 88), (253, 231, 37)])
_CLASS_COLORS: tuple[Color, ...] = (
    (255, 127, 14), (31, 160, 240), (60, 200, 80), (240, 60, 70), (190, 120, 240),
    (0, 206, 209), (255, 120, 200), (200, 200, 40), (150, 110, 90), (170, 170, 170),
)  # fmt: skip


@dataclass(frozen=True)
class LevelTokens:
    """The tokens of one image on one level, without padding.

    Attributes:
        stride: pixels of the model's input per cell.
        kept: bool (layers, rows, columns), True where an encoder layer updates the cell's token.
        scores: float (rows, columns), the score logits; None without a scorer.
    """

    stride: int
    kept: np.ndarray
    scores: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the level."""
        return self.kept[0].size

    @property
    def counts(self) -> tuple[int, ...]:
        """Kept tokens by encoder layer."""
        return tuple(int(layer.sum()) for layer in self.kept)


def token_levels(output: DetectorOutput, image: int = 0) -> tuple[LevelTokens, ...]:
    """What the encoder layers keep of one image of a batch, by level from fine to coarse."""
    features = output.features
    masks = [
        ~features.padding_mask if selection.indices is None else selection.mask(features.num_tokens)
        for selection in output.selections
    ]
    kept = features.split_levels(torch.stack([mask[image] for mask in masks]))
    scores = None
    if output.scores is not None:
        scores = features.split_levels(output.scores.logits[image : image + 1].float())
    levels = []
    for index, (rows, columns) in enumerate(features.level_sizes[image]):
        shape = features.spatial_shapes[index]

        def valid(x: torch.Tensor, shape=shape, rows=rows, columns=columns) -> np.ndarray:
            return x.unflatten(1, shape)[:, :rows, :columns].detach().cpu().numpy()

        level_scores = None if scores is None else valid(scores[index])[0]
        levels.append(LevelTokens(features.strides[index], valid(kept[index]), level_scores))
    return tuple(levels)


def cells_to_pixels(cells: np.ndarray, *, stride: int, image_size: Size, size: Size) -> np.ndarray:
    """The value of the cell under every pixel of a picture.

    Cell (r, c) covers ``stride`` rows from ``r * stride`` and as many columns of the model's
    input, also where the input ends within it.

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
    """The picture, dim where no encoder layer keeps the token of the cell.

    The color of a kept cell says how many layers keep it, from violet (one) to yellow (all).

    Args:
        picture: the image, at any scale.
        level: which cells are kept.
        image_size: (h, w) of the model's input.
    """
    shown = np.asarray(picture.convert("RGB"), dtype=np.float32)
    size = picture.height, picture.width
    spread = partial(cells_to_pixels, stride=level.stride, image_size=image_size, size=size)
    numbers = np.arange(level.num_tokens).reshape(level.kept.shape[1:])
    layers = spread(level.kept.sum(0))
    colors = np.stack([np.zeros(3), *_ramp(np.linspace(0, 1, len(level.kept) + 1)[1:])])[layers]
    tint = np.full(layers.shape, _TINT)
    if level.stride * picture.height >= _GRID_FROM * image_size[0]:
        tint[_borders(spread(numbers))] = 0.6
        tint[_borders(layers)] = 1.0
    lit = (1 - tint[..., None]) * shown + tint[..., None] * colors
    return _to_picture(np.where(layers[..., None] > 0, lit, _DIM * shown))


def draw_scores(
    picture: Image.Image, level: LevelTokens, image_size: Size, bounds: tuple[float, float]
) -> Image.Image:
    """The token scores of a level as colors over the gray picture.

    Args:
        picture: the image, at any scale.
        level: must have scores.
        image_size: (h, w) of the model's input.
        bounds: the scores shown in the darkest and in the brightest color.
    """
    assert level.scores is not None
    gray = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    span = max(bounds[1] - bounds[0], 1e-6)
    cells = np.clip((level.scores - bounds[0]) / span, 0, 1)
    shares = cells_to_pixels(
        cells, stride=level.stride, image_size=image_size, size=(picture.height, picture.width)
    )
    return _to_picture(0.25 * gray + 0.75 * _ramp(shares))


def draw_detections(
    picture: Image.Image,
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.3,
) -> Image.Image:
    """Boxes with class and score on a copy of the picture, the best on top.

    Lines and type are in proportion to the picture, and smaller where the boxes are small; a class
    has the same color everywhere.

    Args:
        picture: the image, at any scale.
        instances: detections (``pred_boxes``, ``scores``, ``pred_classes``); their ``image_size``
            is that of the unscaled image.
        class_names: by class index; without them a class is shown as its number.
        score_threshold: detections below are left out.
    """
    order = instances.scores.argsort()
    order = order[instances.scores[order] >= score_threshold]
    classes = instances.pred_classes[order].tolist()
    names = [f"class {i}" if class_names is None else class_names[i] for i in classes]
    scores = instances.scores[order].tolist()
    words = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    scale = np.array(picture.size * 2) / np.array(instances.image_size[::-1] * 2)
    boxes = instances.pred_boxes.tensor[order].numpy() * scale
    return _draw_boxes(picture, boxes, classes, words)


def draw_targets(
    picture: Image.Image, instances: Instances, *, class_names: Sequence[str] | None = None
) -> Image.Image:
    """Boxes with classes, as a model is trained on them, the smallest on top.

    Args:
        picture: the image, at any scale.
        instances: targets (``gt_boxes``, ``gt_classes``); their ``image_size`` is that of the
            unscaled image.
        class_names: by class index; without them the color alone tells the class.
    """
    order = instances.gt_boxes.area().argsort(descending=True)
    classes: list[int] = instances.gt_classes[order].tolist()
    scale = np.array(picture.size * 2) / np.array(instances.image_size[::-1] * 2)
    boxes = instances.gt_boxes.tensor[order].numpy() * scale
    names = ["" if class_names is None else class_names[i] for i in classes]
    return _draw_boxes(picture, boxes, classes, names)


def _draw_boxes(
    picture: Image.Image, boxes: np.ndarray, classes: Sequence[int], words: Sequence[str]
) -> Image.Image:
    """Boxes (N, 4), xyxy in pixels of the picture, on a copy of it; the last on top."""
    shown = picture.convert("RGB")
    draw = ImageDraw.Draw(shown)
    line, size = _pen(boxes, max(shown.size))
    for box, label, text in zip(boxes, classes, words, strict=True):
        draw.rectangle(box.tolist(), outline=class_color(label), width=line)
        if text:
            _draw_label(draw, shown.size, box, text, class_color(label), size)
    return shown


def class_color(label: int) -> Color:
    """The color of a class, by its number alone."""
    if label < len(_CLASS_COLORS):
        return _CLASS_COLORS[label]
    hue = label * (math.sqrt(5) - 1) / 2 % 1  # neighbors far apart, whatever the number of classes
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def token_figure(
    picture: Image.Image,
    output: DetectorOutput,
    instances: Instances,
    *,
    image: int = 0,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.3,
    title: str = "",
    show_scores: bool = False,
) -> Image.Image:
    """Detections on the left, on the right the tokens that the encoder keeps, level by level.

    Args:
        picture: the image as it was before it was resized for the model.
        output: of ``TokenSparseDetector.detect``.
        instances: of ``TokenSparseDetector.postprocess``, for the same image.
        image: which image of the batch.
        class_names: by class index.
        score_threshold: detections below are left out.
        title: first words above the figure, such as the file's name.
        show_scores: add a row with the token scores, where there is a scorer.
    """
    levels = token_levels(output, image)
    image_size = output.features.image_sizes[image]
    height, width = _panel_size(image_size, levels[0].stride)
    small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    panels = [
        (_level_title(number, level), draw_kept_tokens(small, level, image_size))
        for number, level in enumerate(levels)
    ]
    columns = -(-len(levels) // 2)
    if show_scores and output.scores is not None:
        columns = len(levels)
        panels += _score_panels(small, levels, image_size)
    grid = _grid(panels, columns)
    room = (round(1.5 * grid.width), grid.height - 2 * _LINE)
    scale = min(room[0] / picture.width, room[1] / picture.height)
    large = picture.resize(
        (max(1, round(scale * picture.width)), max(1, round(scale * picture.height))),
        Image.Resampling.LANCZOS,
    )
    found = draw_detections(
        large, instances, class_names=class_names, score_threshold=score_threshold
    )
    left = _grid([(_detections_title(instances, score_threshold), found)], 1)
    head = f"{title}   {picture.width} x {picture.height} pixels, model input {image_size[1]} x "
    head += f"{image_size[0]}"
    if output.memory.pooled is not None:
        head += f"; {output.memory.pooled.counts[image]} tokens pooled of the others"
    return _page(head.strip(), left, grid, levels, output, image)


def stack(figures: Sequence[Image.Image]) -> Image.Image:
    """Figures below each other, such as those of several models for one image."""
    width = max(figure.width for figure in figures)
    page = Image.new("RGB", (width, sum(figure.height for figure in figures)), _PAPER)
    top = 0
    for figure in figures:
        page.paste(figure, (0, top))
        top += figure.height
    return page


# --- words ----------------------------------------------------------------------------------------


def _level_title(number: int, level: LevelTokens) -> tuple[str, str]:
    counts, total = level.counts, level.num_tokens
    if len(set(counts)) == 1:
        kept = f"{counts[0]} of {total} kept ({_percent(counts[0] / total)})"
    else:
        kept = f"{' '.join(map(str, counts))} of {total} kept, by layer"
    return f"level {number + 1}, stride {level.stride}", kept


def _detections_title(instances: Instances, threshold: float) -> tuple[str, str]:
    scores = instances.scores
    count = int((scores >= threshold).sum())
    best = f"best score {float(scores.max()):.2f}" if len(scores) else ""
    return f"{count} detection{'' if count == 1 else 's'}, score >= {threshold:g}", best


def _summary(levels: Sequence[LevelTokens], output: DetectorOutput, image: int) -> str:
    layers, total = len(output.selections), output.features.num_valid[image]
    if all(selection.indices is None for selection in output.selections):
        return f"dense encoder: all {total} tokens in each of {layers} layers"
    kept = f"tokens kept: {_percent(output.keep_ratios[image])} of {total}"
    if _layers_agree(levels):
        return f"{kept}, the same ones in each of {layers} encoder layers"
    return f"{kept}, mean of {layers} encoder layers"


def _layers_agree(levels: Sequence[LevelTokens]) -> bool:
    return all((level.kept == level.kept[:1]).all() for level in levels)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- layout ---------------------------------------------------------------------------------------


def _panel_size(image_size: Size, finest_stride: int) -> Size:
    """A size in which the finest cells have a whole number of pixels."""
    longest = max(image_size)
    cell = finest_stride * _PANEL_SIDE / longest
    cell = max(cell, min(_CELL_SIDE, finest_stride * _PANEL_LIMIT / longest))
    scale = max(1, round(cell)) / finest_stride
    return max(1, round(scale * image_size[0])), max(1, round(scale * image_size[1]))


def _score_panels(
    small: Image.Image, levels: Sequence[LevelTokens], image_size: Size
) -> list[tuple[tuple[str, str], Image.Image]]:
    scores = np.concatenate([level.scores.ravel() for level in levels if level.scores is not None])
    bounds = float(scores.min()), float(scores.max())
    title = (f"score logits, {bounds[0]:.1f} (violet)", f"to {bounds[1]:.1f} (yellow)")
    return [(title, draw_scores(small, level, image_size, bounds)) for level in levels]


def _grid(panels: Sequence[tuple[tuple[str, str], Image.Image]], columns: int) -> Image.Image:
    """Pictures of one size, each below its two lines of text."""
    first = panels[0][1]
    width = max([first.width, *(_text_width(line) for title, _ in panels for line in title)])
    height = 2 * _LINE + first.height
    rows = -(-len(panels) // columns)
    page = Image.new(
        "RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), _PAPER
    )
    draw = ImageDraw.Draw(page)
    for number, (title, picture) in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = column * (width + _GAP), row * (height + _GAP)
        for line, text in enumerate(title):
            draw.text((x, y + line * _LINE), text, font=_font(), fill=_INK)
        page.paste(picture, (x, y + 2 * _LINE))
    return page


def _page(
    head: str,
    left: Image.Image,
    grid: Image.Image,
    levels: Sequence[LevelTokens],
    output: DetectorOutput,
    image: int,
) -> Image.Image:
    """Both halves between a line of text above and the summary with its legend below."""
    summary = _summary(levels, output, image)
    layers = len(output.selections)
    legend = [] if _layers_agree(levels) else list(range(1, layers + 1))
    swatch = 2 * _TEXT
    words = _text_width(f"{summary};  kept by") + _GAP + len(legend) * swatch
    words = max(words + _text_width("layers"), _text_width(head))
    width = max(left.width + 2 * _GAP + grid.width, words) + 2 * _GAP
    top = _GAP + _LINE + _GAP
    page = Image.new("RGB", (width, top + max(left.height, grid.height) + top), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP), head, font=_font(), fill=_INK)
    page.paste(left, (_GAP, top))
    page.paste(grid, (left.width + 3 * _GAP, top))
    x, y = _GAP, page.height - _GAP - _LINE
    if legend:
        summary += ";  kept by"
    draw.text((x, y), summary, font=_font(), fill=_INK)
    x += _text_width(summary) + _GAP // 2
    for count, color in zip(legend, _ramp(np.linspace(0, 1, layers + 1)[1:]), strict=False):
        draw.rectangle((x, y - 1, x + swatch - 3, y + _LINE - 2), fill=_rgb(color))
        draw.text((x + _TEXT // 2, y), str(count), font=_font(), fill=_ink_on(_rgb(color)))
        x += swatch
    if legend:
        draw.text((x + 2, y), "layers", font=_font(), fill=_INK)
    return page


def _pen(boxes: np.ndarray, long_side: int) -> tuple[int, float]:
    """Width of lines and size of type, in pixels, that neither get lost nor hide the objects."""
    unit = long_side / 1000
    line, size = _BOX_LINE * unit, _BOX_TYPE * unit
    if len(boxes):
        side = float(np.median((boxes[:, 2:] - boxes[:, :2]).max(1)))
        line, size = min(line, side / 12), min(size, 0.6 * side)
    return max(1, round(line)), max(_LEAST_TYPE, size)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    canvas: tuple[int, int],
    box: np.ndarray,
    text: str,
    color: Color,
    size: float,
) -> None:
    """A label above the box, below it at the upper border, inside of it where both lack room."""
    font = _font(size)
    margin = math.ceil(0.2 * size)
    width, height = math.ceil(font.getlength(text)) + 2 * margin, round(1.3 * size)
    x = min(max(box[0], 0), max(canvas[0] - width, 0))
    y = box[1] - height
    if y < 0:
        y = box[3] if box[3] + height <= canvas[1] else box[1]
    draw.rectangle((x, y, x + width, y + height), fill=color)
    place = (x + margin, y + height / 2)
    draw.text(place, text, font=font, fill=_ink_on(color), anchor="lm")


# --- pixels ---------------------------------------------------------------------------------------


@cache
def _font(size: float = _TEXT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text_width(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


def _ink_on(color: Color) -> Color:
    brightness = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]
    return (0, 0, 0) if brightness > 128 else (255, 255, 255)


def _ramp(shares: np.ndarray) -> np.ndarray:
    """Colors (..., 3) of numbers in [0, 1]."""
    places = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(shares, places, channel) for channel in _RAMP.T], axis=-1)


def _rgb(color: np.ndarray) -> Color:
    red, green, blue = (round(float(part)) for part in color)
    return red, green, blue


def _borders(values: np.ndarray) -> np.ndarray:
    """True at pixels whose right or lower neighbor has another value, and at theirs."""
    border = np.zeros(values.shape, dtype=bool)
    right, below = values[:, 1:] != values[:, :-1], values[1:] != values[:-1]
    border[:, :-1] |= right
    border[:, 1:] |= right
    border[:-1] |= below
    border[1:] |= below
    return border


def _to_picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
