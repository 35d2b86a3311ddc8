"""Formats of annotations: detect the format at a path, and read it as a `Source`."""

import os

from sparsedet.config.naming import locate
from sparsedet.data.errors import DatasetError
from sparsedet.data.formats.coco import coco_parts, holds_coco, read_coco
from sparsedet.data.formats.foreign import describe_file, describe_folder
from sparsedet.data.formats.source import Source, check_image_folder, missing_file
from sparsedet.data.formats.voc import holds_voc, read_voc, voc_parts
from sparsedet.data.formats.yolo import holds_yolo, read_yolo, yolo_parts
from sparsedet.data.validate import Findings

__all__ = ["FORMATS", "Source", "check_image_folder", "list_parts", "read_source"]

_READERS = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo}
_PARTS = {"coco": coco_parts, "voc": voc_parts, "yolo": yolo_parts}
FORMATS = tuple(_READERS)


def read_source(
    path: str, images: str | None, *, split: str | None, format: str, findings: Findings
) -> Source:
    """Reads the annotations at a path.

    Args:
        path: file or folder.
        images: folder of the pictures, if the format does not define it.
        split: the part of a set with several parts.
        format: one of `FORMATS`, "auto", or the dotted path of a custom reader, a function that
            takes `path`, `images`, `split` and `findings` and returns a `Source`.
        findings: collects faults.

    Raises:
        DatasetError: it cannot be read, or is in another format, which the message names.
        ValueError: there is no such format.
    """
    if "." in format:
        return locate(format)(path, images, split, findings)
    return _READERS[_format(path, format)](path, images, split, findings)


def list_parts(path: str, *, format: str = "auto") -> tuple[str, ...]:
    """The parts of a data set, of train, val and test; empty if it has only one part.

    Args:
        path: file or folder.
        format: one of `FORMATS`, "auto", or the dotted path of a custom reader, whose data sets
            have one part.

    Raises:
        DatasetError: it cannot be read, or is in another format, which the message names.
        ValueError: there is no such format.
    """
    if "." in format:
        return ()
    return _PARTS[_format(path, format)](path)


def _format(path: str, format: str) -> str:
    if format not in ("auto", *FORMATS):
        raise ValueError(
            f"open_dataset.format must be auto, {', '.join(FORMATS)} or the dotted path of a "
            f"reader, got {format!r}. Set dataset.format."
        )
    if not os.path.exists(path):
        raise missing_file(path)
    if not os.path.isfile(path) and not os.path.isdir(path):  # a pipe may have no end
        raise missing_file(path, "It is neither a file nor a folder")
    if format == "voc" and not os.path.isdir(path):
        raise missing_file(path, "Pascal VOC's annotations are a folder, but this is a file")
    return recognize(path) if format == "auto" else format


def recognize(path: str) -> str:
    """The format of an existing file or folder.

    Raises:
        DatasetError: the format is not supported.
    """
    if os.path.isfile(path):
        if path.lower().endswith((".yaml", ".yml")):
            return "yolo"
        other = describe_file(path)
        if other is not None:
            raise DatasetError(f"annotation file {path!r} {other}")
        return "coco"
    found = [
        name
        for name, holds in (("yolo", holds_yolo), ("coco", holds_coco), ("voc", holds_voc))
        if holds(path)
    ]
    if len(found) > 1:
        raise DatasetError(
            f"annotation folder {path!r} has {' and '.join(found)}. Choose one, for example "
            f"dataset.format={found[0]}."
        )
    if not found:
        raise DatasetError(f"annotation folder {path!r} {describe_folder(path)}")
    return found[0]
