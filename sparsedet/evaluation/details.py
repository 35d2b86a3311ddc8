"""Results by class and precision-recall curves, from the arrays of COCO's evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsedet.data.dataset import AnnotatedDataset
from sparsedet.tables import format_table

IOU_50, IOU_75 = 0, 5  # places in COCO's thresholds .50:.05:.95
_RECALLS = np.linspace(0, 100, 101)
_SHOWN_CLASSES = 20

Totals = Mapping[str, np.ndarray]
Row = dict[str, Any]


def percent(values: np.ndarray) -> float:
    """Mean in percent, ignoring -1, which COCO writes without objects; NaN if all are -1."""
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else float("nan")


def class_rows(dataset: AnnotatedDataset, totals: Totals) -> list[Row]:
    """A row for each class of the set: `class`, `images`, `boxes`, `AP`, `AP50` and `AR`.

    Ignore regions do not count as boxes. Metrics are in percent, NaN for a class without boxes.
    """
    boxes = np.zeros(len(dataset.class_names), dtype=int)
    images = boxes.copy()
    for record in dataset.records:
        classes = [e["category_id"] for e in record["annotations"] if not e["iscrowd"]]
        np.add.at(boxes, classes, 1)
        images[list(set(classes))] += 1
    precision, recall = totals["precision"][..., 0, -1], totals["recall"][..., 0, -1]
    return [
        {
            "class": name,
            "images": int(images[place]),
            "boxes": int(boxes[place]),
            "AP": percent(precision[:, :, place]),
            "AP50": percent(precision[IOU_50, :, place]),
            "AR": percent(recall[:, place]),
        }
        for place, name in enumerate(dataset.class_names)
    ]


def class_table(rows: Sequence[Row], *, limit: int = _SHOWN_CLASSES) -> str:
    """The rows of `class_rows` as a table for a terminal, the best class first.

    Args:
        rows: results by class; the last line counts those without boxes.
        limit: with more classes, only the best and the worst ones are shown.
    """
    known = sorted((row for row in rows if row["boxes"]), key=lambda row: -row["AP"])
    cells = [
        [row["class"], str(row["images"]), str(row["boxes"])]
        + [f"{row[name]:.1f}" for name in ("AP", "AP50", "AR")]
        for row in known
    ]
    if len(cells) > limit:
        half = limit // 2
        between = len(cells) - 2 * half
        cells[half:-half] = [[f"... {between} more classes ...", "", "", "", "", ""]]
    lines = [format_table([["class", "images", "boxes", "AP", "AP50", "AR"], *cells])]
    if len(known) < len(rows):
        lines.append(f"classes without boxes: {len(rows) - len(known)} of {len(rows)}")
    return "\n".join(lines)


def curves(class_names: Sequence[str], totals: Totals) -> dict[str, Any]:
    """Precision over recall in percent, at IoU 0.5 and 0.75.

    Returns:
        `recall`, 101 values; and for each IoU `mean`, the precision at each recall averaged over
        the classes, and `classes`: for each name `precision` and `score`, the score threshold at
        which the class reaches the recall (0 if it does not). Classes without boxes are left out.
    """
    found: dict[str, Any] = {"recall": _RECALLS.tolist()}
    for name, place in (("0.50", IOU_50), ("0.75", IOU_75)):
        precision = 100 * totals["precision"][place, :, :, 0, -1]
        scores = totals["scores"][place, :, :, 0, -1]
        known = np.flatnonzero((precision > -1).all(axis=0)).tolist()
        found[name] = {
            "mean": _rounded(precision[:, known].mean(axis=1)) if known else None,
            "classes": {
                class_names[i]: {
                    "precision": _rounded(precision[:, i]),
                    "score": _rounded(scores[:, i]),
                }
                for i in known
            },
        }
    return found


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
