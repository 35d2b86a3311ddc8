"""Recognize unsupported formats, so that an error can name the format and say what to do."""

import io
import json
import os
from collections.abc import Mapping
from itertools import islice
from typing import Any

from sparsedet.data.formats.source import is_picture

_HEAD = 1 << 16  # bytes that are checked to recognize a file
_EXPORT = "Export it as COCO, Pascal VOC or YOLO from the program that wrote it."
_UNPACK = "Unpack it and give the folder or the annotation file inside."
_GZIP = ("compressed with gzip", "Unpack it (gunzip FILE) and give the file inside.")
_DARKNET = (
    "a file of Darknet's YOLO",
    "Write a data.yaml with 'names', 'train' and 'val', and give that: dataset.path=.../data.yaml.",
)
_CVAT = "is CVAT's own XML file. Export the task of CVAT as COCO 1.0."
_BY_ENDING = {
    ".csv": ("a CSV table", _EXPORT),
    ".tsv": ("a table", _EXPORT),
    ".xlsx": ("a spreadsheet", _EXPORT),
    ".tfrecord": ("a TFRecord file", _EXPORT),
    ".tfrecords": ("a TFRecord file", _EXPORT),
    ".record": ("a TFRecord file", _EXPORT),
    ".parquet": ("a Parquet table", _EXPORT),
    ".arrow": ("an Arrow table", _EXPORT),
    ".mat": ("a MATLAB file", _EXPORT),
    ".h5": ("an HDF5 file", _EXPORT),
    ".hdf5": ("an HDF5 file", _EXPORT),
    ".npy": ("a NumPy array", _EXPORT),
    ".npz": ("a NumPy archive", _EXPORT),
    ".pkl": ("a Python pickle, which is not opened", _EXPORT),
    ".zip": ("an archive", _UNPACK),
    ".tar": ("an archive", _UNPACK),
    ".tar.gz": ("an archive", _UNPACK),
    ".gz": _GZIP,
    ".bz2": ("compressed with bzip2", _UNPACK),
    ".xz": ("compressed with xz", _UNPACK),
    ".zst": ("compressed with zstd", _UNPACK),
    ".tgz": ("an archive", _UNPACK),
    ".7z": ("an archive", _UNPACK),
    ".rar": ("an archive", _UNPACK),
    ".xml": (
        "one XML file, but Pascal VOC has one for each picture",
        "Give the folder of the XML files, or set dataset.path to the folder above it.",
    ),
    ".data": _DARKNET,
    ".names": _DARKNET,
    ".txt": (
        "a text file, such as YOLO's labels of one picture or a list of pictures",
        "Give the set's data.yaml, which names the classes and the folders: "
        "dataset.path=.../data.yaml.",
    ),
}
_INSTANCES = "Give the set's file of boxes, instances_*.json."
_LINES = (".jsonl", ".ndjson")
_BLANK = b"\xef\xbb\xbf \t\r\n"
_BY_BEGINNING = {
    b"\x1f\x8b": _GZIP,
    b"PK\x03\x04": ("an archive (zip)", _UNPACK),
    b"7z\xbc\xaf": ("an archive (7z)", _UNPACK),
    b"Rar!": ("an archive (rar)", _UNPACK),
    b"BZh": ("compressed with bzip2", _UNPACK),
    b"\xfd7zXZ": ("compressed with xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", _UNPACK),
    b"\x89PNG": ("a picture", "Give the file or folder that has the boxes."),
    b"\xff\xd8\xff": ("a picture", "Give the file or folder that has the boxes."),
    b"\x89HDF": ("an HDF5 file", _EXPORT),
    b"PAR1": ("a Parquet table", _EXPORT),
    **{b"\x80" + bytes([version]): _BY_ENDING[".pkl"] for version in range(2, 6)},
    b"version https://git-lfs": (
        "a Git LFS pointer instead of the file",
        "Download the file itself with git lfs pull.",
    ),
    b"<!doctype html": ("a web page", "Download the file itself, which may need a login."),
    b"<html": ("a web page", "Download the file itself, which may need a login."),
    b"<?xml": _BY_ENDING[".xml"],
    b"<annotation>": _BY_ENDING[".xml"],
}


def describe_file(path: str) -> str | None:
    """The type of a file from its suffix, and what to do; None if the suffix is unknown.

    A file that starts like JSON is read as JSON regardless of its name; JSON Lines are described.
    """
    if is_picture(path):
        return "is a picture. Give the file or folder that has the boxes."
    name, head = os.path.basename(path).lower(), _head_of(path)
    if head[:1] in (b"{", b"["):
        several = name.endswith(_LINES) and b'"images"' not in head
        return describe_lines(head.decode(errors="replace"), whole=False) if several else None
    if b"<annotations>" in head:
        return _CVAT
    for ending, (what, advice) in _BY_ENDING.items():
        if name.endswith(ending) or f"{ending}-" in name:  # as in train.record-00000-of-00010
            return f"is {what}. {advice}"
    return None


def _head_of(path: str) -> bytes:
    if not os.path.isfile(path):
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD).lstrip(_BLANK)
    except OSError:  # reported when it is read
        return b""


def describe_bytes(raw: bytes) -> str | None:
    """The type of a file from its first bytes, and what to do; None if it may be JSON in UTF-8."""
    beginning = raw[:_HEAD].lstrip(_BLANK)
    for mark, (what, advice) in _BY_BEGINNING.items():
        if beginning[: len(mark)].lower() == mark.lower():
            return f"is {what}. {advice}"
    encoding = json.detect_encoding(raw[:4])
    if not encoding.startswith("utf-8"):
        return f"is {encoding[:6].upper()} text. Save it as UTF-8."
    return None


