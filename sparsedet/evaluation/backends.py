"""The packages that compute COCO's metrics: `pycocotools` or `faster-coco-eval`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparsedet.evaluation.rules import Rules

Entries = list[dict[str, Any]]
_PACKAGES = {"pycocotools": "pycocotools", "faster-coco-eval": "faster_coco_eval"}


class Backend:
    """COCO's evaluation by one of two packages, which compute the same metrics.

    Args:
        name: `pycocotools`, or `faster-coco-eval` (in C++; the extra `faster-eval`).

    Raises:
        ValueError: the name is another one, or the package is not installed.
    """

    def __init__(self, name: str) -> None:
        if name not in list(_PACKAGES):
            raise ValueError(
                f"COCOEvaluator.backend must be {' or '.join(_PACKAGES)}, got {name!r}. Set "
                "dataloader.evaluator.backend."
            )
        if find_spec(_PACKAGES[name]) is None:
            raise ValueError(
                f"COCOEvaluator.backend={name} needs the package {name}, which is not installed. "
                "Run: pip install 'sparsedet[faster-eval]'"
            )
        self._index: Any = COCO
        self._evaluation: Any = COCOeval
        if name == "faster-coco-eval":
            import faster_coco_eval

            self._index = faster_coco_eval.COCO
            self._evaluation = faster_coco_eval.COCOeval_faster

    def index(self, num_images: int, class_names: Sequence[str], annotations: Entries) -> Any:
        """Build the package's index of annotations.

        Args:
            num_images: images get the ids 1 to `num_images`.
            class_names: categories get ids from 1 in this order.
            annotations: get ids from 1, since COCO's code takes id 0 for "no match".
        """
        for place, entry in enumerate(annotations):
            entry["id"] = place + 1
        index = self._index()
        index.dataset = {
            "images": [{"id": i + 1} for i in range(num_images)],
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(class_names)],
            "annotations": annotations,
        }
        with _silence():
            index.createIndex()
        return index

    def accumulate(
        self, truth: Any, found: Any, rules: Rules, *, class_agnostic: bool = False
    ) -> dict[str, np.ndarray]:
        """Match and accumulate; values are -1 if there are no objects.

        Returns:
            `precision` and `scores` [IoU, recall, class, area, detections], `recall` [IoU, class,
            area, detections].
        """
        with _silence():
            evaluation = self._evaluation(truth, found, "bbox")
            evaluation.params.areaRng = rules.ranges
            evaluation.params.areaRngLbl = ["all", *rules.area_names]
            evaluation.params.maxDets = list(rules.max_detections)
            evaluation.params.useCats = 0 if class_agnostic else 1
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval


def overlaps(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """COCO's overlap (N, M) of boxes in xywh, (N, 4) and (M, 4).

    It is the intersection over the union or, where `crowd` (M,) is True, over the area of `found`.
    """
    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    return np.asarray(mask.iou(found, truth, crowd.astype(np.uint8).tolist()))


@contextlib.contextmanager
def _silence():
    with contextlib.redirect_stdout(io.StringIO()):
        yield
