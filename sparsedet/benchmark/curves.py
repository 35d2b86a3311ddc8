"""Large pictures as curves: what systems cost against the canvas and against what matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsedet.benchmark.large import DENSE, FOCUS, GLANCE, SLICES, tile_count
from sparsedet.config import ConfigError
from sparsedet.files import write_figure

Row = dict[str, Any]
_NAMES = {DENSE: "DINO", FOCUS: "Focus-DETR", SLICES: "DINO on slices", GLANCE: "glance and look"}
# lines of one course lie on each other: the first is the widest
_STYLES = {
    DENSE: {"color": "C0", "lw": 3.5},
    FOCUS: {"color": "C1", "lw": 1.5},
    SLICES: {"color": "C2", "lw": 1.5},
    GLANCE: {"color": "C3", "lw": 1.5},
}
_MARKERS = {DENSE: "o", FOCUS: "s", SLICES: "^", GLANCE: "D"}


@dataclass(frozen=True)
class _Panel:
    """What is on the vertical axis."""

    label: str
    value: Callable[[Row], float]


@dataclass(frozen=True)
class _Curves:
    """Rows and where they are on the horizontal axis.

    Attributes:
        rows: of all systems.
        place: on the axis; negative for a level, the same everywhere.
        label: of the axis.
        title: what is the same for all rows.
        amount: what the cost of glance and look is to grow with in proportion, and its ``unit``.
    """

    rows: list[Row]
    place: Callable[[Row], float]
    label: str
    title: str
    amount: Callable[[Row], float]
    unit: str


_PANELS = (
    _Panel("seconds per picture", lambda row: row["ms"]["median"] / 1e3),
    _Panel("peak memory in GB", lambda row: row["memory"]["peak_mb"] / 1e3),
    _Panel("GFLOPs", lambda row: (row["gflops"] or {}).get("total", float("nan"))),
)


def draw(suite: Row, path: Path) -> None:
    """Time, memory and GFLOPs against the canvas and against the share of the tiles looked at.

    A square picture of the first section is a point of the canvas' curves where as much is looked
    at there as elsewhere on them, and what the others cost there is beside the curves of the share.

    Args:
        suite: the JSON of the suite.
        path: the PNG.

    Raises:
        ConfigError: the suite has neither curve.
    """
    from matplotlib.figure import Figure

    kinds = [each for each in (_canvas(suite), _share(suite)) if each.rows]
    if not kinds:
        raise ConfigError("--plot needs the sections 'canvas' or 'share', of which there are none.")
    figure = Figure(figsize=(13.5, 4.2 * len(kinds) + 0.5), layout="constrained")
    grid = figure.subplots(len(kinds), len(_PANELS), squeeze=False)
    for line, kind in zip(grid, kinds, strict=True):
        for axes, panel in zip(line, _PANELS, strict=True):
            _draw_lines(axes, kind, panel)
        _draw_fit(line[0], kind, _PANELS[0])
    handles = {}
    for axes in reversed(figure.axes):  # lines with markers come first, and stay
        found, names = axes.get_legend_handles_labels()
        handles.update(zip(names, found, strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    write_figure(path, figure, dpi=120)


def _draw_lines(axes: Any, kind: _Curves, panel: _Panel) -> None:
    for system in _NAMES:
        rows = sorted(_of(kind.rows, system), key=kind.place)
        if not rows:
            continue
        values, style = [panel.value(row) for row in rows], _STYLES[system]
        if kind.place(rows[0]) < 0:
            axes.axhline(values[0], ls="--", label=_label(rows[0]), **style)
            continue
        places = [kind.place(row) for row in rows]
        axes.plot(places, values, marker=_MARKERS[system], label=_label(rows[0]), **style)
    axes.set(xlabel=kind.label, ylabel=panel.label, title=kind.title, ylim=(0, None))
    axes.set_xlim(0)
    axes.grid(alpha=0.3)


def _draw_fit(axes: Any, kind: _Curves, panel: _Panel) -> None:
    """The straight line that costs of glance and look are to follow, by least squares."""
    rows = sorted(_of(kind.rows, GLANCE), key=kind.place)
    amounts = [kind.amount(row) for row in rows]
    if len(set(amounts)) < 3:
        return
    slope, start = np.polyfit(amounts, [panel.value(row) for row in rows], 1)
    places = [kind.place(row) for row in rows]
    line = axes.plot(places, start + slope * np.array(amounts), color="black", lw=1, ls=":")
    axes.legend(line, [f"{start:.2g} s + {slope:.2g} s per {kind.unit}"], loc="best")


def _rows(suite: Row, name: str) -> list[Row]:
    found = [each for each in suite["sections"] if each["name"] == name and "result" in each]
    rows = [row for section in found for row in section["result"]["rows"]]
    return [row for row in rows if "error" not in row]


def _canvas(suite: Row) -> _Curves:
    """Rows of the section, and of the systems' those of the same kinds on another canvas."""
    rows = _rows(suite, "canvas")
    sides = {_side(row) for row in rows}
    looked = max((row["looked_tiles"] for row in rows if row["system"] == GLANCE), default=None)
    kinds = {(row["system"], row["keep"]) for row in rows}
    rows += [
        row
        for row in _rows(suite, "systems")
        if (row["system"], row["keep"]) in kinds
        and len(set(row["image_size"])) == 1
        and _side(row) not in sides
        and row.get("looked_tiles") in (None, looked)
    ]
    return _Curves(
        rows,
        place=_side,
        label="side of the picture in pixels",
        title="" if looked is None else f"{tile_count(looked)} looked at",
        amount=lambda row: _side(row) ** 2 / 1e6,
        unit="megapixel",
    )


def _share(suite: Row) -> _Curves:
    """Rows of the section, and of the systems on that canvas, whose cost is one level."""
    rows = _rows(suite, "share")
    sizes = [row["image_size"] for row in rows]
    beside = [row for row in _rows(suite, "systems") if row["image_size"] in sizes]
    least = min((float(row["keep"]) for row in beside if row["system"] == FOCUS), default=None)
    beside = [row for row in beside if row["system"] != FOCUS or float(row["keep"]) == least]
    return _Curves(
        rows + [row for row in beside if row["system"] in _NAMES],
        place=_looked_share,
        label="share of the tiles looked at in %",
        title="{1} x {0} pixels".format(*sizes[0]) if sizes else "",
        amount=_looked_share,
        unit="% of the tiles",
    )


def _side(row: Row) -> int:
    return row["image_size"][0]


def _looked_share(row: Row) -> float:
    """In percent; -1 where nothing is chosen."""
    return 100 * row["looked_tiles"] / row["tiles"] if "tiles" in row else -1


def _of(rows: Sequence[Row], system: str) -> list[Row]:
    return [row for row in rows if row["system"] == system]


def _label(row: Row) -> str:
    name = _NAMES[row["system"]]
    return f"{name}, keep ratio {row['keep']}" if row["system"] == FOCUS else name
