"""Detections matched with objects, and a confusion matrix of them.

The counting is our own because `supervision` does not know ignore regions: it would count
detections in a crowd as false positives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsedet.evaluation.backends import overlaps

BACKGROUND = "background"
NONE, IGNORED = -1, -2
"""What stands for no object, and for an ignore region, in `Matches.taken`."""


@dataclass(frozen=True)
class Matches:
    """What of one picture was found.

    Attributes:
        truth: (M, 6): x, y, width, height, class, 1 for ignore regions.
        found: (N, 6): x, y, width, height, score, class; the highest score first.
        taken: (N,), for each detection its object, `NONE` or `IGNORED`.
        overlap: (N,), the IoU with that object; 0 without one.
    """

    truth: np.ndarray
    found: np.ndarray
    taken: np.ndarray
    overlap: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """Places of the objects that no detection takes."""
        free = self.truth[:, 5] != 1
        free[self.taken[self.taken >= 0]] = False
        return np.flatnonzero(free)


def match(
    truth: np.ndarray, found: np.ndarray, *, score_threshold: float, iou: float = 0.5
) -> Matches:
    """Match the detections of a picture with its objects.

    Detections are matched in the order of their scores, the highest first. Each takes an unmatched
    object that it overlaps by `iou` or more: the one of its own class that it overlaps most, or
    else the one of any class. One that takes none is ignored where it lies in an ignore region of
    its class (with a share of `iou` or more of its area).

    Args:
        truth: (M, 6): x, y, width, height, class, 1 for ignore regions.
        found: (N, 6): x, y, width, height, score, class.
        score_threshold: detections that score less are left out.
        iou: smallest overlap of a match.
    """
    found = found[found[:, 4] >= score_threshold]
    found = found[np.argsort(-found[:, 4], kind="stable")]
    crowd, classes = truth[:, 5] == 1, truth[:, 4].astype(int)
    overlap = overlaps(found[:, :4], truth[:, :4], crowd)
    free, taken, best = ~crowd, np.full(len(found), NONE), np.zeros(len(found))
    for number, (row, label) in enumerate(zip(overlap, found[:, 5].astype(int), strict=True)):
        own, near = classes == label, row >= iou
        candidates = np.flatnonzero(free & near)
        if candidates.size:
            place = max(candidates, key=lambda place: (own[place], row[place]))
            taken[number], best[number], free[place] = place, row[place], False
        elif (crowd & near & own).any():
            taken[number] = IGNORED
    return Matches(truth, found, taken, best)


def confusion_matrix(pictures: Iterable[Matches], num_classes: int) -> np.ndarray:
    """Counts objects by their true class and their predicted class.

    A detection that takes no object counts in the background row, unless it is ignored. Objects
    that no detection takes count in the background column.

    Args:
        pictures: matches of each.
        num_classes: number of classes.

    Returns:
        Counts (num_classes + 1, num_classes + 1): rows are true classes, columns predicted ones;
        the background is last in both.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for each in pictures:
        classes, labels = each.truth[:, 4].astype(int), each.found[:, 5].astype(int)
        right = each.taken >= 0
        np.add.at(matrix, (classes[each.taken[right]], labels[right]), 1)
        np.add.at(matrix[-1], labels[each.taken == NONE], 1)
        np.add.at(matrix[:, -1], classes[each.missed], 1)
    return matrix


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
