"""Check boxes, clip them to their images, and recognize data sets with boxes of another format."""

from typing import Any

import numpy as np

from sparsedet.data.validate.fields import number, similar_key
from sparsedet.data.validate.findings import Effect, Findings

# Boxes may leave the image by this many pixels without a warning: exporters round.
_ROUNDING = 1.0
_REMEDY = "Correct or delete the annotation."
_MANY = 20  # with this many boxes, a common pattern is no coincidence
_SUSPICIOUS = 0.05  # share of boxes that leave their image
_LOOK = "Look at them with sparsedet check-data --preview 9."


def read_box(value: Any) -> list[float] | None:
    """Four finite numbers, which may be written as strings; None if `value` is anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    numbers = [number(each) for each in value]
    return None if None in numbers else numbers  # pyright: ignore[reportReturnType]


def fault_of_box(entry: dict) -> str:
    """What is wrong with the `bbox` of an entry for which `read_box` returns None."""
    value = entry.get("bbox")
    if isinstance(value, dict):
        return (
            "'bbox' must be a list [x, y, width, height], not an object. Write a list; x and y are "
            "the upper left corner in pixels."
        )
    if not value and entry.get("keypoints") and not entry.get("segmentation"):
        return (
            "'bbox' must be four finite numbers. Keypoints do not replace it, since they lie "
            "inside of their object. Add 'bbox', or delete the annotation."
        )
    hint = similar_key(entry, "bbox")
    return f"'bbox' must be four finite numbers [x, y, width, height].{hint} {_REMEDY}"


def clip_boxes(
    boxes: list[list[float]],
    sizes: list[tuple[float, float]],
    labels: list[str],
    findings: Findings,
) -> list[list[float] | None]:
    """The boxes, clipped to their images; None for a box of which nothing is left."""
    if not boxes:
        return []
    xywh, limit = np.array(boxes), np.array(sizes)
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    _check_format(xywh, limit, findings)
    over = np.maximum(-low, high - limit).max(axis=1)
    inner_low, inner_high = np.maximum(low, 0), np.minimum(high, limit)
    no_size = np.any((xywh[:, 2:] <= 0) | (high <= low), axis=1)  # or too small for floats
    outside = np.any(inner_high <= inner_low, axis=1)
    _check_loss(np.logical_or(no_size, outside), findings)
    cleaned: list[list[float] | None] = list(boxes)
    for i in np.flatnonzero(no_size | outside | (over > _ROUNDING)):
        label = f"{labels[i]} (bbox [{', '.join(f'{v:g}' for v in boxes[i])}])"
        if no_size[i]:
            findings.warn(label, "its box has no width or height; left out.", Effect.LEFT_OUT)
            cleaned[i] = None
        elif outside[i]:
            findings.warn(label, "its box is outside of the image; left out.", Effect.LEFT_OUT)
            cleaned[i] = None
        else:
            findings.warn(label, "its box leaves the image; clipped.", Effect.CHANGED)
            cleaned[i] = np.concatenate((inner_low[i], inner_high[i] - inner_low[i])).tolist()
    return cleaned


def _check_loss(lost: np.ndarray, findings: Findings) -> None:
    if len(lost) >= 4 and lost.mean() >= 0.5:
        findings.error(
            f"{lost.sum()} of {len(lost)} boxes",
            "they have no width or height, or are outside of their image. They may be in another "
            "unit or order: COCO boxes are [x, y, width, height] in pixels.",
            whole=True,
        )


def _check_format(xywh: np.ndarray, limit: np.ndarray, findings: Findings) -> None:
    """Recognizes files in which all boxes are corners or fractions."""
    bounded = np.isfinite(limit).all(axis=1)
    if (np.abs(xywh) <= 1).all() and (xywh > 0).any() and (limit > 2).any():
        findings.error(
            "all boxes",
            "no number is above 1, so they look like fractions of the image. "
            "Multiply them by width and height: COCO boxes are [x, y, width, height] in pixels.",
            whole=True,
        )
        return
    if len(xywh) < 4 or not bounded.all():
        return
    leaves = np.any(xywh[:, :2] + xywh[:, 2:] > limit + _ROUNDING, axis=1)
    fits_as_corners = (xywh[:, 2:] > xywh[:, :2]).all() and (xywh[:, 2:] <= limit + 1).all()
    if leaves.mean() >= 0.25 and fits_as_corners:
        findings.error(
            "all boxes",
            f"{leaves.mean():.0%} leave their image, but all fit if read as corners "
            "[x1, y1, x2, y2]. Write them as [x, y, width, height].",
            whole=True,
        )
    elif len(xywh) >= _MANY:
        _compare_readings(xywh, limit, leaves.mean(), findings)


def _compare_readings(
    xywh: np.ndarray, limit: np.ndarray, leaving: float, findings: Findings
) -> None:
    """Warns if all boxes have a pattern that another order or unit would explain."""
    center, size = xywh[:, :2], xywh[:, 2:]
    readings = {
        "[center x, center y, width, height]": (center - size / 2, center + size / 2),
        "[y, x, height, width]": (center[:, ::-1], (center + size)[:, ::-1]),
    }
    for form, (low, high) in readings.items():
        fits = (low >= -_ROUNDING).all() and (high <= limit + _ROUNDING).all()
        if leaving >= _SUSPICIOUS and fits:
            findings.warn(
                "all boxes",
                f"{leaving:.0%} leave their image, but all fit if read as {form}. {_LOOK}",
            )
    across, down = ((center + size) / limit).max(axis=0)
    if max(across, down) <= 0.5:
        findings.warn(
            "all boxes",
            f"they lie in the upper left {across:.0%} x {down:.0%} of their images. They may "
            f"be in percent, or in pixels of smaller pictures. {_LOOK}",
        )
