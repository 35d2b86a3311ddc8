"""The field `area`: a number, and of the same unit as width x height."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsedet.data.validate.fields import number, said_as_text
from sparsedet.data.validate.findings import Effect, Findings
from sparsedet.data.validate.segmentation import area_of_segmentation

# The area of a mask is part of its box: little of it where an object is thin and lies aslant.
# Rounded corners and counted pixels exceed a small box by up to a pixel on each side.
_LEAST_SHARE = 0.02
_MOST_SHARE = 1.05
_SUSPICIOUS = 0.05  # share of the boxes from which it is no longer taken for thin objects
_FEW = 4  # so many equal areas, or equal shares, are no chance
_EQUAL_SHARE = 0.3  # no shape of an object that all of them have fills so little of its box


def read_area(entry: Mapping[str, Any], label: str, findings: Findings) -> float | None:
    """The area of an entry; None where it has none that can be used."""
    given = entry.get("area")
    area = number(given)
    if area is not None and area > 0:
        if isinstance(given, str):
            findings.warn(label, said_as_text("its 'area'"))
        return area
    if given is not None:
        fault = "its 'area' is not a positive number; width x height is used."
        findings.warn(label, fault, Effect.CHANGED)
    return None


def lies_within(area: Any, width: Any, height: Any) -> Any:
    """Whether areas are not larger than boxes of these sizes; numbers or arrays."""
    return area <= _MOST_SHARE * (width + 1) * (height + 1)


def check_areas(
    entries: Sequence[Mapping[str, Any]],
    boxes_xywh: Sequence[Sequence[float]],
    areas: Sequence[float],
    labels: Sequence[str],
    findings: Findings,
) -> list[int]:
    """Says so where the areas of a set are in another unit than its boxes, or made up.

    Single areas are left alone: those of masks may be any part of the box.

    Args:
        entries: annotations; a `segmentation` that has the area proves it right.
        boxes_xywh: their boxes, not clipped, with a width and a height.
        areas: their areas.
        labels: how messages call them.
        findings: where it is noted.

    Returns:
        Which of the entries have an area that is doubtful.
    """
    if not entries:
        return []
    sizes, area = np.array(boxes_xywh)[:, 2:], np.array(areas)
    with np.errstate(divide="ignore", over="ignore"):  # a box may be narrower than floats tell
        share = area / sizes.prod(axis=1)
        suspects = (share < _LEAST_SHARE) | ~lies_within(area, sizes[:, 0], sizes[:, 1])
    if _all_equal(area) and not _all_equal(sizes.prod(axis=1), 1.5):
        suspects[:] = True
    if _all_equal(share) and np.median(share) < _EQUAL_SHARE:
        suspects[:] = True
    if _are_lengths(area, sizes):
        suspects[:] = True
    if suspects.mean() < _SUSPICIOUS:
        return []
    found: list[int] = np.flatnonzero(suspects).tolist()
    places = [place for place in found if not _is_proven(entries[place], areas[place])]
    if len(places) < _SUSPICIOUS * len(entries):
        return []
    fault = (
        f"'area' does not fit width x height ({len(places)} of {len(entries)}; the median is "
        f"{np.median(share[places]):.2g} of it), so AP by size is wrong. Write it in square "
        "pixels, or delete it: without it, width x height is used."
    )
    for place in places:
        findings.warn(labels[place], fault)
    return places


def _are_lengths(area: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether what stands for areas are sides, roots of areas or lengths of outlines."""
    width, height = sizes.T
    lengths = (width, height, np.sqrt(width * height), width + height, 2 * (width + height))
    alike = [np.allclose(area, each, rtol=1e-3) for each in lengths]
    return len(area) >= _FEW and any(alike) and not _all_equal(sizes.min(axis=1))


def _all_equal(values: np.ndarray, ratio: float = 1.001) -> bool:
    return len(values) >= _FEW and values.max() < ratio * values.min()


def _is_proven(entry: Mapping[str, Any], area: float) -> bool:
    if not entry.get("segmentation"):
        return False
    found = area_of_segmentation(entry["segmentation"])
    # counted pixels of a thin object are more than its polygon has
    return found is not None and (math.isclose(found, area, rel_tol=0.5, abs_tol=16))
