"""Write any data set as a COCO instances file."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from sparsedet.data.dataset import AnnotatedDataset
from sparsedet.data.roots import name_below
from sparsedet.files import write_json_lists


@dataclass(frozen=True)
class Originals:
    """The entries from which a data set was read; their additional fields are kept.

    Args:
        top: the file's top level; its three lists are not used.
        categories: entry by category id.
        images: entry by image id.
        annotations: entries in the order of the records and of the objects in them.
    """

    top: dict[str, Any] = field(default_factory=dict)
    categories: dict[Any, dict[str, Any]] = field(default_factory=dict)
    images: dict[Any, dict[str, Any]] = field(default_factory=dict)
    annotations: Sequence[dict[str, Any]] = ()


def write_coco(
    dataset: AnnotatedDataset, path: str | os.PathLike, *, originals: Originals | None = None
) -> Counter[str]:
    """Writes a data set as a COCO instances file, atomically.

    Image and category ids are those of the data set; annotation ids start at 1. File names are
    relative to `dataset.images`, the image folder to give when the file is read again. Ignore
    regions keep `iscrowd`.

    Args:
        dataset: result of `open_dataset`.
        path: the file to write.
        originals: entries with additional fields, such as `segmentation`, that are written, too.
            Distinct integer annotation ids are then kept.

    Returns:
        For each key of annotations, how many values differ from the originals or were added.
    """
    originals = originals or Originals()
    ids = _category_ids(dataset)
    changed: Counter[str] = Counter()
    annotations = _annotations(dataset, ids)
    if originals.annotations:
        annotations = _with_fields(annotations, originals.annotations, changed)
    else:
        annotations = ({"id": i + 1, **entry} for i, entry in enumerate(annotations))
    categories = [
        {**originals.categories.get(i, {}), "id": i, "name": name}
        for i, name in zip(ids, dataset.class_names, strict=True)
    ]
    images = (_image(record, dataset.images, originals) for record in dataset.records)
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json_lists(Path(path), {**originals.top, **content})
    return changed


def _annotations(dataset: AnnotatedDataset, ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    for record in dataset.records:
        for entry in record["annotations"]:
            yield {
                "image_id": record["image_id"],
                "category_id": ids[entry["category_id"]],
                "bbox": entry["bbox"],
                "area": entry["area"],
                "iscrowd": entry["iscrowd"],
            }


def _image(record: dict[str, Any], root: str | None, originals: Originals) -> dict[str, Any]:
    name = record["file_name"]
    name = name if root is None else name_below(name, root)
    return {
        **originals.images.get(record["image_id"], {}),
        "id": record["image_id"],
        "file_name": name.replace(os.sep, "/"),
        "width": record["width"],
        "height": record["height"],
    }


def _with_fields(
    annotations: Iterable[dict[str, Any]],
    originals: Sequence[dict[str, Any]],
    changed: Counter[str],
) -> Iterator[dict[str, Any]]:
    """Annotations with the additional fields of their originals; counts the differences."""
    taken = Counter(e["id"] for e in originals if _is_id(e.get("id")))
    free = itertools.count(max(taken, default=0) + 1)
    used: set[int] = set()
    for entry, original in zip(annotations, originals, strict=True):
        given = original.get("id")
        identity = given if _is_id(given) and given not in used else next(free)
        used.add(identity)
        entry = {"id": identity, **entry}
        for key, value in entry.items():
            if original.get(key) != value:
                changed[key] += 1
        # 'ignore' was converted to iscrowd
        further = {key: value for key, value in original.items() if key != "ignore"}
        yield {**further, **entry}


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _category_ids(dataset: AnnotatedDataset) -> list[int]:
    """Ids of the classes; classes without an id get the next free ids."""
    known = [i for i in dataset.category_ids if i is not None]
    free = itertools.count(max(known, default=0) + 1)
    return [next(free) if i is None else i for i in dataset.category_ids]
