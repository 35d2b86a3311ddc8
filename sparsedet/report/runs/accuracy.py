"""AP over time, by size and by class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparsedet.report.runs.folder import RunFolder
from sparsedet.report.runs.parts import Bar, Block, Cell, Section, Table, number
from sparsedet.report.runs.series import chart, of_runs, points

__all__ = ["accuracy", "class_rows", "sizes_of"]

_MAIN = ("AP", "AP50", "AP75")
_SIZE = re.compile(r"AP([a-z]+)")
_WORDS: Mapping[str, str] = {
    "s": "small",
    "m": "medium",
    "l": "large",
    "t": "tiny",
    "vt": "very tiny",
}
# of a class: key, name of the column, digits
_COLUMNS = (("AP50", "AP50", 1), ("AR", "AR", 1), ("boxes", "boxes", 0), ("images", "pictures", 0))
_OPEN = 25  # classes; longer tables are folded


def accuracy(runs: Sequence[RunFolder]) -> Section:
    """What was reached, over time, by size and by class."""
    charts = _one(runs[0]) if len(runs) == 1 else _several(runs)
    found = [*charts, _by_size(runs), _by_class(runs)]
    blocks: list[Block] = [block for block in found if block is not None]
    return Section("accuracy", "Accuracy", blocks, files=("results.json",))


def sizes_of(run: RunFolder) -> dict[str, float | None]:
    """AP by size, small first, under the words for the sizes."""
    bbox: Mapping[str, float | None] = run.metrics.get("bbox") or {}
    order = sorted((name for name in bbox if _SIZE.fullmatch(name)), key=_rank)
    return {_WORDS.get(name[2:]) or name[2:]: bbox[name] for name in order}


def _rank(name: str) -> int:
    return ["vt", "t", "s", "m", "l"].index(name[2:]) if name[2:] in _WORDS else 9


def class_rows(run: RunFolder) -> list[Mapping[str, Any]]:
    """Results by class, as `results.json` has them; of an unfinished run from its log."""
    details = run.metrics.get("details")
    if isinstance(details, Mapping) and details.get("per_class"):
        return list(details["per_class"])
    bbox = run.metrics.get("bbox") or {}
    names = [name for name in bbox if name.startswith("AP-")]
    return [{"class": name[3:], "AP": bbox[name]} for name in names]


def _one(run: RunFolder):
    evaluations = run.evaluations
    main = [(name, points(evaluations, f"bbox/{name}"), i) for i, name in enumerate(_MAIN)]
    names = {f"AP{key}": word for key, word in _WORDS.items()}
    seen = [name for name in sorted(names, key=_rank) if points(evaluations, f"bbox/{name}")]
    sizes = [(names[name], points(evaluations, f"bbox/{name}"), i) for i, name in enumerate(seen)]
    if len(evaluations) < 2:  # one evaluation is a number, which stands above
        return []
    return [
        chart("AP over time", "percent", main, dots=True),
        chart("AP by size over time", "percent", sizes, dots=True),
    ]


def _several(runs: Sequence[RunFolder]):
    if not any(len(run.evaluations) > 1 for run in runs):
        return []
    return [
        chart(
            f"{name} over time",
            "percent",
            of_runs(runs, lambda run, name=name: points(run.evaluations, f"bbox/{name}")),
            dots=True,
        )
        for name in ("AP", "AP50")
    ]


def _bar(value: Any) -> Cell:
    known = isinstance(value, (int, float))
    return Bar(number(value), min(max(value / 100, 0.0), 1.0)) if known else number(value)


def _by_size(runs: Sequence[RunFolder]) -> Table | None:
    sizes = [sizes_of(run) for run in runs]
    names = list(dict.fromkeys(name for each in sizes for name in each))
    if not names:
        return None
    details = runs[0].metrics.get("details")
    bounds = details.get("area_bounds", []) if isinstance(details, Mapping) else []
    sides = ", ".join(f"{bound**0.5:.0f}" for bound in bounds)
    note = f"The sizes are separated at {sides} pixels (square root of the area)." if sides else ""
    rows = [[name, *(_bar(each.get(name)) for each in sizes)] for name in names]
    head = ["size", *(["AP"] if len(runs) == 1 else [run.name for run in runs])]
    return Table("AP by size of the objects", head, rows, note=note)


def _by_class(runs: Sequence[RunFolder]) -> Table | None:
    """The worst class of the first run comes first: it is the one to work on."""
    rows = [{row["class"]: row for row in class_rows(run)} for run in runs]
    names = list(dict.fromkeys(name for each in rows for name in each))
    if not names:
        return None
    order = sorted(names, key=lambda name: _or_least(rows[0].get(name, {}).get("AP")))
    if len(runs) == 1:
        columns = [each for each in _COLUMNS if any(each[0] in row for row in rows[0].values())]
        head = ["class", "AP", *(name for _, name, _ in columns)]
        cells = [
            [
                name,
                _bar(rows[0][name].get("AP")),
                *(number(rows[0][name].get(key), digits) for key, _, digits in columns),
            ]
            for name in order
        ]
    else:
        head = ["class", *(run.name for run in runs)]
        cells = [[name, *(_bar(each.get(name, {}).get("AP")) for each in rows)] for name in order]
    return Table("AP by class, the lowest first", head, cells, folded=len(order) > _OPEN)


def _or_least(value: Any) -> float:
    """Classes without boxes have no AP, and come last."""
    return value if isinstance(value, (int, float)) else 1e9
