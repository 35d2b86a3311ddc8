"""Pascal VOC: one XML file for each picture.

`supervision` converts the objects of an XML file to boxes. VOC counts pixels from 1 and includes
the last, so (xmin - 1, ymin - 1, xmax, ymax) are the corners. This module handles what its own
loader ignores: parts of a set, sizes, and objects marked as difficult.
"""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from sparsedet.data.errors import DatasetError
from sparsedet.data.formats.extra import Box, parse_all, supervision_parsers
from sparsedet.data.formats.source import (
    SPLITS,
    Source,
    check_image_folder,
    is_picture,
    names_of_split,
    read_lines,
)
from sparsedet.data.roots import is_address
from sparsedet.data.validate import Effect, Findings
from sparsedet.data.validate.fields import flag, number, whole

_ANNOTATIONS, _PICTURES = "Annotations", "JPEGImages"
_FLAG = re.compile(r"\s+(-1|0|1)$")  # in the lists of one class: whether the picture has it
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FARTHEST = 1e9  # pixels; larger 32-bit floats cannot distinguish pixels


def holds_voc(folder: str) -> bool:
    """Whether there are XML files in a folder, in its `Annotations`, or in those of its parts."""
    inside = glob.escape(folder)
    patterns = ("*.[xX][mM][lL]", "*/*.[xX][mM][lL]", f"*/{_ANNOTATIONS}/*.[xX][mM][lL]")
    return any(next(glob.iglob(os.path.join(inside, each)), None) for each in patterns)


def read_voc(path: str, images: str | None, split: str | None, findings: Findings) -> Source:
    """Reads folders of XML files.

    Args:
        path: a folder with `Annotations`, `JPEGImages` and `ImageSets/Main/SPLIT.txt`; a folder
            with several of these (their parts are joined); a folder with a subfolder of XML files
            for each part; or a folder of XML files.
        images: folder of the pictures; None = `JPEGImages`, or the folder of the XML files.
        split: the part; None = all XML files.
        findings: collects faults.

    Raises:
        DatasetError: there is no such part, or `supervision` is not installed.
    """
    if not os.path.isdir(path):
        raise DatasetError(f"{path!r} must be a folder of Pascal VOC XML files. Give a folder.")
    if images is not None and is_address(images):
        raise DatasetError(
            f"image folder {images!r} is a URL, which is not supported for Pascal VOC, since its "
            "folders must be listed. Give a local folder, or convert the set with sparsedet "
            "convert-data."
        )
    if images is not None:
        check_image_folder(images)
    if os.path.basename(os.path.normpath(path)) == _ANNOTATIONS:
        path = os.path.dirname(os.path.normpath(path)) or "."
    root = images or path
    source = Source(path=path, format="voc", root=root)
    read = _XmlReader(source, findings)
    for folder, stems in _parts(path, images, split, source.files):
        pictures = images or _picture_folder(folder)
        source.files += [folder, pictures]
        read(folder, stems, _Pictures(pictures, root))
    if source.annotations and read.largest <= 1:
        fault = (
            "no corner is above 1, so they look like fractions of the picture. Multiply them by "
            "its width and height: VOC's corners are pixels."
        )
        findings.error("all objects", fault, whole=True)
    names = sorted({entry["category_id"] for entry in source.annotations})
    source.categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    ids = {name: i + 1 for i, name in enumerate(names)}
    for entry in source.annotations:
        entry["category_id"] = ids[entry["category_id"]]
    return source


def voc_parts(path: str) -> tuple[str, ...]:
    """The parts for which a folder has a list or a subfolder."""
    roots = [path, *(each.path for each in os.scandir(path) if each.is_dir())]
    return tuple(
        split
        for split in SPLITS
        if any(
            os.path.isdir(os.path.join(path, name))
            or any(os.path.isfile(_list_path(root, name)) for root in roots)
            for name in names_of_split(split)
        )
    )


def _list_path(root: str, name: str) -> str:
    return os.path.join(root, "ImageSets", "Main", f"{name}.txt")


