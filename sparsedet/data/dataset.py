"""Data sets of annotated pictures in any format, read and checked once.

Category ids are only used up to here; all later code uses contiguous classes.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsedet.data.checked import Checked, collector_paused, read_checked
from sparsedet.data.errors import DatasetError
from sparsedet.data.formats import Source
from sparsedet.data.reading import DEFAULT_SETTINGS, PictureSettings
from sparsedet.data.records import Records
from sparsedet.data.roots import join
from sparsedet.data.validate import CleanAnnotation, Findings
from sparsedet.data.validate.fields import folded
from sparsedet.structures import BoxMode

_Stamp = tuple[int, int] | None
_KEPT = 16  # sets that a process remembers

_opened: dict[tuple, "tuple[dict[str, _Stamp], AnnotatedDataset]"] = {}


@dataclass(frozen=True)
class AnnotatedDataset:
    """A checked data set that loaders, evaluator and catalog share.

    Args:
        source: path of the annotation file or folder.
        format: `coco`, `voc`, `yolo`, or the name that a custom reader gives.
        images: folder of the pictures, or its URL; None if no picture was read.
        records: one dict per image: `file_name` (full path), `height`, `width`, `image_id`,
            `annotations` (dicts with `bbox`, `bbox_mode` = XYWH_ABS, `category_id` contiguous,
            `iscrowd`, `area`). Images without objects are included.
        class_names: name of each contiguous class.
        category_ids: id in the file of each contiguous class; None for a class that the file
            lacks. For formats without ids they start at 1.
        num_objects: number of boxes in the records, including ignore regions.
    """

    source: str
    format: str
    images: str | None
    records: Records
    class_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]
    num_objects: int

    def __str__(self) -> str:
        names = _shorten(self.class_names)
        return (
            f"{self.source} ({self.format}), {len(self.records)} images with {self.num_objects} "
            f"objects of {len(self.class_names)} classes {names}"
        )

    def with_classes(self, class_names: Sequence[str]) -> "AnnotatedDataset":
        """The same data set with its classes numbered as in another list, matched by name.

        Raises:
            DatasetError: a class of the data set is not in the list.
        """
        names = tuple(class_names)
        if names == self.class_names:
            return self
        own = [(i, name) for i, name in enumerate(self.class_names) if self._has(i)]
        unknown = [name for _, name in own if name not in names]
        if unknown:
            raise DatasetError(
                f"{self.source}: category {unknown[0]!r} is not one of the {len(names)} classes "
                f"{_shorten(names)}.{_alike(unknown[0], names)} Use one list of categories in "
                "training and validation files."
            )
        ids: list[int | None] = [None] * len(names)
        numbers = [0] * len(self.class_names)
        for number, name in own:
            numbers[number] = names.index(name)
            ids[numbers[number]] = self.category_ids[number]
        return replace(
            self,
            records=self.records.with_classes(numbers),
            class_names=names,
            category_ids=tuple(ids),
        )

    def _has(self, number: int) -> bool:
        return self.category_ids[number] is not None

    def has_targets(self) -> bool:
        """Whether there is a box that is not an ignore region."""
        return any(not e["iscrowd"] for record in self.records for e in record["annotations"])

    def digest(self) -> str:
        """A hash of records and classes that does not depend on the folder of the pictures."""
        content = hashlib.sha256(repr((self.class_names, self.category_ids)).encode())
        for record in self.records:
            place = os.path.relpath(record["file_name"], self.images or os.curdir)
            content.update(repr({**record, "file_name": place}).encode())
        return content.hexdigest()


def open_dataset(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    format: str = "auto",
    class_names: Sequence[str] | None = None,
    skip_broken_images: bool = False,
    pictures: PictureSettings | None = DEFAULT_SETTINGS,
) -> AnnotatedDataset:
    """Reads and checks a data set, once per process.

    Equal arguments return the same object until one of the read files changes. If the object is
    passed to another process, the files are not read again.

    Args:
        annotations: a COCO (or LVIS) instances file, a YOLO set's `data.yaml`, a Pascal VOC folder,
            or a folder with one of these.
        images: folder to which the file names are relative, or its URL (`s3://...`); None if the
            format defines the location of the pictures. A COCO file does not: with None no picture
            is opened, `file_name` is not changed, and sizes are those of the file.
        split: the part of a set with several parts (`train`, `val`, ...); a COCO file is one part.
        format: `coco`, `voc`, `yolo`, or `auto` to detect it; or the dotted path of a custom
            reader, for which `annotations` may be a name. It is called with `annotations`,
            `images`, `split` and a collector of faults, and returns a
            `sparsedet.data.formats.Source`.
        class_names: classes in their order, if another file (that of training) defines them; they
            are matched by name. None = the set's own classes: by id in COCO, by name in VOC, by
            number in YOLO.
        skip_broken_images: leave out unreadable image files with a warning instead of an error.
        pictures: how the files will be read, so that unreadable files are found here. None = they
            will not be read, so the range of their values is not checked.

    Raises:
        DatasetError: the data set has a fault that would make training or evaluation wrong.
        ValueError: `format` is unknown.
    """
    if not isinstance(annotations, (str, os.PathLike)):
        raise DatasetError(
            f"open_dataset.annotations must be a path, got {annotations!r}. Set "
            "dataset.train_json and dataset.val_json, or dataset.path."
        )
    key = key_of(annotations, images, split, format, skip_broken_images, pictures)
    names = None if class_names is None else tuple(class_names)
    dataset = _remembered((*key, names))
    if dataset is not None:
        return dataset
    whole = _remembered((*key, None))
    if whole is None:
        checked = read_checked(
            annotations,
            images,
            split=split,
            format=format,
            skip_broken=skip_broken_images,
            pictures=pictures,
            findings=Findings(os.fspath(annotations)),
        )
        whole = dataset_of(checked)
        keep_open(whole, checked.source, key)
    dataset = whole if names is None else whole.with_classes(names)
    _remember((*key, names), _opened[(*key, None)][0], dataset)
    return dataset


@collector_paused()
def dataset_of(checked: Checked) -> AnnotatedDataset:
    """The data set of the usable part of a source.

    Raises:
        DatasetError: no image is usable.
    """
    source = checked.source
    if not checked.images:
        raise DatasetError(f"{source.path}: none of its images can be read. Restore the files.")
    used = [checked.objects.get(image["id"], []) for image in checked.images]
    pairs = zip(checked.images, used, strict=True)
    return AnnotatedDataset(
        source=source.path,
        format=source.format,
        images=source.root,
        records=Records(_record(image, source.root, objects) for image, objects in pairs),
        class_names=tuple(name for _, name in checked.categories),
        category_ids=tuple(category_id for category_id, _ in checked.categories),
        num_objects=sum(map(len, used)),
    )


def _record(image: dict, root: str | None, objects: list[CleanAnnotation]) -> dict[str, Any]:
    name = image["file_name"]
    return {
        "file_name": name if root is None else join(root, name),
        "height": image.get("height"),
        "width": image.get("width"),
        "image_id": image["id"],
        "annotations": [
            {
                "bbox": entry.bbox,
                "category_id": entry.category_id,
                "iscrowd": entry.iscrowd,
                "area": entry.area,
                "bbox_mode": BoxMode.XYWH_ABS,
            }
            for entry in objects
        ],
    }


def key_of(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    split: str | None,
    format: str,
    skip_broken: bool,
    pictures: PictureSettings | None,
) -> tuple:
    """The key of a data set in memory: the arguments of `open_dataset` except the classes."""
    folder = None if images is None else os.fspath(images)
    return os.getcwd(), os.fspath(annotations), folder, split, format, skip_broken, pictures


def keep_open(dataset: AnnotatedDataset, source: Source, key: tuple) -> None:
    """Keeps a data set in memory; `open_dataset` returns it until one of its files changes.

    Args:
        dataset: a data set with its own classes.
        source: its source.
        key: see `key_of`.
    """
    _remember((*key, None), {path: _stamp(path) for path in (key[1], *source.files)}, dataset)


def _remembered(key: tuple) -> AnnotatedDataset | None:
    stamps, dataset = _opened.get(key, ({}, None))
    return dataset if all(_stamp(path) == stamp for path, stamp in stamps.items()) else None


def _remember(key: tuple, stamps: dict[str, _Stamp], dataset: AnnotatedDataset) -> None:
    _opened.pop(key, None)
    while len(_opened) >= _KEPT:
        del _opened[next(iter(_opened))]
    _opened[key] = (stamps, dataset)


def _stamp(path: str) -> _Stamp:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"({shown})" if len(names) <= 8 else f"({shown}, ...)"


def _alike(name: str, names: Sequence[str]) -> str:
    """A sentence, after a space, about a name that hardly differs; empty if there is none."""
    near = next((each for each in names if folded(each) == folded(name)), None)
    return "" if near is None else f" {near!r} differs only in case, spaces or Unicode form."
