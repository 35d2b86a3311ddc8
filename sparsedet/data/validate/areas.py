"""Check the field `area`: it must be a number in the same unit as width x height."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsedet.data.validate.fields import number, said_as_text
from sparsedet.data.validate.findings import Effect, Findings
from sparsedet.data.validate.segmentation import area_of_segmentation

# The area of a mask is a part of its box, a small part if an object is thin and diagonal.
# Rounding and pixel counts may exceed a small box by up to a pixel on each side.
_LEAST_SHARE = 0.02
_MOST_SHARE = 1.05
_SUSPICIOUS = 0.05  # a larger share of small areas is not explained by thin objects
_FEW = 4  # this many equal areas, or equal shares, are not a coincidence
_EQUAL_SHARE = 0.3  # objects of the same shape fill more of their boxes than this


def read_area(entry: Mapping[str, Any], label: str, findings: Findings) -> float | None:
    """The area of an entry; None if it has no usable one."""
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
    """Whether areas fit into boxes of these sizes; numbers or arrays."""
    return area <= _MOST_SHARE * (width + 1) * (height + 1)


def check_areas(
    entries: Sequence[Mapping[str, Any]],
    boxes_xywh: Sequence[Sequence[float]],
    areas: Sequence[float],
    labels: Sequence[str],
    findings: Findings,
) -> list[int]:
    """Warns if the areas of a data set are in another unit than its boxes, or are invented.

    Single areas are not reported, since the area of a mask may be any part of the box.

    Args:
        entries: annotations; a `segmentation` with the same area confirms it.
        boxes_xywh: their unclipped boxes, with positive width and height.
        areas: their areas.
        labels: their names in messages.
        findings: collects faults.

    Returns:
        Indices of the entries with a doubtful area.
    """
    if not entries:
        return []
    sizes, area = np.array(boxes_xywh)[:, 2:], np.array(areas)
    with np.errstate(divide="ignore", over="ignore"):  # the product of tiny sides may underflow
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
    """Whether the areas are in fact sides, roots of areas or perimeters."""
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
    # the pixel count of a thin object exceeds the area of its polygon
    return found is not None and (math.isclose(found, area, rel_tol=0.5, abs_tol=16))
