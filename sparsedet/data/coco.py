"""COCO instances files: annotation JSON in, detectron2's records out.

This is the place that knows category ids; everything behind it sees contiguous classes.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..structures import BoxMode
from .errors import DatasetError
from .validate import (
    Findings,
    check_categories,
    check_document,
    check_files,
    check_images,
    clean_annotations,
)


@dataclass(frozen=True)
class CocoDataset:
    """A checked annotation file.

    Args:
        source: path of the annotation file.
        records: one dict per image: `file_name` (full path), `height`, `width`, `image_id`,
            `annotations` (dicts with `bbox`, `bbox_mode` = XYWH_ABS, `category_id` contiguous,
            `iscrowd`, `area`). Images without objects are there, too.
        class_names: name of each contiguous class.
        category_ids: id in the file of each contiguous class; None for a class it lacks.
    """

    source: str
    records: list[dict[str, Any]]
    class_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]


def read_document(annotations: str) -> dict[str, Any]:
    """The content of an annotation file, with its lists.

    Raises:
        DatasetError: the file is missing, is not JSON or lacks a list.
    """
    return check_document(_read_json(annotations), annotations)


def read_categories(annotations: str) -> list[tuple[int, str]]:
    """Category (id, name) pairs of an annotation file in the order of their ids.

    Raises:
        DatasetError: the file is missing or broken.
    """
    document = read_document(annotations)
    return check_categories(document["categories"], annotations)


def load_coco(
    annotations: str,
    images: str | None,
    *,
    class_names: Sequence[str] | None = None,
    skip_broken_images: bool = False,
) -> CocoDataset:
    """Reads and checks a COCO instances file.

    Args:
        annotations: path of the JSON file (UTF-8, with or without byte order mark).
        images: folder that `file_name` is relative to; None opens no image file (then
            `file_name` stays as it is).
        class_names: classes in their order, where another file (that of training) sets them;
            categories are matched by name. None takes the file's own, ordered by id.
        skip_broken_images: leave unreadable image files out with a warning instead of stopping.

    Raises:
        DatasetError: anything about the set that would make training or evaluation wrong.
    """
    document = read_document(annotations)
    pairs = check_categories(document["categories"], annotations)
    names = tuple(class_names) if class_names is not None else tuple(n for _, n in pairs)
    classes = match_classes(pairs, names, annotations)
    findings = Findings(annotations)
    by_id = check_images(document["images"], findings)
    skipped: set = set()
    if images is not None:
        findings.close()  # file names that leave the folder must not be opened
        check_image_folder(images)
        skipped = check_files(by_id.values(), images, findings, skip_broken_images)
        findings.close()
    objects = clean_annotations(document["annotations"], by_id, classes, findings)
    findings.close()
    records = [
        _record(image, images, objects.get(identity, []))
        for identity, image in by_id.items()
        if identity not in skipped
    ]
    _require_content(records, annotations)
    ids: list[int | None] = [None] * len(names)
    for category_id, place in classes.items():
        ids[place] = category_id
    return CocoDataset(annotations, records, names, tuple(ids))


def match_classes(
    pairs: Sequence[tuple[int, str]], class_names: Sequence[str], source: str
) -> dict[int, int]:
    """Contiguous class by category id, matched by name.

    Args:
        pairs: category (id, name).
        class_names: classes in their order.
        source: path of the annotation file, for the message.

    Raises:
        DatasetError: a category is none of the classes.
    """
    names = list(class_names)
    unknown = [name for _, name in pairs if name not in names]
    if unknown:
        raise DatasetError(
            f"{source}: category {unknown[0]!r} is not one of the {len(names)} classes "
            f"{_shorten(names)}. Use one list of categories in training and validation files."
        )
    return {category_id: names.index(name) for category_id, name in pairs}


def check_image_folder(images: str) -> None:
    """Raises a DatasetError unless `images` is a folder."""
    if not os.path.isdir(images):
        kind = "is not a folder" if os.path.exists(images) else "does not exist"
        raise DatasetError(
            f"image folder {images!r} {kind} ({_nearest_folder(images)}). "
            "Set dataset.train_images and dataset.val_images."
        )


def _read_json(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise DatasetError(
            f"annotation file {path!r}: {reason} ({_nearest_folder(path)}). "
            "Set dataset.train_json and dataset.val_json."
        ) from None
    if not raw.strip():
        raise DatasetError(f"annotation file {path!r} is empty. Write or fetch it again.")
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"annotation file {path!r} is not UTF-8 at byte {error.start}. Save it as UTF-8."
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(
            f"annotation file {path!r} is not valid JSON: {error}. Write or fetch it again."
        ) from None


def _nearest_folder(path: str) -> str:
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return f"nearest existing folder: {folder!r}"


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"({shown})" if len(names) <= 8 else f"({shown}, ...)"


def _record(image: dict, root: str | None, objects: list[dict]) -> dict[str, Any]:
    name = image["file_name"]
    return {
        "file_name": name if root is None else os.path.join(root, name),
        "height": image.get("height"),
        "width": image.get("width"),
        "image_id": image["id"],
        "annotations": [{**entry, "bbox_mode": BoxMode.XYWH_ABS} for entry in objects],
    }


def _require_content(records: list[dict], source: str) -> None:
    if not records:
        raise DatasetError(f"{source}: no image is left that can be read. Fetch them again.")
    if not any(record["annotations"] for record in records):
        raise DatasetError(
            f"{source}: there is not a single usable box, so there is nothing to learn and AP is "
            "undefined. Add annotations."
        )
