"""Boxes with classes on a picture."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sparsedet.structures import Instances
from sparsedet.visualization.ink import Color, font, ink_on

_BOX_LINE, _BOX_TYPE = 2.0, 14.0  # of boxes, where a picture's long side has 1000 pixels
_LEAST_TYPE = 10.0
_CLASS_COLORS: tuple[Color, ...] = (
    (255, 127, 14), (31, 160, 240), (60, 200, 80), (240, 60, 70), (190, 120, 240),
    (0, 206, 209), (255, 120, 200), (200, 200, 40), (150, 110, 90), (170, 170, 170),
)  # fmt: skip


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
    face = font(size)
    margin = math.ceil(0.2 * size)
    width, height = math.ceil(face.getlength(text)) + 2 * margin, round(1.3 * size)
    x = min(max(box[0], 0), max(canvas[0] - width, 0))
    y = box[1] - height
    if y < 0:
        y = box[3] if box[3] + height <= canvas[1] else box[1]
    draw.rectangle((x, y, x + width, y + height), fill=color)
    place = (x + margin, y + height / 2)
    draw.text(place, text, font=face, fill=ink_on(color), anchor="lm")