def describe_lines(text: str, *, whole: bool = True) -> str:
    """The type of a text with several JSON values, and what to do.

    Args:
        text: text of the file.
        whole: whether it is the complete text; the last line of a part may be truncated.
    """
    lines = islice(filter(str.strip, io.StringIO(text)), 2)
    try:
        values = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        values = []
    if whole and len(values) < 2:
        return "has text after its JSON value, so it is not JSON. Write or download it again."
    first = values[0] if values and isinstance(values[0], Mapping) else {}
    if "image_id" in first and "score" in first:
        return f"is JSON Lines of detections, not of objects. {_INSTANCES}"
    return (
        "is JSON Lines (NDJSON), with a JSON value on each line. Join them into one COCO instances "
        "file: an object with the lists 'images', 'annotations' and 'categories'."
    )


def describe_folder(path: str) -> str:
    """The content of a folder without annotations of a known format, and what to do."""
    names = sorted(os.listdir(path))
    endings = [os.path.splitext(name)[1].lower() for name in names]
    if any(map(is_picture, names)) and ".txt" in endings:
        return f"has pictures and text files. {_BY_ENDING['.txt'][1]}"
    if any(map(is_picture, names)) and ".json" in endings:
        return (
            "has pictures and JSON files, such as LabelMe's. Give the single instances file, or "
            "convert the folder to COCO (labelme2coco)."
        )
    if {"obj.data", "obj.names", "classes.txt"} & {*names} or {"images", "labels"} <= {*names}:
        return (
            "has YOLO labels but no data.yaml. Write one, with 'names' (the classes in order) and "
            "'train' and 'val' (folders of pictures named images, next to folders named labels)."
        )
    if any(map(is_picture, names)):
        return "has only pictures. Give the file or folder that has their boxes."
    listed = ", ".join(names[:4]) or "nothing"
    return (
        f"has no annotations of a known format ({listed}). Give a COCO instances file, the "
        "data.yaml of a YOLO set or a folder of Pascal VOC XML files."
    )


def describe_json(document: Any) -> str | None:
    """The format of a JSON file's content, and what to do; None if it may be COCO's.

    A file with the three lists of COCO's instances files is only described if its annotations
    cannot be boxes.
    """
    if isinstance(document, list):
        found = _describe_list([each for each in document if isinstance(each, Mapping)])
    elif isinstance(document, Mapping):
        found = _describe_mapping(document)
    else:
        found = None
    if found is None:
        return None
    name, advice = found if isinstance(found, tuple) else (found, _EXPORT)
    return f"is {name}. {advice}"


def _describe_list(entries: list[Mapping]) -> str | tuple[str, str] | None:
    first = entries[0] if entries else {}
    if "image_id" in first and "score" in first:
        return "a list of detections (COCO's results format), not of objects", _INSTANCES
    if "image_id" in first and ("category_id" in first or "bbox" in first):
        return (
            "a list of annotations without 'images' and 'categories'",
            "Give the whole COCO instances file.",
        )
    names_picture = "image" in first or "imagefilename" in first
    if names_picture and isinstance(first.get("annotations"), list):
        return "a CreateML file"
    if "annotation_id" in first or (
        "data" in first and ("annotations" in first or "completions" in first)
    ):
        return "a Label Studio file", "Export it there as COCO, Pascal VOC or YOLO."
    if "External ID" in first or "data_row" in first:
        return "a Labelbox file"
    if "labels" in first and "name" in first:
        return "a file in BDD100K's or Scale's format"
    return None


def _describe_mapping(document: Mapping) -> str | tuple[str, str] | None:
    if isinstance(document.get("annotations"), list) and "images" in document:
        return _describe_coco_kin(document)
    if "_via_img_metadata" in document or _is_via(document) or "vid_list" in _project(document):
        return "a VGG Image Annotator (VIA) project", "Export it there as COCO."
    if isinstance(document.get("shapes"), list) and {"imagePath", "imageData"} & document.keys():
        return "a LabelMe file, of one picture", "Convert the folder to COCO (labelme2coco)."
    if isinstance(document.get("objects"), list) and "size" in document:
        return "a Supervisely file, of one picture", "Export the project there as COCO."
    if isinstance(document.get("classes"), list) and "projectType" in document:
        return "a Supervisely project's meta.json", "Export the project there as COCO."
    if isinstance(document.get("items"), list) and "categories" in document:
        return "a Datumaro file", "Export it there as COCO."
    if document.get("type") == "FeatureCollection":
        return "a GeoJSON file"
    if "database" in document and isinstance(document["database"], Mapping):
        return "a file of videos (ActivityNet's format)"
    return None


def _describe_coco_kin(document: Mapping) -> tuple[str, str] | None:
    first = next((each for each in document["annotations"] if isinstance(each, Mapping)), {})
    if "bbox" in first:
        return None
    if "segments_info" in first:
        return "COCO's panoptic format, which has no boxes of objects", _INSTANCES
    if "caption" in first:
        return "COCO's file of captions", _INSTANCES
    return None


def _project(document: Mapping) -> Mapping:
    """The start of a VIA 3 project; other formats have a string or a number there."""
    found = document.get("project")
    return found if isinstance(found, Mapping) else {}


def _is_via(document: Mapping) -> bool:
    first = next(iter(document.values()), None)
    return isinstance(first, Mapping) and "regions" in first and "filename" in first
