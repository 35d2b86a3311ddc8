"""COCO instances files and LVIS's dialect of them."""

import glob
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from sparsedet.data.errors import DatasetError
from sparsedet.data.formats.foreign import describe_file, describe_json
from sparsedet.data.formats.json_file import read_json
from sparsedet.data.formats.source import SPLITS, Source, check_image_folder, names_of_split
from sparsedet.data.validate import Effect, Findings, check_document
from sparsedet.data.validate.segmentation import box_of_segmentation, pack_polygons

_LISTS = ("images", "annotations", "categories")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def holds_coco(folder: str) -> bool:
    """Whether a folder has the layout of COCO, or of exports with a JSON file per part."""
    inside = glob.escape(folder)
    patterns = ("annotations/instances_*.json", "*/_annotations.coco.json")
    return any(glob.glob(os.path.join(inside, pattern)) for pattern in patterns)


def read_coco(path: str, images: str | None, split: str | None, findings: Findings) -> Source:
    """Reads an instances file.

    Args:
        path: the JSON file (UTF-8, with or without byte order mark), or a folder with
            `annotations/instances_SPLIT*.json` beside `SPLIT*/`, or `SPLIT/_annotations.coco.json`
            beside its pictures.
        images: folder of the pictures; None opens none unless `path` is a folder.
        split: which part of the folder; a file is one part.
        findings: where faults are noted.

    Raises:
        DatasetError: the file is missing, of another format, is not JSON or lacks a list.
    """
    if os.path.isdir(path):
        path, found = _part(path, split)
        images = images or found
    other = describe_file(path)
    if other is not None and os.path.isfile(path):
        raise DatasetError(f"annotation file {path!r} {other}")
    document = read_json(path, _LISTS, entry=_packed)
    other = describe_json(document)
    if other is not None:
        raise DatasetError(f"annotation file {path!r} {other}")
    document = check_document(document, path)
    if images is not None:
        check_image_folder(images)
    _name_by_address(document["images"])
    if any(key in image for image in document["images"][:1] for key in _FEDERATED):
        findings.warn(
            "'neg_category_ids' and 'not_exhaustive_category_ids'",
            "not used: COCO's AP assumes that every image is labeled for every class, so it is "
            "lower than LVIS's own AP. For that, evaluate predictions.json with the lvis package.",
        )
    _box_segmentations(document, findings)
    return Source(
        path=path,
        format="coco",
        root=images,
        categories=document["categories"],
        images=document["images"],
        annotations=document["annotations"],
        files=[path],
    )


def coco_parts(path: str) -> tuple[str, ...]:
    """The parts of a folder; empty for a file, which is one part."""
    return tuple(name for name in SPLITS if os.path.isdir(path) and _found(path, name))


def _part(folder: str, split: str | None) -> tuple[str, str]:
    """Annotation file and picture folder of a part of a folder."""
    clear = _found(folder, split or "*")
    if clear is not None:
        return clear
    inside = glob.escape(folder)
    found = glob.glob(os.path.join(inside, "*", "*.json"))
    listed = ", ".join(sorted(os.path.relpath(each, folder) for each in found)[:6]) or "none"
    part = split or "SPLIT"
    raise DatasetError(
        f"{folder}: it is not clear which file is the part {part}. There must be one file "
        f"annotations/instances_{part}*.json and one folder {part}*, or "
        f"{part}/_annotations.coco.json; there are {listed}. Name a part (split), or give the "
        "annotation file and the folder of each (dataset.train_json, dataset.train_images, "
        "dataset.val_json, dataset.val_images)."
    )


def _found(folder: str, split: str) -> tuple[str, str] | None:
    inside = glob.escape(folder)
    for name in names_of_split(split):
        exported = glob.glob(os.path.join(inside, name, "_annotations.coco.json"))
        if len(exported) == 1:
            return exported[0], os.path.dirname(exported[0])
        files = glob.glob(os.path.join(inside, "annotations", f"instances_{name}*.json"))
        pictures = glob.glob(os.path.join(inside, f"{name}*", ""))
        if len(files) == 1 and len(pictures) == 1:
            return files[0], os.path.dirname(pictures[0])
    return None


def read_whole(path: str) -> dict[str, Any]:
    """The content of an instances file that `read_coco` has read, with all fields.

    Polygons may be arrays with the same numbers.

    Raises:
        DatasetError: the file has changed and is no longer valid.
    """
    return check_document(read_json(path, _LISTS, entry=partial(_packed, exactly=True)), path)


def _packed(entry: dict, *, exactly: bool = False) -> dict:
    if "segmentation" in entry:
        entry["segmentation"] = pack_polygons(entry["segmentation"], exactly=exactly)
    return entry


def _name_by_address(images: Sequence[dict]) -> None:
    """LVIS names a picture by its address alone: folder and file are its last two parts."""
    for image in images:
        if image.get("file_name") is None and isinstance(image.get("coco_url"), str):
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])


def _box_segmentations(document: dict[str, Any], findings: Findings) -> None:
    """Gives annotations without a box the bounding box of their segmentation."""
    for place, entry in enumerate(document["annotations"]):
        if entry.get("bbox") in (None, []) and entry.get("segmentation"):
            box = box_of_segmentation(entry["segmentation"])
            if box is not None:
                entry["bbox"] = box
                findings.warn(
                    f"annotation {entry.get('id', place)}",
                    "it has no 'bbox'; the box around its 'segmentation' is used.",
                    Effect.CHANGED,
                )
