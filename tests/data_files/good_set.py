"""A good data set of four small pictures, drawn here, and how a set is written."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = WIDTH, HEIGHT = 96, 64
COLORS = {1: (210, 40, 30), 2: (30, 40, 210)}  # by category id: red things and blue things


@cache
def scene(seed: int, *, count: int = 3) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """A gray mosaic with colored rectangles side by side: pixels, boxes (xywh), category ids."""
    draw = np.random.default_rng([2026, seed])
    tiles = draw.integers(100, 156, (HEIGHT // 8, WIDTH // 8, 1))
    pixels = np.kron(tiles, np.ones((8, 8, 3), np.uint8)).astype(np.uint8)
    boxes, categories = [], []
    for place in range(count):
        width, height = (int(value) for value in draw.integers(12, 24, 2))
        left = place * (WIDTH // 3) + int(draw.integers(WIDTH // 3 - width))
        top = int(draw.integers(HEIGHT - height))
        categories.append(1 + (seed + place) % 2)
        pixels[top : top + height, left : left + width] = COLORS[categories[-1]]
        boxes.append([left, top, width, height])
    return pixels, boxes, categories


def picture_of(seed: int) -> Image.Image:
    """The picture of a scene."""
    return Image.fromarray(scene(seed)[0])


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass
class Draft:
    """A set that is still being written.

    Attributes:
        document: the COCO file.
        pictures: bytes of the files in the image folder, by name; None is a folder.
        beside: bytes of further files, by path from the annotation file.
        text: what stands in the annotation file instead of `document`.
    """

    document: dict[str, Any]
    pictures: dict[str, bytes | None] = field(default_factory=dict)
    beside: dict[str, bytes] = field(default_factory=dict)
    text: bytes | None = None

    @property
    def images(self) -> list[dict[str, Any]]:
        return self.document["images"]

    @property
    def objects(self) -> list[dict[str, Any]]:
        return self.document["annotations"]

    @property
    def categories(self) -> list[dict[str, Any]]:
        return self.document["categories"]

    def add_image(
        self,
        name: str,
        boxes: Sequence[Sequence[float]],
        categories: Sequence[int],
        size: tuple[int, int] = SIZE,
    ) -> None:
        """List a picture and its objects."""
        entry = {"id": len(self.images) + 1, "file_name": name, "width": size[0], "height": size[1]}
        self.images.append(entry)
        for box, category in zip(boxes, categories, strict=True):
            self.add_object(entry["id"], box, category)

    def add_object(
        self, image_id: int, box: Sequence[float], category: int, *, iscrowd: int = 0
    ) -> dict[str, Any]:
        """Annotate an object."""
        entry = {
            "id": len(self.objects) + 1,
            "image_id": image_id,
            "category_id": category,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": iscrowd,
        }
        self.objects.append(entry)
        return entry

    def write(self, folder: Path) -> None:
        """Make `instances.json` and `images` in a folder."""
        (folder / "images").mkdir(parents=True)
        text = json.dumps(self.document, ensure_ascii=False).encode()
        contents: dict[str, bytes | None] = {
            "instances.json": text if self.text is None else self.text,
            **self.beside,
            **{f"images/{name}": content for name, content in self.pictures.items()},
        }
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)


@cache
def _good_pictures() -> dict[str, bytes]:
    return {f"img{i}.jpg": stored(picture_of(i), "JPEG", quality=90) for i in range(1, 5)}


def good() -> Draft:
    """Four pictures with three objects each."""
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    draft = Draft({"images": [], "annotations": [], "categories": categories})
    for seed, (name, content) in enumerate(_good_pictures().items(), 1):
        draft.add_image(name, *scene(seed)[1:])
        draft.pictures[name] = content
    return draft
