"""Draw a sheet of training samples as the model gets them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparsedet.data import AnnotatedDataset, DetectionDataset, SampleKey
from sparsedet.visualization import class_color, draw_targets

__all__ = ["preview_sheet"]

_CELL, _LARGEST_CELL = 480, 640  # long side of a picture on the sheet, in pixels
_SIDE = 36  # preferred size of the median box on the sheet, in pixels
_SHEET = 2000  # width of the sheet
_LABELLED = 12  # pictures with more boxes have no room for their names
_GAP, _LINE, _TYPE = 12, 20, 15
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


def preview_sheet(
    dataset: AnnotatedDataset, mapper: Any, *, count: int, seed: int = 0
) -> Image.Image:
    """Draw samples of a data set after its mapper, with boxes and names.

    Args:
        dataset: result of `open_dataset`, with its pictures.
        mapper: mapper of the training loader.
        count: number of samples; if there are fewer pictures, some are shown more than once.
        seed: seed of the choice of pictures and of their augmentation.

    Raises:
        ValueError: `count` is below 1.
        DatasetError: no picture can be decoded.
    """
    if count < 1:
        raise ValueError(f"preview_sheet.count must be at least 1, got {count}. Set --preview.")
    samples = _draw(dataset, mapper, count, seed)
    cell = _cell_side(samples)
    columns = max(1, min(math.ceil(math.sqrt(count)), (_SHEET + _GAP) // (cell + _GAP)))
    panels = [_panel(sample, cell, dataset.class_names) for sample in samples]
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) + _GAP for row in rows]
    width = min(columns, len(panels)) * (cell + _GAP) + _GAP
    legend = _legend(samples, dataset.class_names, width - 2 * _GAP)
    top = _GAP + legend.height + _GAP
    sheet = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    sheet.paste(legend, (_GAP, _GAP))
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel, (_GAP + column * (cell + _GAP), top))
        top += height
    return sheet


def _draw(dataset: AnnotatedDataset, mapper: Any, count: int, seed: int) -> list[dict[str, Any]]:
    order = list(range(len(dataset.records)))
    random.Random(seed).shuffle(order)
    samples = DetectionDataset(dataset.records, mapper, seed=seed, replace_broken=True)
    return [samples[SampleKey(order[i % len(order)], repeat=i // len(order))] for i in range(count)]


def _cell_side(samples: Sequence[dict[str, Any]]) -> int:
    """Side of a cell, large enough to see the boxes, within limits."""
    sides = [
        box_area**0.5 * _CELL / max(sample["image"].shape[-2:])
        for sample in samples
        for box_area in sample["instances"].gt_boxes.area().tolist()
    ]
    wanted = _CELL * _SIDE / float(np.median(sides)) if sides else _CELL
    return round(min(max(wanted, _CELL), _LARGEST_CELL))


def _legend(
    samples: Sequence[dict[str, Any]], class_names: Sequence[str], width: int
) -> Image.Image:
    """The names of the classes on the sheet, with their colors."""
    numbers = [sample["instances"].gt_classes.tolist() for sample in samples]
    shown: list[int] = sorted({label for each in numbers for label in each})
    font, x, y = ImageFont.load_default(_TYPE), 0, 0
    places: list[tuple[int, int, int]] = []
    for label in shown:
        length = _LINE + math.ceil(font.getlength(class_names[label])) + _GAP
        if x and x + length > width:
            x, y = 0, y + _LINE
        places.append((label, x, y))
        x += length
    legend = Image.new("RGB", (width, y + _LINE), _PAPER)
    draw = ImageDraw.Draw(legend)
    for label, x, y in places:
        draw.rectangle((x, y + 2, x + _TYPE - 2, y + _TYPE), fill=class_color(label))
        draw.text((x + _LINE, y), class_names[label], font=font, fill=_INK)
    return legend


def _panel(sample: dict[str, Any], cell: int, class_names: Sequence[str]) -> Image.Image:
    """A sample below its file name and its size at the model's input."""
    pixels, targets = sample["image"], sample["instances"]
    height, width = pixels.shape[-2:]
    scale = cell / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(
        size, Image.Resampling.BICUBIC
    )
    number = len(targets.gt_classes)
    words = f"{width} x {height}, {number} box{'' if number == 1 else 'es'}"
    panel = Image.new("RGB", (cell, _LINE + picture.height), _PAPER)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(_TYPE)
    room = cell - math.ceil(font.getlength(f"   {words}"))
    name = _fitting(sample["file_name"].replace("\\", "/").rsplit("/", 1)[-1], font, room)
    draw.text((0, 0), f"{name}   {words}", font=font, fill=_INK)
    names = class_names if number <= _LABELLED else None  # the legend has them
    panel.paste(draw_targets(picture, targets, class_names=names), (0, _LINE))
    return panel


def _fitting(name: str, font: Any, room: int) -> str:
    """A name that is shortened at its start, since names often differ at the end."""
    if font.getlength(name) <= room:
        return name
    while name and font.getlength(f"...{name}") > room:
        name = name[1:]
    return f"...{name}"