def _parts(
    path: str, images: str | None, split: str | None, files: list[str]
) -> list[tuple[str, Sequence[str] | None]]:
    """Folders of XML files, each with the names that belong to a part (None = all).

    Lists that were read are added to `files`.
    """
    roots = [path, *sorted(each.path for each in os.scandir(path) if each.is_dir())]
    devkits = [root for root in roots if os.path.isdir(os.path.join(root, _ANNOTATIONS))]
    listed = [(root, _listed(root, split, files)) for root in devkits]
    if split is not None and any(names is not None for _, names in listed):
        return [(os.path.join(r, _ANNOTATIONS), names) for r, names in listed if names is not None]
    for name in names_of_split(split) if split is not None else ():
        folder = os.path.join(path, name)
        if os.path.isdir(folder):
            inner = os.path.join(folder, _ANNOTATIONS)
            return [(inner if os.path.isdir(inner) else folder, None)]
    if split is None or images is not None:
        whole = [os.path.join(root, _ANNOTATIONS) for root in devkits] or [path]
        return [(folder, None) for folder in whole]
    raise DatasetError(
        f"{path}: the XML files of its part {split!r} are unknown, since there is neither "
        f"ImageSets/Main/{split}.txt nor a folder {split}. Write that list, one name per line, or "
        "give the folders of each part: dataset.train_json and dataset.train_images, "
        "dataset.val_json and dataset.val_images."
    )


def _listed(root: str, split: str | None, files: list[str]) -> list[str] | None:
    for name in names_of_split(split) if split is not None else ():
        path = _list_path(root, name)
        if os.path.isfile(path):
            files.append(path)
            names = [_FLAG.sub("", line) for line in read_lines(path) if line]
            if not names:
                raise DatasetError(f"{path} is empty. Write one name per line.")
            return names
    return None


def _picture_folder(folder: str) -> str:
    if os.path.basename(folder) != _ANNOTATIONS:
        return folder
    for name in (_PICTURES, "images"):
        beside = os.path.join(os.path.dirname(folder), name)
        if os.path.isdir(beside):
            return beside
    raise DatasetError(
        f"{folder}: there is no folder {_PICTURES} next to it. Give the folder of the pictures "
        "(dataset.train_images and dataset.val_images)."
    )


class _Pictures:
    """The pictures of a folder, found by the name of an XML file or the name in it."""

    def __init__(self, folder: str, root: str) -> None:
        self._prefix = os.path.relpath(folder, root)
        names = sorted(each for each in os.listdir(folder) if is_picture(each))
        self._by_stem = {os.path.splitext(name)[0]: name for name in names}
        self._names = set(names)

    def path(self, stem: str, given: str) -> str:
        """Path below the root; the given name if there is no such picture."""
        given = os.path.basename(given.replace("\\", "/"))
        name = self._by_stem.get(stem) or (given if given in self._names else None)
        name = name or self._by_stem.get(given) or given or stem
        return os.path.normpath(os.path.join(self._prefix, name))

    def without(self, stems: Iterable[str]) -> list[str]:
        """Names of pictures without an XML file."""
        return sorted(self._by_stem[each] for each in set(self._by_stem) - set(stems))


