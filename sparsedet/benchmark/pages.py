"""What a suite measured, as tables for a page and as plots."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsedet.benchmark import curves
from sparsedet.benchmark.modes import MODES
from sparsedet.benchmark.report import markdown
from sparsedet.config import ConfigError
from sparsedet.files import atomic_write, write_figure

_FACTS = ("device", "cpu", "cpu_capability", "threads", "allocator", "torch")
Suite = dict[str, Any]
Row = dict[str, Any]


def page(suite: Suite) -> str:
    """Every section with its command, what it depends on, and its table."""
    parts = [f"### {section['title']}\n\n{_section(section)}" for section in suite["sections"]]
    return "\n\n".join(parts) + "\n"


def fill(suite: Suite, path: Path) -> None:
    """Put the tables of a suite into a page, each between the two comments that name its section.

    These are ``<!-- benchmark large systems -->`` and ``<!-- end of benchmark -->`` on lines of
    their own, for the section ``systems`` of the suite ``large``.

    Raises:
        ConfigError: the page has no such comments.
    """
    text = before = path.read_text(encoding="utf-8")
    for section in suite["sections"]:
        begin = f"<!-- benchmark {suite['suite']} {section['name']} -->\n"
        place = re.compile(f"{re.escape(begin)}.*?(?=<!-- end of benchmark -->)", re.DOTALL)
        filled = f"{begin}\n{_section(section)}\n\n"
        text = place.sub(lambda _, filled=filled: filled, text)
    if text == before and "<!-- end of benchmark -->" not in text:
        raise ConfigError(
            f"--fill {path} has no place for a table of this suite. Write two lines there: "
            f"<!-- benchmark {suite['suite']} SECTION --> and <!-- end of benchmark -->."
        )
    with atomic_write(path) as file:
        file.write(text.encode())


def _section(section: Row) -> str:
    head = f"```bash\n{section['command']}\n```\n\n"
    if section["status"] != "done":
        return f"{head}{section['status'].capitalize()}: {section['error']}."
    result = section["result"]
    facts = result.get("environment", {})
    shown = ", ".join(f"{name} {facts[name]}" for name in _FACTS if facts.get(name))
    made = [make(result) for make in MODES[result["mode"]].tables]
    tables = [markdown(table) for table in made if table]
    failed = [f"{row['name']}: {row['error']}" for row in result["rows"] if "error" in row]
    for row in result["rows"]:  # of the op: forms by name
        failed += [f"{name}: {reason}" for name, reason in row.get("errors", {}).items()]
    failed = list(dict.fromkeys(failed))
    return "\n\n".join([f"{head}{shown}.", *tables, *(f"Failed: {each}." for each in failed)])


def draw(suite: Suite, path: Path) -> None:
    """Time and memory against image size, time against kept tokens; of large pictures ``curves``.

    Raises:
        ConfigError: matplotlib is absent, or the suite holds nothing to draw.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("The plot needs matplotlib. Run: pip install 'sparsedet[plot]'")
    from matplotlib.figure import Figure

    if suite.get("suite") == "large":
        return curves.draw(suite, path)
    sizes, kept = _rows(suite, "sizes"), _rows(suite, "kept")
    panels: list[tuple[str, str, list[Row], Callable[[Row], tuple[float, float] | None]]] = [
        ("side of the image in pixels", "ms per image", sizes, _time_by_size),
        ("side of the image in pixels", "peak memory in GB", sizes, _memory_by_size),
        ("tokens that a layer updates", "ms per image", kept, _time_by_tokens),
    ]
    panels = [panel for panel in panels if any(map(panel[3], panel[2]))]
    if not panels:
        raise ConfigError("--plot needs the sections 'sizes' or 'kept', of which there are none.")
    figure = Figure(figsize=(4.6 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for each, (x_label, y_label, rows, place) in zip(axes, panels, strict=True):
        for name, points in _lines(rows, place).items():
            each.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        each.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
        each.grid(alpha=0.3)
        each.legend(fontsize="x-small")
    write_figure(path, figure, dpi=120)


def _rows(suite: Suite, name: str) -> list[Row]:
    found = [each for each in suite["sections"] if each["name"] == name and "result" in each]
    return [row for section in found for row in section["result"]["rows"] if "error" not in row]


def _lines(
    rows: list[Row], place: Callable[[Row], tuple[float, float] | None]
) -> dict[str, list[tuple[float, float]]]:
    """Points by the name of their line, which for a sweep of keep ratios leaves the ratio out."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = place(row)
        if point is not None:
            name = row["name"]
            if place is _time_by_tokens:
                name = name.replace(f", keep {row['keep']}", "").replace(", dense", "")
            lines.setdefault(name, []).append(point)
    return lines


def _side(row: Row) -> float:
    height, width = row["image_size"]
    return (height * width) ** 0.5


def _time_by_size(row: Row) -> tuple[float, float]:
    return _side(row), row["ms"]["median"] / row["batch"]


def _memory_by_size(row: Row) -> tuple[float, float] | None:
    memory = row.get("memory")
    return None if not memory else (_side(row), memory["peak_mb"] / 1e3)


def _time_by_tokens(row: Row) -> tuple[float, float]:
    return row["kept_tokens"], row["ms"]["median"] / row["batch"]
