"""Numbers of a log as lines of charts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from sparsedet.report.runs.folder import RunFolder
from sparsedet.report.runs.parts import Chart, Line, Table

__all__ = ["Points", "chart", "loss_terms", "of_runs", "points", "thin"]

Points = list[tuple[float, float]]
_DECADES = 15  # the highest number over the lowest from which a logarithmic axis helps
_MOST = 240  # points of a line; more are not to be seen


def points(rows: Iterable[Mapping[str, Any]], name: str) -> Points:
    """A column of a log over the iterations; rows without a number are left out."""
    found = ((row["iteration"], row.get(name)) for row in rows)
    return [(x, float(y)) for x, y in found if isinstance(y, (int, float))]


def thin(line: Points) -> Points:
    """The line by the means of as many stretches as a chart shows."""
    if len(line) <= _MOST:
        return line
    edges = [round(i * len(line) / _MOST) for i in range(_MOST + 1)]
    parts = [line[low:high] for low, high in pairwise(edges)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def loss_terms(rows: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """The terms of the loss, each summed over the stages, by kind; the largest first."""
    terms: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("loss/") and isinstance(value, (int, float)):
                kind = terms.setdefault(name.rsplit("/", 1)[-1], {})
                kind[row["iteration"]] = kind.get(row["iteration"], 0.0) + value
    found = {name: sorted((float(x), y) for x, y in term.items()) for name, term in terms.items()}
    return dict(sorted(found.items(), key=lambda each: -fmean(y for _, y in each[1])))


def chart(
    title: str,
    y: str,
    lines: Iterable[tuple[str, Points, int]],
    *,
    digits: int = 3,
    dots: bool = False,
    log: bool = False,
    note: str = "",
) -> Chart | None:
    """A chart over the iterations, and its numbers; None where no line has a point.

    Args:
        title: of the chart.
        y: what its vertical axis is.
        lines: name, points and color of each.
        digits: significant ones, in the table.
        dots: whether each point is marked.
        log: whether the vertical axis is logarithmic, where the numbers span a wide range.
        note: below the chart.
    """
    known = [(name, line, color) for name, line, color in lines if line]
    if not known:
        return None
    values = [y for _, line, _ in known for _, y in line]
    log = log and min(values) > 0 and max(values) > _DECADES * min(values)
    numbers = Table(
        title=f"{title}: numbers",
        head=["", "first", "lowest", "highest", "last", "at iteration"],
        rows=[[n if len(known) > 1 else y, *_extremes(line, digits)] for n, line, _ in known],
    )
    drawn = [Line(name, thin(line), color, dots=dots) for name, line, color in known]
    return Chart(title, "iteration", y, drawn, numbers, log=log, note=note)


def _extremes(line: Points, digits: int) -> list[str]:
    values = [y for _, y in line]
    shown = (values[0], min(values), max(values), values[-1])
    return [*(f"{each:.{digits}g}" for each in shown), f"{line[-1][0]:.0f}"]


def of_runs(
    runs: Sequence[RunFolder], make: Callable[[RunFolder], Points]
) -> list[tuple[str, Points, int]]:
    """A line for each run, in its color."""
    return [(run.name, make(run), color) for color, run in enumerate(runs)]
