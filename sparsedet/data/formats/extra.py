"""Parsers of VOC and YOLO from `supervision`, which only this module imports."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar, cast
from xml.etree.ElementTree import Element

from sparsedet.data.errors import DatasetError

Box = list[float]
Entry = TypeVar("Entry")
Class = TypeVar("Class")


@dataclass(frozen=True)
class Parsers:
    """The functions of `supervision` that are used.

    Its loaders of whole folders are not used: the VOC loader decodes every picture, and neither
    handles difficult objects, parts of a folder or single faulty files.

    Args:
        parse_xml: root of an XML file; refuses entities, which could exhaust memory.
        parse_objects: boxes (xyxy, pixels) and class names of a VOC `<annotation>`; raises a
            ValueError.
        parse_rows: boxes (xyxy, fractions) and class indices of YOLO rows; raises a ValueError.
    """

    parse_xml: Callable[[str], Element]
    parse_objects: Callable[[Element], tuple[list[Box], list[str]]]
    parse_rows: Callable[[list[str]], tuple[list[Box], list[int]]]


def supervision_parsers() -> Parsers:
    """Import the parsers.

    Raises:
        DatasetError: `supervision` is not installed.
    """
    try:
        with warnings.catch_warnings():
            # it warns about missing OpenCV, which is not needed here
            warnings.simplefilter("ignore")
            from defusedxml import ElementTree
            from supervision.dataset.formats import pascal_voc, yolo
    except ImportError as error:
        raise DatasetError(
            f"reading Pascal VOC and YOLO needs the package supervision ({error}). Install it with "
            "pip install 'sparsedet[formats]', or give COCO files."
        ) from None
    return Parsers(
        parse_xml=lambda path: cast(Element, ElementTree.parse(path).getroot()),
        parse_objects=lambda element: _objects(pascal_voc, element),
        parse_rows=lambda rows: _rows(yolo, rows),
    )


def parse_all(
    parse: Callable[[list[Entry]], tuple[list[Box], list[Class]]], entries: list[Entry]
) -> tuple[list[tuple[Box, Class] | None], dict[int, ValueError]]:
    """Box and class of each entry; None, and the error by its index, where it has none.

    All are parsed at once, and one by one only if that fails.
    """
    try:
        return list(zip(*parse(entries), strict=True)), {}
    except ValueError as error:
        if len(entries) == 1:
            return [None], {0: error}
    found, errors = [], {}
    for index, entry in enumerate(entries):
        one, failed = parse_all(parse, [entry])
        found += one
        if failed:
            errors[index] = failed[0]
    return found, errors


def _objects(pascal_voc: ModuleType, element: Element) -> tuple[list[Box], list[str]]:
    # the size is only used for masks
    found, names = pascal_voc.detections_from_xml_obj(element, [], (1, 1))
    return found.xyxy.tolist(), [names[index] for index in found.class_id]


def _rows(yolo: ModuleType, rows: list[str]) -> tuple[list[Box], list[int]]:
    found = yolo.yolo_annotations_to_detections(rows, (1, 1), with_masks=False)
    return found.xyxy.tolist(), found.class_id.tolist()
