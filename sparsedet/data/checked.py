"""Read a data set in any format and run all checks in order."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sparsedet.data.formats import Source, check_image_folder, read_source
from sparsedet.data.picture_files import Inspector, check_files, check_names, inspect_headers
from sparsedet.data.reading import PictureSettings
from sparsedet.data.validate import (
    CleanAnnotation,
    Findings,
    check_categories,
    check_images,
    clean_annotations,
)


@dataclass(frozen=True)
class Checked:
    """The usable part of a source.

    Args:
        source: the source, with empty lists to save memory.
        num_images: number of image entries that were read.
        num_annotations: number of annotations that were read.
        categories: (id, name) in the order of the classes.
        images: the usable image entries, with their sizes if they are known.
        objects: the usable annotations, by image id.
    """

    source: Source
    num_images: int
    num_annotations: int
    categories: list[tuple[int, str]]
    images: list[dict[str, Any]]
    objects: dict[Any, list[CleanAnnotation]]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses garbage collection, since millions of objects are created and all are needed.

    With COCO's training set the collection would take longer than the checks.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@collector_paused()
def read_checked(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    *,
    split: str | None,
    format: str,
    skip_broken: bool,
    pictures: PictureSettings | None,
    findings: Findings,
    inspect: Inspector = inspect_headers,
) -> Checked:
    """Reads and checks a data set.

    Args:
        annotations: file or folder.
        images: folder of the pictures, if the format does not define it.
        split: the part of a set with several parts.
        format: as for `read_source`.
        skip_broken: leave out unreadable pictures with a warning.
        pictures: how the files will be read.
        findings: collects faults; if it does not raise, faulty entries are left out.
        inspect: inspects the picture files.

    Raises:
        DatasetError: it cannot be read, or has faults that are errors.
        ValueError: there is no such format.
    """
    path, folder = os.fspath(annotations), None if images is None else os.fspath(images)
    source = read_source(path, folder, split=split, format=format, findings=findings)
    findings.source = source.path
    findings.close()
    categories = check_categories(source.categories, source.annotations, findings)
    findings.close()
    by_id, unusable = check_images(source.images, findings)
    findings.close()
    unusable |= check_names(_without(by_id, unusable), source.root, findings)
    findings.close()  # file names that leave the folder must not be opened
    if source.root is not None:
        check_image_folder(source.root)
        usable = _without(by_id, unusable)
        unusable |= check_files(usable, source.root, findings, skip_broken, pictures, inspect)
        findings.close()
    entries = source.annotations
    if source.in_fractions:
        entries = _in_pixels(entries, by_id, unusable)
    objects = clean_annotations(entries, by_id, _classes(source, categories), findings)
    findings.close()
    counts = len(source.images), len(source.annotations)
    bare = replace(source, categories=[], images=[], annotations=[])
    return Checked(bare, *counts, categories, _without(by_id, unusable), objects)


def _without(images: dict[Any, dict], unusable: set) -> list[dict]:
    return [image for identity, image in images.items() if identity not in unusable]


def _classes(source: Source, categories: list[tuple[int, str]]) -> dict[Any, int]:
    """Class by category id.

    Faulty categories get a class, too, so that their objects are not reported as faulty as well.
    This has no other effect, since such a fault is an error.
    """
    faulty = (category.get("id") for category in source.categories)
    classes = {identity: 0 for identity in faulty if isinstance(identity, (int, str))}
    return classes | {identity: place for place, (identity, _) in enumerate(categories)}


def _in_pixels(annotations: list[dict], images: dict[Any, dict], unusable: set) -> list[dict]:
    """The annotations of usable images, in pixels; other images have no size."""
    annotations = [entry for entry in annotations if entry["image_id"] not in unusable]
    for entry in annotations:
        image = images[entry["image_id"]]
        scale = (image["width"], image["height"]) * 2
        entry["bbox"] = [value * factor for value, factor in zip(entry["bbox"], scale, strict=True)]
    return annotations
