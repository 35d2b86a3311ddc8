"""A confusion matrix of detections.

The counting is our own because `supervision` does not know ignore regions: it would count
detections in a crowd as false positives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sparsedet.evaluation.backends import overlaps

BACKGROUND = "background"


def confusion_matrix(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
    *,
    score_threshold: float,
    iou: float = 0.5,
) -> np.ndarray:
    """Counts objects by their true class and their predicted class.

    Detections are matched in the order of their scores, the highest first. Each takes an unmatched
    object that it overlaps by `iou` or more: the one of its own class that it overlaps most, or
    else the one of any class. An unmatched detection counts in the background row, unless it lies
    in an ignore region of its class (with a share of `iou` or more of its area). Unmatched objects
    count in the background column.

    Args:
        pairs: for each image the truth (M, 6): x, y, width, height, class, 1 for ignore regions;
            and the detections (N, 6): x, y, width, height, score, class.
        num_classes: number of classes.
        score_threshold: detections that score less are left out.
        iou: smallest overlap of a match.

    Returns:
        Counts (num_classes + 1, num_classes + 1): rows are true classes, columns predicted ones;
        the background is last in both.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for truth, found in pairs:
        found = found[found[:, 4] >= score_threshold]
        found = found[np.argsort(-found[:, 4], kind="stable")]
        _count_image(matrix, truth, found, iou)
    return matrix


def _count_image(matrix: np.ndarray, truth: np.ndarray, found: np.ndarray, iou: float) -> None:
    crowd, classes = truth[:, 5] == 1, truth[:, 4].astype(int)
    overlap = overlaps(found[:, :4], truth[:, :4], crowd)
    free = ~crowd
    for row, label in zip(overlap, found[:, 5].astype(int), strict=True):
        own, near = classes == label, row >= iou
        candidates = np.flatnonzero(free & near)
        if candidates.size:
            best = max(candidates, key=lambda place: (own[place], row[place]))
            matrix[classes[best], label] += 1
            free[best] = False
        elif not (crowd & near & own).any():
            matrix[-1, label] += 1
    np.add.at(matrix[:, -1], classes[free], 1)


def confusion_summary(
    matrix: np.ndarray, names: Sequence[str], *, score_threshold: float, iou: float = 0.5
) -> dict[str, Any]:
    """The matrix with its thresholds and names, as `confusion.json` stores it."""
    return {
        "score_threshold": score_threshold,
        "iou": iou,
        "rows": "true class",
        "columns": "predicted class",
        "classes": [*names, BACKGROUND],
        "matrix": matrix.tolist(),
    }
