"""Faults that data sets have, each as a function that puts it into a good set."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.data_files.good_set import (
    COLORS,
    HEIGHT,
    SIZE,
    WIDTH,
    Draft,
    picture_of,
    scene,
    stored,
)

Fault = Callable[[Draft], None]
FIFTH = 5  # the scene of the picture that a fault adds to the four good ones


def file(name: str, content: bytes | None, *, on_disk: str | None = None) -> Fault:
    """One more picture, whose file has this content (None: is a folder)."""

    def apply(draft: Draft) -> None:
        draft.add_image(name, *scene(FIFTH)[1:])
        draft.pictures[on_disk or name] = content

    return apply


def encoded(name: str, kind: str, change: Callable[[Image.Image], Image.Image]) -> Fault:
    """One more picture, in another encoding."""
    return file(name, stored(change(picture_of(FIFTH)), kind))


def sized(name: str, pixels: np.ndarray, box: list[int]) -> Fault:
    """One more picture of another size with one red object."""
    pixels = pixels.copy()
    x, y, width, height = box
    pixels[y : y + height, x : x + width] = COLORS[1]

    def apply(draft: Draft) -> None:
        draft.add_image(name, [box], [1], (pixels.shape[1], pixels.shape[0]))
        draft.pictures[name] = stored(Image.fromarray(pixels), "PNG")

    return apply


def unlisted(name: str) -> Fault:
    """A picture that the annotation file does not know."""
    return lambda draft: draft.pictures.update({name: stored(picture_of(FIFTH), "JPEG")})


def absent(name: str) -> Fault:
    """A picture that is listed alone."""
    return lambda draft: draft.add_image(name, *scene(FIFTH)[1:])


def outside(name: str) -> Fault:
    """A picture that lies outside of the image folder."""

    def apply(draft: Draft) -> None:
        draft.add_image(name, *scene(FIFTH)[1:])
        draft.beside[f"images/{name}"] = stored(picture_of(FIFTH), "PNG")

    return apply


def elsewhere(draft: Draft) -> None:
    """The folder of another set."""
    draft.pictures = {"other.jpg": stored(picture_of(FIFTH), "JPEG")}


def turned(name: str, *, as_shown: bool) -> Fault:
    """A camera's picture, held upright: stored lying, with EXIF orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = stored(picture_of(FIFTH), "JPEG", exif=exif, quality=90)

    def apply(draft: Draft) -> None:
        _, boxes, categories = scene(FIFTH)
        if as_shown:
            boxes = [[HEIGHT - y - height, x, height, width] for x, y, width, height in boxes]
        draft.add_image(name, boxes, categories, SIZE[::-1] if as_shown else SIZE)
        draft.pictures[name] = content

    return apply


def animation(name: str) -> Fault:
    """A film of three frames; the objects are those of the first."""
    frames = [picture_of(seed).quantize(32) for seed in (FIFTH, 6, 7)]
    return file(name, stored(frames[0], "GIF", save_all=True, append_images=frames[1:]))


def gigantic(side: int) -> bytes:
    """A PNG of a few bytes whose header speaks of side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(500))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def rewritten(change: Callable[[bytes], bytes]) -> Fault:
    """The text of the annotation file is not what it was."""

    def apply(draft: Draft) -> None:
        draft.text = change(json.dumps(draft.document).encode())

    return apply


def without(key: str) -> Fault:
    """The document lacks a list."""
    return lambda draft: draft.document.pop(key)


def holding(**lists: Any) -> Fault:
    """The document has something else for a list."""
    return lambda draft: draft.document.update(lists)


def second(kind: str, **values: Any) -> Fault:
    """The second entry of a list says something else."""
    return lambda draft: draft.document[kind][1].update(values)


def second_lacks(kind: str, key: str) -> Fault:
    """The second entry of a list lacks a field."""
    return lambda draft: draft.document[kind][1].pop(key)


def box(*numbers: Any) -> Fault:
    """The second object has another box."""
    return second("annotations", bbox=list(numbers))


def every(kind: str, change: Callable[[dict[str, Any]], Any]) -> Fault:
    """All entries of a list are changed."""

    def apply(draft: Draft) -> None:
        for entry in draft.document[kind]:
            change(entry)

    return apply


def lacks(*keys: str) -> Callable[[dict[str, Any]], None]:
    """A change that takes fields out of an entry."""

    def change(entry: dict[str, Any]) -> None:
        for key in keys:
            del entry[key]

    return change


def as_corners(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x, y, x + width, y + height]


def as_fractions(entry: dict[str, Any]) -> None:
    entry["bbox"] = [value / side for value, side in zip(entry["bbox"], SIZE * 2, strict=True)]


def category_ids(first: Any, other: Any) -> Fault:
    """The two categories have other ids, in the objects as well."""
    ids = {1: first, 2: other}

    def apply(draft: Draft) -> None:
        for entry in draft.categories:
            entry["id"] = ids[entry["id"]]
        for entry in draft.objects:
            entry["category_id"] = ids[entry["category_id"]]

    return apply


def image_ids(name: Callable[[int], Any]) -> Fault:
    """The pictures have other ids, in the objects as well."""

    def apply(draft: Draft) -> None:
        for entry in draft.images:
            entry["id"] = name(entry["id"])
        for entry in draft.objects:
            entry["image_id"] = name(entry["image_id"])

    return apply


def count_from_zero(draft: Draft) -> None:
    for number, entry in enumerate(draft.objects):
        entry["id"] = number


def crowd(draft: Draft) -> None:
    """One crowd region, whose mask covers most of the first picture."""
    entry = draft.add_object(1, [0, 0, 60, 40], 1, iscrowd=1)
    column = [40, HEIGHT - 40]
    counts = [0, *column * 60]
    counts[-1] += HEIGHT * (WIDTH - 60)
    entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}


def crowds_alone(draft: Draft) -> None:
    for entry in draft.objects:
        entry["iscrowd"] = int(entry["image_id"] == 2)


def only_images(*kept: int) -> Fault:
    """Objects of some pictures alone."""

    def apply(draft: Draft) -> None:
        draft.document["annotations"] = [e for e in draft.objects if e["image_id"] in kept]

    return apply


def a_single_image(draft: Draft) -> None:
    only_images(1)(draft)
    del draft.images[1:]


def packed(draft: Draft) -> None:
    """A picture with 500 small objects."""
    pixels = np.full((320, 320, 3), 128, np.uint8)
    boxes = [[4 + 12 * (i % 25), 4 + 15 * (i // 25), 8, 8] for i in range(500)]
    categories = [1 + i % 2 for i in range(500)]
    for (x, y, width, height), category in zip(boxes, categories, strict=True):
        pixels[y : y + height, x : x + width] = COLORS[category]
    draft.add_image("crowded.png", boxes, categories, (320, 320))
    draft.pictures["crowded.png"] = stored(Image.fromarray(pixels), "PNG")


def repeated_box(draft: Draft) -> None:
    for _ in range(50):
        draft.add_object(1, [10, 10, 20, 20], 1)


def swapped_in_validation(draft: Draft) -> None:
    """A second annotation file, whose categories have each other's ids."""
    other = json.loads(json.dumps(draft.document))
    for entry in other["categories"]:
        entry["id"] = 3 - entry["id"]
    for entry in other["annotations"]:
        entry["category_id"] = 3 - entry["category_id"]
    draft.beside["instances_val.json"] = json.dumps(other).encode()


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(100)
    return image


def see_through(image: Image.Image) -> Image.Image:
    image = image.quantize(16)
    image.info["transparency"] = 0
    return image


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
