"""Interoperability with detectron2: its structures, its catalogs of data sets, its event storage.

Samples, results, backbones, checkpoints and configs follow detectron2's conventions and need
nothing from here; docs/interop.md shows each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from pycocotools import mask as mask_util

from sparsedet.config.naming import nearest
from sparsedet.data import AnnotatedDataset, DatasetError
from sparsedet.data.formats import Source
from sparsedet.data.validate import Findings
from sparsedet.events import listen
from sparsedet.structures import Boxes, BoxMode, Instances

try:
    import detectron2.structures as theirs  # pyright: ignore[reportMissingImports]
    from detectron2.data import (  # pyright: ignore[reportMissingImports]
        DatasetCatalog,
        MetadataCatalog,
    )
    from detectron2.utils.events import (  # pyright: ignore[reportMissingImports]
        get_event_storage,
        has_event_storage,
    )
except ImportError as error:
    raise ImportError(
        f"sparsedet.interop.detectron2 needs detectron2, which cannot be imported ({error}). "
        "Install it as docs/interop.md says."
    ) from error

__all__ = ["forward_events", "read_registered", "register_dataset", "to_detectron2"]


def to_detectron2(instances: Instances) -> theirs.Instances:
    """Convert instances to detectron2's classes, for code that checks with `isinstance`.

    Most of detectron2 does not need this: evaluators, `Visualizer` and `detector_postprocess`
    accept our instances.

    Args:
        instances: Instances of a sample or a result. Tensors are shared, not copied.
    """
    fields = {
        name: theirs.Boxes(value.tensor) if isinstance(value, Boxes) else value
        for name, value in instances.get_fields().items()
    }
    return theirs.Instances(instances.image_size, **fields)


# --- events


class _Forwarder:
    """Forwards the scalars of `log_scalar` while a trainer of detectron2 runs."""

    def record(self, name: str, value: float | torch.Tensor) -> None:
        """Put the value into the event storage, under the same name."""
        if has_event_storage():
            number = value.detach() if isinstance(value, torch.Tensor) else value
            get_event_storage().put_scalar(name, float(number))


_FORWARDER = _Forwarder()


def forward_events() -> None:
    """From now on, forward scalars that our parts log to the event storage of detectron2.

    Its trainers log the losses themselves; this adds the other scalars, such as `keep_ratio`.
    Without an active storage nothing is forwarded, and calling this again has no effect. Values on
    an accelerator are copied to the host, as detectron2's trainers do with the losses.
    """
    listen(_FORWARDER)


# --- data sets


def register_dataset(name: str, dataset: AnnotatedDataset) -> None:
    """Register a data set in detectron2's catalogs.

    Its loaders, mappers, evaluators and `Visualizer` then find it under that name.

    Args:
        name: The name in the catalogs, which must be free.
        dataset: Result of `sparsedet.data.open_dataset`, opened with its pictures.

    Raises:
        ValueError: The name is taken, or the set was opened without its pictures.
    """
    if name in DatasetCatalog:
        raise ValueError(
            f"register_dataset.name must be new, got {name!r}, which is in detectron2's "
            "DatasetCatalog. Choose another name."
        )
    if dataset.images is None:
        raise ValueError(
            f"register_dataset.dataset must have pictures, but {dataset.source} was opened without "
            "them. Give open_dataset its images=FOLDER."
        )
    DatasetCatalog.register(name, lambda: [_to_their_record(each) for each in dataset.records])
    metadata = MetadataCatalog.get(name).set(
        thing_classes=list(dataset.class_names),
        image_root=dataset.images,
        evaluator_type="coco",
    )
    if None not in dataset.category_ids:  # a class that the set lacks has no id
        ids = {i: number for number, i in enumerate(dataset.category_ids)}
        metadata.set(thing_dataset_id_to_contiguous_id=ids)


def _to_their_record(record: dict[str, Any]) -> dict[str, Any]:
    mode = theirs.BoxMode.XYWH_ABS
    return {**record, "annotations": [{**e, "bbox_mode": mode} for e in record["annotations"]]}


def read_registered(name: str, images: str | None, split: str | None, findings: Findings) -> Source:
    """Read a data set that is registered with detectron2; a reader for `dataset.format`.

    In a config, set `dataset.format="sparsedet.interop.detectron2.read_registered"`, and
    `dataset.train_json="my_train"` with `dataset.train_images=None`; or, only for `sparsedet
    train`, `dataset.path="my"`, which finds `my_train` and `my_val`.

    The code that registers the set must have been imported, for example by the config file.

    Args:
        name: In `DatasetCatalog`, or the name without `_train` or `_val`.
        images: Must be None, since the records say where the pictures are.
        split: The suffix, where `name` has none.
        findings: Collects faults.

    Raises:
        DatasetError: The set is not registered, its classes are not known, or its boxes are not
            upright boxes in pixels.
    """
    name = _registered(name, split)
    if images is not None:
        raise DatasetError(
            f"{name}: the records of a registered set already name its pictures, got the folder "
            f"{images!r}. Set dataset.train_images=null and dataset.val_images=null."
        )
    records = DatasetCatalog.get(name)
    paths = [os.path.abspath(record["file_name"]) for record in records]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else None
    source = Source(path=name, format="detectron2", root=root)
    ids = _category_ids(name)
    source.categories = [{"id": i, "name": text} for i, text in ids.values()]
    for place, (record, path) in enumerate(zip(records, paths, strict=True)):
        image_id = record.get("image_id", place)
        source.images.append(
            {
                "id": image_id,
                "file_name": os.path.relpath(path, root),
                **{key: record[key] for key in ("height", "width") if key in record},
            }
        )
        for entry in record.get("annotations", ()):
            source.annotations.append(_to_coco(entry, image_id, ids, name))
    return source


def _registered(name: str, split: str | None) -> str:
    for each in (name, f"{name}_{split}"):
        if each in DatasetCatalog:
            return each
    raise DatasetError(
        f"no data set {name!r} is registered with detectron2. {nearest(name, DatasetCatalog)} "
        "Import the code that registers it, for example in the config file."
    )


def _category_ids(name: str) -> dict[int, tuple[int, str]]:
    """The id in the file and the name of each contiguous class."""
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    if not names:
        raise DatasetError(
            f"{name}: its classes are not in detectron2's MetadataCatalog. Add "
            f"MetadataCatalog.get({name!r}).thing_classes = [...]."
        )
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    pairs = mapping.items() if mapping else enumerate(range(len(names)), 1)
    ids = {number: i for i, number in pairs}
    if [ids.get(number) for number in range(len(names))] != sorted(ids.values()):
        raise DatasetError(
            f"{name}: thing_dataset_id_to_contiguous_id must have an id for each of the "
            f"{len(names)} thing_classes, rising with them, got {mapping}. Correct it in "
            "MetadataCatalog."
        )
    return {number: (ids[number], text) for number, text in enumerate(names)}


def _to_coco(
    entry: Mapping[str, Any], image_id: Any, ids: Mapping[int, tuple[int, str]], name: str
) -> dict[str, Any]:
    mode, box = entry["bbox_mode"], [float(value) for value in entry["bbox"]]
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise DatasetError(
            f"{name}: boxes must be in pixels and upright (XYXY_ABS or XYWH_ABS), got {mode!r} in "
            f"image {image_id}. Convert them in the function that is registered."
        )
    if entry["category_id"] not in ids:
        raise DatasetError(
            f"{name}: category_id {entry['category_id']} in image {image_id} is none of the "
            f"{len(ids)} thing_classes, which are numbered from 0. Correct one of the two."
        )
    box = BoxMode.convert(box, mode, BoxMode.XYWH_ABS)
    return {
        "image_id": image_id,
        "category_id": ids[entry["category_id"]][0],
        "bbox": box,
        "iscrowd": entry.get("iscrowd", 0),
        "area": _area(entry, box),
    }


def _area(entry: Mapping[str, Any], box_xywh: list[float]) -> float:
    """The area of the mask if there is one, as in COCO, whose evaluation by size uses it."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        return float(mask_util.area(cast(Any, segmentation)))
    if segmentation:
        return float(theirs.PolygonMasks([segmentation]).area()[0])
    return box_xywh[2] * box_xywh[3]
