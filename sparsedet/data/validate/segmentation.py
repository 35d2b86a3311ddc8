"""Boxes and areas of the polygons and run-length masks in COCO files."""

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pycocotools import mask

from sparsedet.data.validate.fields import number

_LISTS = (list, array)
_FAULTS = (TypeError, ValueError, KeyError, IndexError, OverflowError)


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """Box (xywh) around polygons or a run-length mask; None if `segmentation` is neither.

    Args:
        segmentation: a list of polygons [x1, y1, x2, y2, ...] or a dict with `counts` (a list or
            a compressed string) and `size` (h, w).
    """
    if isinstance(segmentation, dict):
        return _of_mask(segmentation, lambda runs: [float(v) for v in mask.toBbox(runs)])
    polygons = _polygons(segmentation)
    if polygons is None:
        return None
    x = [value for polygon in polygons for value in polygon[::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def pack_polygons(segmentation: Any, *, exactly: bool = False) -> Any:
    """The same polygons in a quarter of the memory; anything else is returned unchanged.

    Polygons take most of the memory of COCO's own files.

    Args:
        segmentation: the field of an annotation.
        exactly: leave polygons with integers unchanged, since 5 would become 5.0.
    """
    if not isinstance(segmentation, list):
        return segmentation
    if exactly and not all(
        isinstance(each, list) and {*map(type, each)} == {float} for each in segmentation
    ):
        return segmentation
    try:
        return [array("d", polygon) for polygon in segmentation]
    except (TypeError, OverflowError):
        return segmentation


def area_of_segmentation(segmentation: Any) -> float | None:
    """Sum of the areas of polygons, or the area of a run-length mask; None if it is neither."""
    if isinstance(segmentation, dict):
        return _of_mask(segmentation, lambda runs: float(mask.area(runs)))
    polygons = _polygons(segmentation)
    return None if polygons is None else sum(map(_polygon_area, polygons))


def _polygon_area(polygon: Sequence[float]) -> float:
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    edges = pairwise([*points, points[0]])
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in edges)) / 2


def _of_mask(segmentation: dict, measure: Any) -> Any:
    codec: Any = mask  # its types lack the format of the files
    try:
        if isinstance(segmentation["counts"], list):
            segmentation = codec.frPyObjects(segmentation, *segmentation["size"])
        return measure(segmentation)
    except _FAULTS:
        return None


def _polygons(segmentation: Any) -> list[list[float]] | None:
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], _LISTS) else [segmentation]
    found = []
    for polygon in polygons:
        numbers = [number(value) for value in polygon] if isinstance(polygon, _LISTS) else [None]
        if len(numbers) < 6 or len(numbers) % 2 or None in numbers:
            return None
        found.append(numbers)
    return found
