"""YOLO: a `data.yaml` that names classes and folders, and a text file of rows for each picture.

`supervision` converts rows to boxes. This module handles what its own loader ignores: parts that
are lists, classes without a name, and invalid rows.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import yaml

from sparsedet.config.naming import ConfigError
from sparsedet.config.yaml_bounds import read_bounded, read_start
from sparsedet.data.errors import DatasetError
from sparsedet.data.formats.extra import Box, Parsers, parse_all, supervision_parsers
from sparsedet.data.formats.source import (
    SPLITS,
    Source,
    is_picture,
    missing_file,
    names_of_split,
    read_lines,
)
from sparsedet.data.reading import storage_error
from sparsedet.data.validate import Effect, Findings
from sparsedet.data.validate.fields import number, shown, whole

_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_FAR = 1.0  # a box that exceeds the picture by more than the picture's size is in other units
_LARGEST = 1e9  # beyond it, a number of a row is neither a class nor a fraction
_SPLITS = ("train", "val", "valid", "test")
_NO_LABELS = {"classes.txt", "labels.txt", "train.txt", "val.txt", "test.txt"}


def holds_yolo(folder: str) -> str | None:
    """Path of the `data.yaml` in a folder, if there is one."""
    named = [os.path.join(folder, name) for name in _NAMES]
    return next((path for path in named if os.path.isfile(path)), None)


def read_yolo(path: str, images: str | None, split: str | None, findings: Findings) -> Source:
    """Reads a part of the set that a `data.yaml` describes.

    Args:
        path: the `data.yaml`, or its folder.
        images: must be None, since the file names the folders.
        split: `train`, `val` or `test`; None where there is only one.
        findings: where faults are noted.

    Raises:
        DatasetError: the file or its part is missing, or `supervision` is not installed.
    """
    if os.path.isdir(path):
        found = holds_yolo(path)
        if found is None:
            raise DatasetError(
                f"folder {path!r} has none of {', '.join(_NAMES)}. Give the YAML file of the set."
            )
        path = found
    if images is not None:
        raise DatasetError(
            f"{path} (YOLO) already names the folders of its pictures, got the image folder "
            f"{images!r}, too. Set only dataset.path={path}."
        )
    content = _read_yaml(path)
    names = _class_names(content, path)
    source = Source(path=path, format="yolo", root=None, in_fractions=True, files=[path])
    source.categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    pictures = list(_pictures(content, path, split, source.files))
    num_places = len(source.files)
    if not any(map(os.path.exists, pictures)):
        raise DatasetError(
            f"{path}: none of its {len(pictures)} pictures exists; the first would be "
            f"{pictures[0]!r}. Write paths relative to the folder of the list or of {path}."
        )
    if len({os.path.isabs(picture) for picture in pictures}) > 1:
        pictures = [os.path.abspath(picture) for picture in pictures]
    source.root = os.path.commonpath([os.path.dirname(picture) for picture in pictures]) or "."
    rows = _RowReader(source, findings, _keypoint_numbers(content, path))
    for place, picture in enumerate(sorted(set(pictures))):
        name = os.path.relpath(picture, source.root)
        source.images.append({"id": place + 1, "file_name": name, "follows_exif": True})
        rows.read(picture, place + 1)
    rows.require_labels(len(source.images))
    if all(map(os.path.isdir, source.files[1:num_places])):
        rows.tell_left_over()
    source.files += sorted({os.path.dirname(each) for each in [*source.files, *pictures]})
    return source


def yolo_parts(path: str) -> tuple[str, ...]:
    """The parts that a `data.yaml`, or the one in a folder, names.

    Raises:
        DatasetError: it cannot be read.
    """
    content = _read_yaml(holds_yolo(path) or path)
    return tuple(split for split in SPLITS if any(map(content.get, names_of_split(split))))


class _Loader(yaml.SafeLoader):
    """Reads values as strings: 007 is not 7, 1:30 is not 90 and 2024-01-01 is not a date.

    Words that mean true, false or null in YAML are converted, so that they can be refused.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [each for each in resolvers if each[0].endswith((":bool", ":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = read_bounded(read_start(path), _Loader, "data.yaml")
    except OSError as error:
        raise missing_file(path, error.strerror or "cannot be read") from None
    except (yaml.YAMLError, ConfigError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DatasetError(f"{path} is not valid YAML: {reason}. Write it again.") from None
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError(
            f"{path} has no 'names', so it is not the data.yaml of a YOLO set. Give a file with "
            "'names', 'train' and 'val'."
        )
    return content


def _class_names(content: dict[str, Any], path: str) -> list[str]:
    names = content["names"]
    if isinstance(names, dict):
        keys = sorted(names, key=str)
        if sorted(str(key) for key in keys) != sorted(str(i) for i in range(len(keys))):
            raise DatasetError(
                f"{path}: the keys of 'names' must be 0 to {len(keys) - 1}, got {shown(keys)}. "
                "Number the classes without gaps."
            )
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names:
        raise DatasetError(
            f"{path}: 'names' must be a list of classes, got {shown(names)}. Write one."
        )
    for name in names:
        if not isinstance(name, str) or not name:
            raise DatasetError(
                f"{path}: each of 'names' must be a string, got {shown(name)}. Put it in quotes: "
                "YAML reads yes, no, on and off as true and false."
            )
    count = content.get("nc", len(names))
    if whole(count) != len(names):
        raise DatasetError(
            f"{path}: 'nc' is {str(count)[:40]}, but there are {len(names)} 'names'. Correct or "
            "delete 'nc'."
        )
    return names


def _keypoint_numbers(content: dict[str, Any], path: str) -> int:
    """The number of keypoint values after the box in a row."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    counts = [whole(each) or 0 for each in shape] if isinstance(shape, list) else []
    if len(counts) != 2 or min(counts) < 1:
        raise DatasetError(
            f"{path}: 'kpt_shape' must be [number of keypoints, 2 or 3], got {shown(shape)}. "
            "Correct it."
        )
    return counts[0] * counts[1]


def _pictures(
    content: dict[str, Any], path: str, split: str | None, files: list[str]
) -> Iterator[str]:
    """Paths of the pictures of a part; adds the folders and lists that were read to `files`."""
    known = [name for name in _SPLITS if content.get(name)]
    if split is None and len(known) == 1:
        split = known[0]
    key = next((name for name in names_of_split(split or "") if content.get(name)), None)
    if key is None:
        asked = "none was chosen" if split is None else f"not {split!r}"
        raise DatasetError(
            f"{path}: it has the parts {', '.join(known) or '(none)'}, but {asked}. Name one of "
            "them (split), or add the part with its folder of pictures."
        )
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    base = os.path.dirname(path)
    count = 0
    for entry in entries:
        place = _find(str(entry), base, str(content.get("path") or ""), path)
        files.append(place)
        for picture in _below(place) if os.path.isdir(place) else _in_list(place, base):
            count += 1
            yield picture
    if not count:
        raise DatasetError(
            f"{path}: there is no picture in {key}: {shown(content[key])}. Correct the path."
        )


def _find(entry: str, base: str, root: str, path: str) -> str:
    """The folder or list of an entry.

    Entries are relative to `path`, which is relative to the file. Some exports write
    `../train/images` for a folder next to the file.
    """
    places = [os.path.join(base, root, entry), os.path.join(base, entry)]
    places.append(os.path.join(base, entry.removeprefix("../")))
    places = list(dict.fromkeys(os.path.normpath(place) for place in places))
    for place in places:
        if os.path.exists(place):
            return place
    raise DatasetError(
        f"{path}: {entry!r} does not exist; tried {' and '.join(map(repr, places))}. Correct "
        "the entry or 'path', which is relative to the file's own folder."
    )


def _below(folder: str) -> Iterator[str]:
    """Pictures in a folder and its subfolders, each once even if links form loops."""

    def fail(error: OSError) -> None:
        raise storage_error(error, error.filename)

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [
            each
            for each in sorted(folders)
            if not each.startswith(".") and os.path.realpath(os.path.join(place, each)) not in seen
        ]
        for name in filter(is_picture, names):
            if not name.startswith("."):
                yield os.path.join(place, name)


def _in_list(file: str, base: str) -> Iterator[str]:
    """Pictures of a list; paths are relative to the list's folder or to that of data.yaml."""
    for name in filter(None, read_lines(file)):
        beside = os.path.normpath(os.path.join(os.path.dirname(file), name))
        below = os.path.normpath(os.path.join(base, name))
        yield below if os.path.exists(below) and not os.path.exists(beside) else beside


def _label_file(picture: str) -> str:
    """Path of the labels: the last folder `images` becomes `labels`; else next to the picture."""
    folders, name = os.path.split(os.path.splitext(picture)[0] + ".txt")
    parts = folders.split(os.sep)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return os.path.join(os.sep.join(parts), name)


class _RowReader:
    """Adds the rows of label files to a source."""

    def __init__(self, source: Source, findings: Findings, keypoint_numbers: int) -> None:
        self._source, self._findings = source, findings
        self._parsers: Parsers = supervision_parsers()
        self._pose = 5 + keypoint_numbers if keypoint_numbers else 0
        self._missing: list[str] = []
        self._paths: set[str] = set()

    def read(self, picture: str, image_id: int) -> None:
        """Reads the label file of a picture."""
        path = _label_file(picture)
        self._paths.add(path)
        self._source.files.append(path)
        try:
            with open(path, encoding="utf-8-sig") as file:
                rows = [line.split() for line in file]
        except (FileNotFoundError, NotADirectoryError):
            self._missing.append(path)
            return
        except (OSError, UnicodeDecodeError) as error:
            self._findings.error(f"file {path!r} ({error})", "it cannot be read. Write it again.")
            return
        base = os.path.dirname(self._source.path)
        label = os.path.relpath(path, base) if path.startswith(base) else path
        numbered = [(f"{label} row {place + 1}", row) for place, row in enumerate(rows) if row]
        numbered = [(name, row) for name, row in numbered if self._has_numbers(row, name)]
        labels = [name for name, _ in numbered]
        boxes = self._parse([self._box_of(row, name) for name, row in numbered], labels)
        for name, found in zip(labels, boxes, strict=True):
            if found is not None:
                self._add(*found, image_id, name)

    def require_labels(self, num_pictures: int) -> None:
        """Reports pictures without a label file, after the last one was read.

        Raises:
            DatasetError: no picture has a label file.
        """
        if len(self._missing) == num_pictures:
            raise DatasetError(
                f"{self._source.path}: none of the {num_pictures} pictures has a label file; the "
                f"first would be {self._missing[0]!r}. Put the text files there."
            )
        for path in self._missing:
            fault = "missing: its picture is used as one without objects."
            self._findings.warn(f"label file {os.path.basename(path)!r}", fault)

    def tell_left_over(self) -> None:
        """Reports label files without a picture, such as those of HEIC files, which are not read.

        Call this only if all pictures of the folders are in the part.
        """
        for folder in sorted({os.path.dirname(path) for path in self._paths}):
            names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            for name in names:
                is_label = name.endswith(".txt") and name not in _NO_LABELS
                if is_label and os.path.join(folder, name) not in self._paths:
                    fault = "it has no picture in a supported format; left out."
                    self._findings.warn(f"label file {name!r}", fault, Effect.LEFT_OUT)

    def _has_numbers(self, row: list[str], label: str) -> bool:
        """Whether a row is a class and numbers; adds an error if not."""
        odd = [each for each in row if not _is_sensible(each)]
        if any("," in each for each in row):
            fault = "it has commas. Write decimal points, and spaces between the numbers."
        elif whole(row[0]) is None or row[0] in odd:
            odd, fault = row, "its class must be a whole number. Correct or delete the row."
        elif odd:
            fault = "it must be finite numbers. Correct or delete the row."
        else:
            return True
        self._findings.error(f"{label} ({shown(odd[0])})", fault)
        return False

    def _parse(self, rows: list[str], labels: list[str]) -> Sequence[tuple[Box, int] | None]:
        """Box and class of each row; for an invalid row, None and an error is added."""
        found, errors = parse_all(self._parsers.parse_rows, rows)
        for index, error in errors.items():
            fault = "cannot be read. Correct or delete the row."
            self._findings.error(f"{labels[index]} ({error})", fault)
        return found

    def _add(self, box: Box, class_index: int, image_id: int, label: str) -> None:
        count = len(self._source.categories)
        x0, y0, x1, y1 = box
        if not 0 <= class_index < count:
            self._findings.error(
                f"{label} (class {class_index})",
                f"its class is not one of the {count} 'names'. Correct the row, or add the name.",
            )
        elif min(x0, y0) < -_FAR or max(x1, y1) > 1 + _FAR:
            self._findings.error(
                label,
                "its numbers are not fractions of the picture, from 0 to 1. Divide x and width by "
                "the picture's width, y and height by its height.",
            )
        else:
            self._source.annotations.append(
                {
                    "id": label,
                    "image_id": image_id,
                    "category_id": class_index + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )

    def _box_of(self, row: list[str], label: str) -> str:
        """The row without keypoints; adds a warning if it is not a plain box."""
        if len(row) == self._pose:
            self._findings.warn(label, "keypoints are not used.")
            row = row[:5]
        if len(row) == 6:
            self._findings.warn(label, "its sixth number (a confidence) is not used.")
        elif len(row) == 9:
            self._findings.warn(
                label,
                "eight numbers, an oriented box or a polygon of four points: the upright box "
                "around it is used.",
                Effect.CHANGED,
            )
        elif len(row) > 6:
            self._findings.warn(label, "a polygon: the box around it is used.", Effect.CHANGED)
        return " ".join(row)


def _is_sensible(token: str) -> bool:
    value = number(token)
    return value is not None and abs(value) <= _LARGEST