class _XmlReader:
    """Adds the content of XML files to a source."""

    def __init__(self, source: Source, findings: Findings) -> None:
        self._source, self._findings = source, findings
        self._parsers = supervision_parsers()
        self.largest = 0.0  # of all corners

    def __call__(self, folder: str, names: Sequence[str] | None, pictures: _Pictures) -> None:
        found = sorted(each for each in os.listdir(folder) if _is_xml(each))
        files = {os.path.splitext(each)[0]: each for each in found}
        stems = list(files)
        if names is None:
            for name in pictures.without(stems):
                fault = "it has no XML file; left out."
                self._findings.warn(f"picture {name!r}", fault, Effect.LEFT_OUT)
        else:
            named = is_picture, _is_xml
            stems = sorted(
                {os.path.splitext(n)[0] if any(is_(n) for is_ in named) else n for n in names}
            )
        for stem in stems:
            self._read(os.path.join(folder, files.get(stem, f"{stem}.xml")), stem, pictures)

    def _read(self, path: str, stem: str, pictures: _Pictures) -> None:
        label = f"{stem}.xml"
        try:
            tree = self._parsers.parse_xml(path)
        except FileNotFoundError:
            fault = "it is listed but does not exist. Restore it or remove it from the list."
            self._findings.error(f"file {label!r}", fault)
            return
        except (ParseError, ValueError, LookupError, OSError) as error:  # Lookup: the encoding
            self._findings.error(f"file {label!r} ({error})", "it cannot be read. Write it again.")
            return
        if tree.tag != "annotation":
            fault = "its top level is not <annotation>, so it is not Pascal VOC. "
            cvat = tree.tag == "annotations"
            mend = "Export the task of CVAT as COCO 1.0." if cvat else "Give only VOC files."
            self._findings.error(f"file {label!r} (<{tree.tag}>)", fault + mend)
            return
        self._source.files.append(path)
        identity = len(self._source.images) + 1
        image = {"id": identity, "file_name": pictures.path(stem, _text(tree, "filename"))}
        self._source.images.append(image | self._size(tree, label))
        self._source.annotations += self._objects(tree, identity, label)

    def _size(self, tree: Element, label: str) -> dict[str, int]:
        width, height = (whole(_text(tree, f"size/{side}")) for side in ("width", "height"))
        if width and height and min(width, height) > 0:
            return {"width": width, "height": height}
        fault = "it gives no size in whole pixels; the size of the picture is used."
        self._findings.warn(f"file {label!r}", fault)
        return {}

    def _objects(self, tree: Element, image_id: int, label: str) -> list[dict[str, Any]]:
        numbered = [(f"{label} object {i + 1}", e) for i, e in enumerate(tree.findall("object"))]
        numbered = [(name, entry) for name, entry in numbered if self._has_corners(entry, name)]
        labels, entries = [name for name, _ in numbered], [entry for _, entry in numbered]
        found = []
        for entry, name, parsed in zip(entries, labels, self._parse(entries, labels), strict=True):
            if parsed is None:
                continue
            (x0, y0, x1, y1), category = parsed
            if any(_number(entry, f"{a}min") > _number(entry, f"{a}max") for a in "xy"):
                fault = "its corners are in the wrong order; they are swapped."
                self._findings.warn(name, fault, Effect.CHANGED)
            difficult = flag(_text(entry, "difficult") or None)
            if difficult is None:
                told = f"{name} (difficult {_text(entry, 'difficult')!r})"
                self._findings.error(told, "'difficult' must be 0 or 1. Correct it.")
            if difficult:
                fault = "marked as difficult: an ignore region, neither learned nor to be found."
                self._findings.warn(name, fault)
            found.append(
                {
                    "id": name,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": bool(difficult),
                }
            )
        return found

    def _has_corners(self, entry: Element, label: str) -> bool:
        """Whether the given corners are numbers; adds an error if not."""
        for corner in _CORNERS:
            given = _text(entry, f"bndbox/{corner}")
            value = number(given)
            self.largest = max(self.largest, value or 0.0)
            if given and (value is None or abs(value) > _FARTHEST):
                fault = "its corners must be numbers of pixels. Correct or delete the object."
                self._findings.error(f"{label} ({corner} {given!r})", fault)
                return False
        return True

    def _parse(self, entries: list[Element], labels: list[str]) -> Sequence[tuple[Box, str] | None]:
        """Box and class of each object; for an invalid object, None and an error is added."""

        def parse(some: Sequence[Element]) -> tuple[list[Box], list[str]]:
            alone = Element("annotation")
            alone.extend(some)
            return self._parsers.parse_objects(alone)

        for entry in entries:
            for name in entry.findall("name"):
                name.text = (name.text or "").strip()  # whitespace of the XML's layout
            for polygon in entry.findall("polygon"):
                entry.remove(polygon)  # only boxes are used, and a polygon may be invalid
        found, errors = parse_all(parse, entries)
        for index, error in errors.items():
            self._findings.error(labels[index], f"{error} Correct or delete the object.")
        return found


def _number(element: Element, corner: str) -> float:
    return float(_text(element, f"bndbox/{corner}"))


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml")


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
