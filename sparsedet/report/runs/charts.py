"""Charts as SVG that takes its colors from the page, drawn by matplotlib where it is installed."""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from typing import Any

from sparsedet.report.runs.parts import Chart, Line

__all__ = ["COLORS", "can_draw", "draw"]

COLORS = 8
"""How many colors the page has for lines; further lines are dashed, then dotted."""

_DASHES: Any = ("solid", (0, (4, 2)), (0, (1, 1.5)))
_SIZE = (5.6, 3.0)  # inches of 72 units
_INK, _QUIET, _GRID = "#010101", "#020202", "#030303"  # what stands for colors of the page
_NAMES = {_INK: "var(--ink)", _QUIET: "var(--quiet)", _GRID: "var(--line)"}
_NAMES |= {f"#0a0a{number:02x}": f"var(--line-{number})" for number in range(COLORS)}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _QUIET,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "text.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.formatter.useoffset": False,
}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(chart: Chart) -> str:
    """The SVG of a chart, an image for readers of the screen; its numbers stand beside it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": chart.title}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for line in chart.lines:
            _add(axes, line)
        axes.set(xlabel=chart.x, ylabel=chart.y)
        axes.grid(axis="y")
        if chart.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.02)
        if chart.from_zero:
            axes.set_xlim(0, 1.1 * max(x for line in chart.lines for x, _ in line.points))
        content = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    return _of_page(content.getvalue().decode("utf-8"), chart.title)


def _add(axes: Any, line: Line) -> None:
    x, y = zip(*line.points, strict=True)
    alone = line.dots or len(x) == 1
    axes.plot(
        x,
        y,
        color=f"#0a0a{line.color % COLORS:02x}",
        linewidth=1.6,
        linestyle=_DASHES[min(max(line.color // COLORS, line.dashed), 2)],
        marker="o" if alone else None,
        markersize=4,
    )


def _shorter(attribute: re.Match[str]) -> str:
    """Coordinates with two decimals: a hundredth of a unit is not to be seen."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])


def _of_page(svg: str, title: str) -> str:
    """The element alone, in the colors of the page, without names that other charts have too."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, count=1, flags=re.S)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    svg = re.sub(r'="[^"<>]*"', _shorter, svg)
    svg = svg.replace("xlink:href", "href")
    for color, name in _NAMES.items():
        svg = svg.replace(color, name)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None  # matplotlib always writes one
    label = re.sub(r"[<>&\"]", " ", title)
    start = f'<svg class="plot" role="img" aria-label="{label}" {view[0]}>'
    return re.sub(r"\n\s*", "\n", start + svg[svg.index(">") + 1 :])
