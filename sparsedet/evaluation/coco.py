"""COCO's average precision.

Here contiguous classes become category ids again. Inside of this file images and annotations get
new ids, since COCO's own code takes annotation id 0 for "no match", overwrites repeated ids and
is not made for ids that are texts or exceed 64 bits.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .. import comm
from ..data.dataset import AnnotatedDataset
from ..data.validate import warn_once
from ..files import atomic_write
from ..structures import BoxMode

_MAX_DETECTIONS = (1, 10, 100)
_SIZES = ("all", "small", "medium", "large")
_EVERYTHING = 1e10
_IOU_50, _IOU_75 = 0, 5  # places in COCO's thresholds .50:.05:.95


class COCOEvaluator:
    """Average precision as COCO defines it, over a set of any format.

    Crowd regions (and what VOC marks as difficult) are ignore regions. Without a single object, as
    in COCO's test-dev, every result is None, and predictions are written all the same.

    Args:
        dataset: what `sparsedet.data.open_dataset` gives: the test loader's own.
        area_bounds: areas, in square pixels of the original image, below which an object is
            small and from which on it is large. COCO's are 32^2 and 96^2.
        output_dir: where `predictions.json` is written; None writes nothing.

    Raises:
        ValueError: `area_bounds` are not two ascending numbers.
    """

    def __init__(
        self,
        dataset: AnnotatedDataset,
        *,
        area_bounds: Sequence[float] = (32**2, 96**2),
        output_dir: str | None = None,
    ) -> None:
        bounds = tuple(float(bound) for bound in area_bounds)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(
                "COCOEvaluator.area_bounds must be two ascending areas in square pixels, "
                f"got {list(area_bounds)}. Set dataloader.evaluator.area_bounds."
            )
        self._dataset = dataset
        self._area_bounds = (bounds[0], bounds[1])
        self._output_dir = output_dir
        self._places = {r["image_id"]: i + 1 for i, r in enumerate(self._dataset.records)}
        self._truth = _ground_truth(self._dataset)
        self._detections: dict[Any, np.ndarray] = {}

    def reset(self) -> None:
        """Forgets all detections."""
        self._detections = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Takes the detections of a batch.

        Args:
            inputs: samples with `image_id`.
            outputs: in the same order, dicts with `instances`: `pred_boxes` (xyxy, pixels of the
                original image), `scores` and `pred_classes` (contiguous).

        Raises:
            ValueError: an image that the annotation file does not have.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            if sample["image_id"] not in self._places:
                raise ValueError(
                    f"COCOEvaluator.process image_id {sample['image_id']!r} is not in "
                    f"{self._dataset.source!r}. Evaluate on the set of the test loader."
                )
            self._detections[sample["image_id"]] = _rows(output["instances"])

    def evaluate(self) -> dict[str, Any]:
        """Computes the results over the detections of all processes; the same on each.

        Returns:
            `{"bbox": {...}}` with values in [0, 1]: `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`,
            `AR1`, `AR10`, `AR100`, `ARs`, `ARm`, `ARl`, `AP50_class_agnostic`; `per_class`, by
            name, for classes that have objects; and what the numbers mean: `area_bounds`,
            `max_detections`. A value is None where there is no object to find.
        """
        parts = comm.all_gather(self._detections)
        results = None
        if comm.is_main_process():
            merged = {image_id: rows for part in parts for image_id, rows in part.items()}
            results = self._results(merged)
        return comm.all_gather(results)[0]

    def _results(self, detections: dict[Any, np.ndarray]) -> dict[str, Any]:
        missing = len(self._places) - len(detections)
        if missing:
            warn_once(
                f"{missing} of {len(self._places)} images of {self._dataset.source!r} were not "
                "processed; they count as images without detections."
            )
        if self._output_dir is not None:
            with atomic_write(Path(self._output_dir) / "predictions.json") as file:
                file.write(json.dumps(self._predictions(detections)).encode())
        if not self._dataset.num_objects:
            warn_once(
                f"{self._dataset.source!r} has no annotations, so AP is undefined. Score "
                "predictions.json where the annotations are."
            )
        found = _to_coco(self._dataset, self._found_annotations(detections))
        bounds = (*self._area_bounds, _EVERYTHING)
        totals = _accumulate(self._truth, found, bounds)
        results: dict[str, Any] = _summarize(totals)
        agnostic = _accumulate(self._truth, found, bounds, class_agnostic=True)
        results["AP50_class_agnostic"] = _mean(agnostic["precision"][_IOU_50, :, :, 0, -1])
        results["per_class"] = self._per_class(totals)
        results["area_bounds"] = list(self._area_bounds)
        results["max_detections"] = list(_MAX_DETECTIONS)
        return {"bbox": results}

    def _per_class(self, totals: dict[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
        precision = totals["precision"][..., 0, -1]
        rows = {}
        for place, name in enumerate(self._dataset.class_names):
            average = _mean(precision[:, :, place])
            if average is not None:
                rows[name] = {"AP": average, "AP50": _mean(precision[_IOU_50, :, place])}
        return rows

    def _found_annotations(self, detections: dict[Any, np.ndarray]) -> list[dict[str, Any]]:
        return [
            {
                "image_id": self._places[image_id],
                "category_id": int(row[5]) + 1,
                "bbox": row[:4].tolist(),
                "area": float(row[2] * row[3]),
                "iscrowd": 0,
                "score": float(row[4]),
            }
            for image_id, rows in detections.items()
            for row in rows
        ]

    def _predictions(self, detections: dict[Any, np.ndarray]) -> list[dict[str, Any]]:
        """Detections in COCO's results format; classes that the file lacks are left out."""
        ids = self._dataset.category_ids
        return [
            {
                "image_id": image_id,
                "category_id": ids[int(row[5])],
                "bbox": [round(float(v), 3) for v in row[:4]],
                "score": round(float(row[4]), 6),
            }
            for image_id, rows in detections.items()
            for row in rows
            if ids[int(row[5])] is not None
        ]


