"""Tables and lines that describe the data of a run, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sparsedet.survey.numbers import SMALL_SIDE, InputSizes, Part
from sparsedet.survey.settings import Settings
from sparsedet.tables import format_table

__all__ = ["QUANTILES", "describe_classes", "describe_parts", "describe_run"]

QUANTILES = (0.1, 0.5, 0.9)
_MOST_ROWS = 20  # of classes; a longer list shows only these numbers of classes:
_FREQUENT, _RARE = 12, 5


def describe_parts(parts: Sequence[Part], sizes: Mapping[str, InputSizes | str]) -> str:
    """A table of pictures and boxes, in the file and at the model's input.

    Args:
        parts: parts of a data set.
        sizes: the sizes at the model's input of each part, or why they are unknown.
    """
    rows = [["", *(part.name or "all" for part in parts)]]
    for title, count in (
        ("pictures", lambda part: len(part.pictures)),
        ("pictures without a box", lambda part: int((part.objects == 0).sum())),
        ("boxes", lambda part: len(part.boxes)),
        ("ignore regions", lambda part: int(part.ignored.sum())),
        ("most boxes in a picture", lambda part: part.most),
    ):
        rows.append([title, *(str(count(part)) for part in parts)])
    given = [sizes[part.name] for part in parts]
    known = [None if isinstance(each, str) else each for each in given]
    rows += [
        ["short side *", *(_spread(part.pictures.min(axis=1)) for part in parts)],
        [
            "  at the model's input",
            *(_of(each, lambda s: s.pictures.min(axis=1)) for each in known),
        ],
        ["long side *", *(_spread(part.pictures.max(axis=1)) for part in parts)],
        [
            "  at the model's input",
            *(_of(each, lambda s: s.pictures.max(axis=1)) for each in known),
        ],
        ["size of a box *", *(_spread(part.sides) for part in parts)],
        ["  at the model's input", *(_of(each, lambda s: s.sides) for each in known)],
        [
            f"  below {SMALL_SIDE:.0f} pixels there",
            *(_share(each, "share_small") for each in known),
        ],
        ["  a side below 1 there", *(_share(each, "share_vanished") for each in known)],
    ]
    return "\n".join([format_table(rows), *_notes(parts, given)])


def _notes(parts: Sequence[Part], given: Sequence[InputSizes | str]) -> list[str]:
    notes = [
        "* 10th, 50th and 90th percentile in pixels; the size of a box is the square root of its "
        "area"
    ]
    for part, each in zip(parts, given, strict=True):
        if isinstance(each, str):
            notes.append(f"{part.its('sizes')} at the model's input are unknown: {each}")
        elif not each.exact:
            notes.append(
                f"{part.its('sizes')} at the model's input were measured on {len(each.pictures)} "
                "pictures, each augmented once"
            )
    return notes


def _of(sizes: InputSizes | None, measure) -> str:
    return "-" if sizes is None else _spread(measure(sizes))


def _share(sizes: InputSizes | None, name: str) -> str:
    return "-" if sizes is None or not len(sizes.boxes) else f"{100 * getattr(sizes, name):.1f} %"


def _spread(values: np.ndarray) -> str:
    values = values[~np.isnan(values)]
    if not len(values):
        return "-"
    return "  ".join(f"{value:.0f}".rjust(4) for value in np.quantile(values, QUANTILES))


def describe_classes(parts: Sequence[Part]) -> str:
    """A table of the objects, ignore regions and pictures of each class.

    A long list shows the most frequent and the rarest classes, and the total of the others.

    Args:
        parts: parts of a data set with the same classes.
    """
    names = parts[0].dataset.class_names
    regions = any(part.ignored.any() for part in parts)
    columns = np.stack([row for part in parts for row in _counts(part, regions)], axis=1)
    head = [
        part.its(what)
        for part in parts
        for what in ("boxes", *(["ignored"] if regions else []), "pictures")
    ]
    shown, hidden = _chosen(columns[:, 0])
    rows = [[names[i], *map(str, columns[i])] for i in shown]
    if len(hidden):
        rows.insert(
            _FREQUENT, [f"... {len(hidden)} more classes", *map(str, columns[hidden].sum(axis=0))]
        )
    return format_table([["class", *head], *rows])


def _counts(part: Part, regions: bool) -> list[np.ndarray]:
    """Boxes, ignore regions if there are any, and pictures with a box, for each class."""
    number = len(part.dataset.class_names)
    pairs = np.unique(part.picture * number + part.label) % number
    counts = [np.bincount(part.label, minlength=number)]
    return [*counts, *([part.ignored] if regions else []), np.bincount(pairs, minlength=number)]


def _chosen(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the classes that are shown and of those that are hidden."""
    if len(counts) <= _MOST_ROWS:
        return np.arange(len(counts)), np.zeros(0, dtype=int)
    order = np.argsort(-counts, kind="stable")
    shown = np.concatenate((order[:_FREQUENT], order[-_RARE:]))
    return shown, order[_FREQUENT:-_RARE]


def _times(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def describe_run(parts: Sequence[Part], settings: Settings) -> list[str]:
    """Lines about the limits of queries and detections, and about the length of the training.

    Args:
        parts: parts of the data set, the training part first.
        settings: settings of the config.
    """
    most = max(part.most for part in parts)
    known = [
        f"{value} {what}"
        for value, what in (
            (settings.num_queries, "queries"),
            (settings.max_detections, "detections per picture"),
            (settings.counted, "detections per picture and class in the evaluation"),
        )
        if value is not None
    ]
    lines = [f"limits: {', '.join(known)}; a picture has up to {most} boxes"] if known else []
    if settings.max_iter is not None and settings.batch_size is not None:
        pictures = len(parts[0].pictures)
        rounds = settings.max_iter * settings.batch_size / pictures
        lines.append(
            f"{settings.max_iter} iterations of {settings.batch_size} pictures, "
            f"{_times(rounds)} epochs of {pictures} pictures"
        )
    return lines
