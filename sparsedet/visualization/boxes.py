"""Draw boxes with classes on a picture."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sparsedet.structures import Instances
from sparsedet.visualization.ink import Color, font, ink_on

_BOX_LINE, _BOX_TYPE = 2.0, 14.0  # line width and font size for a long side of 1000 pixels
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
    """Draw boxes with class and score on a copy of the picture, the highest scores on top.

    Lines and text scale with the picture, and are smaller if the boxes are small. A class has the
    same color in all pictures.

    Args:
        picture: the image, at any scale.
        instances: detections (``pred_boxes``, ``scores``, ``pred_classes``); their ``image_size``
            is that of the unscaled image.
        class_names: names by class index; None = show class numbers.
        score_threshold: detections with lower scores are left out.
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
    """Draw the boxes and classes that a model is trained on, the smallest on top.

    Args:
        picture: the image, at any scale.
        instances: targets (``gt_boxes``, ``gt_classes``); their ``image_size`` is that of the
            unscaled image.
        class_names: names by class index; None = show classes only by color.
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
    """Draw boxes (N, 4), xyxy in pixels, on a copy of the picture; the last one on top."""
    shown = picture.convert("RGB")
    draw = ImageDraw.Draw(shown)
    line, size = _pen(boxes, max(shown.size))
    for box, label, text in zip(boxes, classes, words, strict=True):
        draw.rectangle(box.tolist(), outline=class_color(label), width=line)
        if text:
            _draw_label(draw, shown.size, box, text, class_color(label), size)
    return shown


def class_color(label: int) -> Color:
    """The color of a class, which depends only on its number."""
    if label < len(_CLASS_COLORS):
        return _CLASS_COLORS[label]
    hue = label * (math.sqrt(5) - 1) / 2 % 1  # golden ratio: neighboring numbers differ much
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _pen(boxes: np.ndarray, long_side: int) -> tuple[int, float]:
    """Line width and font size in pixels that are visible but do not hide the objects."""
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
    """Draw a label above the box, or below it, or inside if there is no room for either."""
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