def _rows(instances: Any) -> np.ndarray:
    """Detections (N, 6): x, y, width, height, score, class."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    columns = (boxes, instances.scores[:, None], instances.pred_classes[:, None])
    arrays = [column.detach().cpu().double().numpy() for column in columns]
    return np.concatenate(arrays, axis=1)


def _ground_truth(dataset: AnnotatedDataset) -> COCO:
    annotations = [
        {
            "image_id": place + 1,
            "category_id": entry["category_id"] + 1,
            "bbox": list(entry["bbox"]),
            "area": entry["area"],
            "iscrowd": entry["iscrowd"],
        }
        for place, record in enumerate(dataset.records)
        for entry in record["annotations"]
    ]
    return _to_coco(dataset, annotations)


def _to_coco(dataset: AnnotatedDataset, annotations: list[dict[str, Any]]) -> COCO:
    """COCO's index over annotations whose ids all count from 1."""
    for place, entry in enumerate(annotations):
        entry["id"] = place + 1
    coco: Any = COCO()
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(len(dataset.records))],
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(dataset.class_names)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _accumulate(
    truth: COCO, found: COCO, bounds: tuple[float, float, float], class_agnostic: bool = False
) -> dict[str, np.ndarray]:
    """COCO's precision [IoU, recall, class, size, detections] and recall [IoU, class, ...]."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation: Any = COCOeval(truth, found, "bbox")
        small, large, everything = bounds
        ranges = ((0, everything), (0, small), (small, large), (large, everything))
        evaluation.params.areaRng = [list(pair) for pair in ranges]
        evaluation.params.areaRngLbl = list(_SIZES)
        evaluation.params.maxDets = list(_MAX_DETECTIONS)
        evaluation.params.useCats = 0 if class_agnostic else 1
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def _summarize(totals: dict[str, np.ndarray]) -> dict[str, float | None]:
    precision, recall = totals["precision"], totals["recall"]
    results = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[_IOU_50, :, :, 0, -1]),
        "AP75": _mean(precision[_IOU_75, :, :, 0, -1]),
    }
    for size in (1, 2, 3):
        results[f"AP{_SIZES[size][0]}"] = _mean(precision[:, :, :, size, -1])
    for place, count in enumerate(_MAX_DETECTIONS):
        results[f"AR{count}"] = _mean(recall[:, :, 0, place])
    for size in (1, 2, 3):
        results[f"AR{_SIZES[size][0]}"] = _mean(recall[:, :, size, -1])
    return results


def _mean(values: np.ndarray) -> float | None:
    """Mean without the -1 that COCO writes where there is no object to find."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None
