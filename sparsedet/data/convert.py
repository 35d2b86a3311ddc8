"""Any set as a COCO instances file."""

import itertools
import json
import os
from pathlib import Path

from ..files import atomic_write
from .dataset import AnnotatedDataset
from .roots import name_below


def write_coco(dataset: AnnotatedDataset, path: str | os.PathLike) -> None:
    """Writes a set as a COCO instances file, which appears whole or not at all.

    Image and category ids are those of the set; annotations count from 1 in its order. File names
    are relative to `dataset.images`, the folder to give for reading the file again. Ignore regions
    keep `iscrowd`.

    Args:
        dataset: what `open_dataset` gives.
        path: of the file to write.
    """
    images, annotations = [], []
    ids = _category_ids(dataset)
    for record in dataset.records:
        name = record["file_name"]
        name = name if dataset.images is None else name_below(name, dataset.images)
        images.append(
            {
                "id": record["image_id"],
                "file_name": name.replace(os.sep, "/"),
                "width": record["width"],
                "height": record["height"],
            }
        )
        for entry in record["annotations"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": ids[entry["category_id"]],
                    "bbox": entry["bbox"],
                    "area": entry["area"],
                    "iscrowd": entry["iscrowd"],
                }
            )
    categories = [{"id": i, "name": name} for i, name in zip(ids, dataset.class_names, strict=True)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_write(Path(path)) as file:
        file.write(json.dumps(document, ensure_ascii=False).encode())


def _category_ids(dataset: AnnotatedDataset) -> list[int]:
    """Ids of the classes; those that the set lacks get the next free ones."""
    known = [i for i in dataset.category_ids if i is not None]
    free = itertools.count(max(known, default=0) + 1)
    return [next(free) if i is None else i for i in dataset.category_ids]
