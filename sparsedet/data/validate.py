"""Checks of an annotation file and its images, before anything is trained on them.

Faults that make the meaning of the data doubtful stop with a `DatasetError`; single boxes that
cannot be used are left out with a warning. Equal faults are grouped: a thousand of them make one
message with a count.
"""

import difflib
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import DatasetError

_logger = logging.getLogger(__name__)
_already_logged: set[str] = set()

# Boxes may leave the image by this many pixels (rounding in exporters) without a word.
_ROUNDING = 1.0
_NAMES_SHOWN = 3
_HUGE = 1e300


class Findings:
    """Faults of one annotation file, grouped by kind.

    Args:
        source: path of the annotation file, the beginning of each message.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._errors: dict[str, list[str]] = {}
        self._warnings: dict[str, list[str]] = {}

    def error(self, name: str, fault: str) -> None:
        """Notes a fault that stops; `fault` says what is wrong and the mend."""
        self._errors.setdefault(fault, []).append(name)

    def warn(self, name: str, fault: str) -> None:
        """Notes a fault that is passed over; `fault` says what is done about it."""
        self._warnings.setdefault(fault, []).append(name)

    def close(self) -> None:
        """Logs the warnings, each once per process, and raises if there are errors.

        Raises:
            DatasetError: one message about all errors.
        """
        for fault, names in self._warnings.items():
            warn_once(f"{self.source}: {_join(names)}: {fault}")
        if self._errors:
            parts = [f"{_join(names)}: {fault}" for fault, names in self._errors.items()]
            rest = (
                f" And {len(parts) - _NAMES_SHOWN} more faults."
                if len(parts) > _NAMES_SHOWN
                else ""
            )
            raise DatasetError(f"{self.source}: " + " Also: ".join(parts[:_NAMES_SHOWN]) + rest)


def warn_once(message: str) -> None:
    """Logs a warning unless this process has logged the same one."""
    if message not in _already_logged:
        _already_logged.add(message)
        _logger.warning(message)


def check_document(document: Any, source: str) -> dict[str, list[Any]]:
    """Checks the top level of a COCO instances file.

    Returns:
        The document. One without `annotations` gets an empty list, if `images` and `categories`
        are there: pictures to evaluate on whose objects are kept back.

    Raises:
        DatasetError: it is no object, or a list is missing, of another type or empty.
    """
    if not isinstance(document, dict):
        raise DatasetError(
            f"{source}: the top level must be an object with 'images', 'annotations' and "
            f"'categories', got {type(document).__name__}. Give a COCO instances file."
        )
    for key in ("images", "annotations", "categories"):
        if key not in document:
            near = difflib.get_close_matches(key, [str(k) for k in document], n=1)
            if key == "annotations" and not near:  # as COCO's image_info files are
                document[key] = []
                continue
            hint = f" Did you mean its key '{near[0]}'?" if near else ""
            raise DatasetError(
                f"{source}: '{key}' is missing at the top level.{hint} "
                "Give a COCO instances file (images, annotations, categories)."
            )
        if not isinstance(document[key], list):
            raise DatasetError(
                f"{source}: '{key}' must be a list, got {type(document[key]).__name__}. "
                "Write it as a list of objects."
            )
        bad = [i for i, entry in enumerate(document[key]) if not isinstance(entry, dict)]
        if bad:
            raise DatasetError(f"{source}: '{key}'[{bad[0]}] must be an object. Correct it.")
    for key in ("images", "categories"):
        if not document[key]:
            raise DatasetError(f"{source}: '{key}' is empty. Add at least one entry.")
    return document


def check_categories(categories: Sequence[dict], source: str) -> list[tuple[int, str]]:
    """Checks the categories of an annotation file.

    Returns:
        (id, name) in the order of the ids.

    Raises:
        DatasetError: ids are no integers, names are no text, or either is there twice.
    """
    findings = Findings(source)
    pairs = []
    for category in categories:
        identity, name = category.get("id"), category.get("name")
        label = f"category {identity!r}"
        if not _is_integer(identity):
            findings.error(label, "'id' must be an integer. Renumber the categories.")
        elif not isinstance(name, str) or not name:
            findings.error(label, "'name' must be a text. Add one.")
        else:
            pairs.append((identity, name))
    findings.close()
    repeated = [pair for pair, count in Counter(pairs).items() if count > 1]
    for identity, name in repeated:
        findings.warn(f"category {identity} ({name!r})", "it is listed more than once.")
    pairs = list(dict.fromkeys(pairs))
    for identity, count in Counter(i for i, _ in pairs).items():
        if count > 1:
            findings.error(f"category {identity}", "the id is given twice. Renumber one.")
    for name, count in Counter(n for _, n in pairs).items():
        if count > 1:
            findings.error(f"category {name!r}", "two ids have this name. Join or rename them.")
    findings.close()
    return sorted(pairs)


def check_images(images: Sequence[dict], findings: Findings) -> dict[Any, dict]:
    """Checks ids, names and sizes of the image entries; opens no file.

    Returns:
        The entries by id.
    """
    by_id: dict[Any, dict] = {}
    names: Counter = Counter()
    for place, image in enumerate(images):
        identity = image.get("id")
        if not _is_integer(identity) and not isinstance(identity, str):
            findings.error(f"images[{place}]", "'id' must be an integer or a text. Add one.")
            continue
        label = f"image {identity}"
        if identity in by_id:
            findings.error(label, "the id is given twice. Renumber one of the images.")
        by_id[identity] = image
        if _check_file_name(image.get("file_name"), label, findings):
            names[image["file_name"]] += 1
        _check_size(image, label, findings)
    for name, count in names.items():
        if count > 1:
            findings.warn(f"file {name!r}", "several images name it; all are kept.")
    return by_id


def _check_file_name(name: Any, label: str, findings: Findings) -> bool:
    if not isinstance(name, str) or not name:
        findings.error(label, "'file_name' is missing. Add the path below the image folder.")
        return False
    parts = name.replace("\\", "/").split("/")
    if os.path.isabs(name) or parts[0] == "" or parts[0].endswith(":") or ".." in parts:
        findings.error(
            f"{label} ({name!r})",
            "'file_name' leaves the image folder. Write paths relative to that folder.",
        )
        return False
    return True


def _check_size(image: dict, label: str, findings: Findings) -> None:
    width, height = image.get("width"), image.get("height")
    if width is None and height is None:
        return
    if not (_is_size(width) and _is_size(height)):
        findings.error(
            f"{label} ({image.get('file_name')!r})",
            "'width' and 'height' must be positive integers. Correct or delete both.",
        )


def clean_annotations(
    annotations: Sequence[dict],
    images: dict[Any, dict],
    classes: dict[int, int],
    findings: Findings,
) -> dict[Any, list[dict]]:
    """Checks annotations and turns them into what records hold.

    Boxes of no size or outside of the image are left out; boxes that leave the image by more
    than a pixel are clipped; both are warned about. A missing `area` becomes width x height.

    Args:
        annotations: entries of the annotation file.
        images: image entries by id; where width and height are unknown nothing is clipped.
        classes: contiguous class by category id.
        findings: where faults are noted.

    Returns:
        By image id a list of dicts with `bbox` (xywh, pixels), `category_id` (contiguous),
        `iscrowd` and `area`.
    """
    kept, labels, boxes, sizes = [], [], [], []
    by_text = {str(identity): identity for identity in images}
    for place, entry in enumerate(annotations):
        label = f"annotation {entry['id']}" if "id" in entry else f"annotations[{place}]"
        box = _check_entry(entry, label, classes, findings)
        if box is None:
            continue
        if entry["image_id"] not in images and str(entry["image_id"]) in by_text:
            entry["image_id"] = by_text[str(entry["image_id"])]
            fault = "its 'image_id' and the 'id' of its image are a text and a number; matched."
            findings.warn(label, fault)
        image = images.get(entry["image_id"])
        if image is None:
            findings.warn(label, "its 'image_id' is not in 'images'; left out.")
            continue
        kept.append(entry)
        labels.append(label)
        boxes.append(box)
        sizes.append((image.get("width") or math.inf, image.get("height") or math.inf))
    _check_ids(annotations, findings)
    cleaned = _clip(boxes, sizes, labels, findings)
    by_image: dict[Any, list[dict]] = {}
    for entry, label, box in zip(kept, labels, cleaned, strict=True):
        if box is not None:
            by_image.setdefault(entry["image_id"], []).append(
                {
                    "bbox": box,
                    "category_id": classes[entry["category_id"]],
                    "iscrowd": int(bool(entry.get("iscrowd", 0))),
                    "area": _area(entry, box, label, findings),
                }
            )
    _check_repeated(by_image, findings)
    return by_image


def _check_entry(
    entry: dict, label: str, classes: dict[int, int], findings: Findings
) -> list[float] | None:
    for key in ("image_id", "category_id"):
        if key not in entry or isinstance(entry[key], (list, dict)):
            findings.error(label, f"'{key}' is missing. Add it or delete the annotation.")
            return None
    if entry["category_id"] not in classes:
        findings.error(
            f"{label} (category_id {entry['category_id']!r})",
            "its 'category_id' is not in 'categories'. Add the category or correct the id.",
        )
        return None
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(v) for v in box):
        findings.error(
            f"{label} (bbox {box!r})",
            "'bbox' must be four finite numbers [x, y, width, height]. "
            "Correct or delete the annotation.",
        )
        return None
    if entry.get("iscrowd") not in (0, 1, None):
        findings.error(
            f"{label} (iscrowd {entry['iscrowd']!r})", "'iscrowd' must be 0 or 1. Correct it."
        )
        return None
    return [float(v) for v in box]


def _check_ids(annotations: Sequence[dict], findings: Findings) -> None:
    counts = Counter(str(entry["id"]) for entry in annotations if "id" in entry)
    for identity, count in counts.items():
        if count > 1:
            findings.warn(f"annotation {identity}", "the id is given twice; both are kept.")


def _clip(
    boxes: list[list[float]],
    sizes: list[tuple[float, float]],
    labels: list[str],
    findings: Findings,
) -> list[list[float] | None]:
    """Boxes as they are, clipped, or None where there is nothing left to use."""
    if not boxes:
        return []
    xywh, limit = np.array(boxes), np.array(sizes)
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    _check_format(xywh, limit, findings)
    over = np.maximum(-low, high - limit).max(axis=1)
    inner_low, inner_high = np.maximum(low, 0), np.minimum(high, limit)
    no_size = np.any(xywh[:, 2:] <= 0, axis=1)
    outside = np.any(inner_high <= inner_low, axis=1)
    cleaned: list[list[float] | None] = list(boxes)
    for i in np.flatnonzero(no_size | outside | (over > _ROUNDING)):
        label = f"{labels[i]} (bbox [{', '.join(f'{v:g}' for v in boxes[i])}])"
        if no_size[i]:
            findings.warn(label, "its box has no width or height; left out.")
            cleaned[i] = None
        elif outside[i]:
            findings.warn(label, "its box is outside of the image; left out.")
            cleaned[i] = None
        else:
            findings.warn(label, "its box leaves the image; clipped.")
            cleaned[i] = np.concatenate((inner_low[i], inner_high[i] - inner_low[i])).tolist()
    return cleaned


def _check_format(xywh: np.ndarray, limit: np.ndarray, findings: Findings) -> None:
    """Recognizes files in which all boxes are corners or fractions."""
    bounded = np.isfinite(limit).all(axis=1)
    if (np.abs(xywh) <= 1).all() and (xywh > 0).any() and (limit > 2).any():
        findings.error(
            "all boxes",
            "no number is above 1, so they look like fractions of the image. "
            "Multiply them by width and height: COCO boxes are [x, y, width, height] in pixels.",
        )
        return
    if len(xywh) < 4 or not bounded.all():
        return
    leaves = np.any(xywh[:, :2] + xywh[:, 2:] > limit + _ROUNDING, axis=1)
    fits_as_corners = (xywh[:, 2:] > xywh[:, :2]).all() and (xywh[:, 2:] <= limit + 1).all()
    if leaves.mean() >= 0.25 and fits_as_corners:
        findings.error(
            "all boxes",
            f"{leaves.mean():.0%} leave their image, but all fit as corners [x1, y1, x2, y2]. "
            "Write them as [x, y, width, height].",
        )


def _area(entry: dict, box: list[float], label: str, findings: Findings) -> float:
    area = entry.get("area")
    if area is None:
        return box[2] * box[3]
    if not _is_finite(area) or area <= 0:
        findings.warn(label, "its 'area' is not positive; width x height is used.")
        return box[2] * box[3]
    return float(area)


def _check_repeated(by_image: dict[Any, list[dict]], findings: Findings) -> None:
    for identity, objects in by_image.items():
        different = {(o["category_id"], o["iscrowd"], *o["bbox"]) for o in objects}
        if len(different) < len(objects):
            findings.warn(
                f"image {identity} ({len(objects) - len(different)} boxes)",
                "the same box of the same category is there more than once; all are kept.",
            )


def _join(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -_HUGE < value < _HUGE  # math.isfinite fails on integers beyond floats
