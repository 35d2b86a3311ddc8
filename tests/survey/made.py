"""Sets of pictures that exist as numbers alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from sparsedet.data import open_dataset
from sparsedet.survey.numbers import Part

_numbers = itertools.count()

Picture = tuple[int, int, Sequence[tuple[int, int, int]]]  # height, width, (w, h, class) of boxes


def make_set(folder: Path, pictures: Sequence[Picture], classes: Sequence[str] = ("a",)) -> Path:
    """A COCO file; boxes lie at the upper left corner."""
    content = {"images": [], "annotations": [], "categories": []}
    for place, (height, width, boxes) in enumerate(pictures):
        name = f"{place}.png"
        content["images"].append({"id": place, "file_name": name, "height": height, "width": width})
        for w, h, label in boxes:
            entry = {"id": len(content["annotations"]) + 1, "image_id": place, "iscrowd": 0}
            shift = len(content["annotations"]) % 7 / 8  # equal boxes would be warned about
            entry |= {"bbox": [shift, 0, w, h], "category_id": label + 1, "area": w * h}
            content["annotations"].append(entry)
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    path = folder / f"made{next(_numbers)}.json"
    path.write_text(json.dumps(content))
    return path


def make_part(
    folder: Path,
    pictures: Sequence[Picture],
    *,
    name: str = "training",
    classes: Sequence[str] = ("a",),
) -> Part:
    """The numbers of such a set."""
    return Part.of(name, open_dataset(make_set(folder, pictures, classes)))
