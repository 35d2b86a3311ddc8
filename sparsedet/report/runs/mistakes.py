"""Precision over recall, the confusion matrix, and the worst pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sparsedet.data import DatasetError, StorageError
from sparsedet.predictor import read_picture
from sparsedet.report.packing import data_uri
from sparsedet.report.page import readable
from sparsedet.report.runs.folder import RunFolder
from sparsedet.report.runs.parts import (
    Block,
    Box,
    Chart,
    Line,
    Note,
    Pictures,
    Section,
    Shown,
    Table,
    number,
    share,
)

__all__ = ["confused_pairs", "mistakes"]

_SIDE = 420  # long side of a picture, in pixels
_SHOWN_CLASSES = 15  # rows of a matrix that can be read
_NAMED = 7  # classes with a line of their own
_FEW_RUNS = 3
_EACH = 4  # pictures of each kind
_LISTED = 5  # faults that are named below a picture
_KINDS = {
    "missed": "Most missed objects",
    "false": "Most false boxes",
    "loose": "Loosest boxes",
}


def mistakes(runs: Sequence[RunFolder]) -> Section:
    """Where the detector errs; of many runs without pictures and matrices."""
    blocks: list[Block] = [*_curves(runs)]
    several = len(runs) > 1
    if len(runs) > _FEW_RUNS:
        text = "Confusion matrices and pictures are only in the report of each run."
        return Section("mistakes", "Mistakes", [*blocks, Note(text)], files=("curves.json",))
    for run in runs:
        prefix = f"{run.name}: " if several else ""
        if confusion := run.file("confusion.json"):
            blocks.append(_matrix(confusion, prefix, folded=several))
        if worst := run.file("worst.json"):
            blocks.append(Note(prefix + _totals(worst)))
            explained = any(isinstance(block, Pictures) for block in blocks)
            blocks += _pictures(worst, prefix, several=several, explained=explained)
    files = ("curves.json", "confusion.json", "worst.json")
    return Section("mistakes", "Mistakes", blocks, files=files)


# --- precision over recall -----------------------------------------------------------------------


def _curves(runs: Sequence[RunFolder]) -> list[Chart]:
    charts = []
    for iou in ("0.50", "0.75"):
        lines = _of_classes(runs[0], iou) if len(runs) == 1 else _of_runs(runs, iou)
        if not lines:
            continue
        title = f"Precision over recall at IoU {iou}"
        rows = [[line.name, number(sum(y for _, y in line.points) / len(line.points))]
                for line in lines]  # fmt: skip
        numbers = Table(f"{title}: numbers", ["", "AP at this IoU"], rows)
        charts.append(Chart(title, "recall in %", "precision in %", lines, numbers))
    return charts


def _of_classes(run: RunFolder, iou: str) -> list[Line]:
    found = run.file("curves.json")
    if not found or not found[iou]["classes"]:
        return []
    lines = [Line("mean", list(zip(found["recall"], found[iou]["mean"], strict=True)), 0)]
    classes = {name: each["precision"] for name, each in found[iou]["classes"].items()}
    ranked = sorted(classes, key=lambda name: sum(classes[name]))
    for color, name in enumerate(ranked[:_NAMED], start=1):  # the worst are those to look at
        lines.append(Line(name, list(zip(found["recall"], classes[name], strict=True)), color))
    return lines


def _of_runs(runs: Sequence[RunFolder], iou: str) -> list[Line]:
    return [
        Line(run.name, list(zip(found["recall"], found[iou]["mean"], strict=True)), color)
        for color, run in enumerate(runs)
        if (found := run.file("curves.json")) and found[iou]["mean"]
    ]


# --- confusion -----------------------------------------------------------------------------------


def confused_pairs(confusion: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    """True class, class that it is found as, how often, and objects of the true class.

    The most frequent pair comes first; the background is no class.
    """
    matrix, names = confusion["matrix"], confusion["classes"]
    pairs = [
        (names[i], names[j], matrix[i][j], sum(matrix[i]))
        for i in range(len(matrix) - 1)
        for j in range(len(matrix) - 1)
        if i != j and matrix[i][j]
    ]
    return sorted(pairs, key=lambda pair: -pair[2])


def _matrix(confusion: Mapping[str, Any], prefix: str, *, folded: bool) -> Table:
    matrix, names = confusion["matrix"], confusion["classes"]
    shown = _most_confused(matrix)
    last = len(names) - 1
    rows = []
    for i in shown:
        whole = max(sum(matrix[i]), 1) if i != last else max(*matrix[i], 1)
        cells = [Box(str(matrix[i][j]), matrix[i][j] / whole, i == j) for j in shown]
        rows.append([names[i] if i != last else "false", *cells])
    note = (
        "Rows are true classes and columns predicted ones, at scores of at least "
        f"{confusion['score_threshold']:g} and an IoU of at least {confusion['iou']:g}. Objects "
        "without a box are missed, boxes without an object false."
    )
    if len(shown) < len(names):
        note += f" {len(shown) - 1} of {last} classes are shown: those with the most errors."
    head = ["true class", *(names[j] if j != last else "missed" for j in shown)]
    return Table(f"{prefix}Confusion matrix", head, rows, note=note, folded=folded)


def _most_confused(matrix: Sequence[Sequence[int]]) -> list[int]:
    last = len(matrix) - 1
    wrong = [sum(matrix[i]) + sum(row[i] for row in matrix) - 2 * matrix[i][i] for i in range(last)]
    chosen = sorted(range(last), key=lambda i: -wrong[i])[:_SHOWN_CLASSES]
    return [*sorted(chosen), last]


# --- pictures ------------------------------------------------------------------------------------


def _totals(worst: Mapping[str, Any]) -> str:
    totals = worst["totals"]
    objects, found = max(totals["objects"], 1), max(totals["detections"], 1)
    if not totals["detections"]:
        return f"No box scores at least {worst['score_threshold']:g}: all objects are missed."
    return (
        f"Of {totals['objects']} objects, {share(totals['missed'] / objects)} are missed. Of "
        f"{totals['detections']} boxes that score at least {worst['score_threshold']:g}, "
        f"{share(totals['false'] / found)} are false (no object there), "
        f"{share(totals['class'] / found)} have the wrong class, and "
        f"{share(totals['loose'] / found)} are loose (an IoU below {worst['loose_iou']:g})."
    )


def _pictures(
    worst: Mapping[str, Any], prefix: str, *, several: bool, explained: bool
) -> list[Block]:
    """The worst pictures by kind; of several runs one of each kind, all in a row.

    Args:
        worst: of ``worst.json``.
        prefix: of the titles.
        several: whether there are several runs.
        explained: whether the colors of boxes are explained already.
    """
    groups: dict[str, list[Shown]] = {}
    unread = []
    for kind, title in _KINDS.items():
        for place in worst[kind][: 1 if several else _EACH]:
            try:
                shown = _shown(worst["pictures"][place], kind)
            except (DatasetError, StorageError) as error:
                unread.append(str(error))
            else:
                groups.setdefault("Worst pictures" if several else title, []).append(shown)
    blocks: list[Block] = [
        Pictures(prefix + title, shown, legend=not place)
        for place, (title, shown) in enumerate(groups.items(), start=int(explained))
    ]
    return [*blocks, *(Note(f"{prefix}A picture cannot be shown: {text}") for text in unread)]


def _shown(entry: Mapping[str, Any], kind: str) -> Shown:
    picture = read_picture(entry["file"])
    height, width = picture.size
    boxes = [_box("missed", each, each["class"]) for each in entry["truth"] if each["fault"]]
    for each in entry["found"]:
        words = f"{each['class']} {each['score']:.2f}"
        if each["object"] is not None:
            words += f", IoU {each['iou']:.2f}"
        if each["fault"] == "loose" == kind:
            boxes.append(_box("object", entry["truth"][each["object"]], "where the object is"))
        boxes.append(_box(each["fault"] or "right", each, words))
    boxes.sort(key=lambda box: box[0] == kind)  # what the picture is shown for is on top
    faults = [box for box in boxes if box[0] == kind]
    title = readable(entry["file"]).rpartition("/")[2]
    image = data_uri(picture.to_pillow(), _SIDE)
    words = f"{len(faults)} {kind}: {_listed([box[5] for box in faults])}"
    return Shown(title, kind, image, (width, height), boxes, words)


def _listed(words: Sequence[str]) -> str:
    """The words, equal ones once with their number; no more than fit below a picture."""
    counts = Counter(words)
    found = [f"{count} {word}" if count > 1 else word for word, count in counts.most_common()]
    more = sum(list(counts.values())[_LISTED:]) if len(found) > _LISTED else 0
    return "; ".join(found[:_LISTED]) + (f" and {more} more" if more else "")


def _box(
    kind: str, entry: Mapping[str, Any], words: str
) -> tuple[str, float, float, float, float, str]:
    x, y, width, height = entry["box"]
    return kind, x, y, width, height, words
