"""The results of a sweep: a file that is extended row by row, tables and plots."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sparsedet.config import ConfigError
from sparsedet.files import write_figure, write_json
from sparsedet.modeling.stages import Size
from sparsedet.sweep.measuring import (
    KEEP,
    LOOK,
    METRICS,
    TILES,
    Row,
    Share,
    Subject,
    digest,
    measure,
)
from sparsedet.tables import format_table

_RATIOS = ("asked_ratio", "keep_ratio")
_COLUMNS = (*_RATIOS, "tokens", "AP", "AP50", "APs", "APm", "APl", "GFLOPs", "ms")
_TILE_COLUMNS = (LOOK.column, *TILES)  # for models that choose tiles
_DIGITS = {"tokens": 0, **dict.fromkeys((*METRICS, *TILES), 1), "GFLOPs": 2, "ms": 1}
_AMOUNTS = {"area": "area of the objects / area of the image", "objects": "number of objects"}


class Sheet:
    """`sweep.json`: models with a row for each ratio, written after every row.

    Args:
        path: the file; its existing results are kept.
        size: image size for cost and time.
        share: the ratio that is swept.
        report: called with a line of text for each measured row.

    Raises:
        ConfigError: the file is not the result of a sweep.
    """

    def __init__(
        self, path: Path, size: Size, *, share: Share = KEEP, report: Callable[[str], None]
    ) -> None:
        self.path, self.share = path, share
        self._report = report
        self._size = size
        self.models: list[dict[str, Any]] = []
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self.models = content["models"]
                _ = [row["asked_ratio"] for model in self.models for row in model["rows"]]
                _ = content["unit"]  # files of older versions have AP as a fraction
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path} is not the result of a sweep, or is from an older version. Move it "
                    "away."
                ) from error
        self._entries: dict[int, dict[str, Any]] = {}
        self._protocol: dict[str, Any] | None = None

    @property
    def by_content(self) -> bool:
        """Whether there are models that keep a different share of each image."""
        return any(row["by_content"] for model in self.models for row in model["rows"])

    def add(self, swept: Sequence[Subject], fixed: Sequence[Subject]) -> None:
        """Find or create the entries of the models.

        Raises:
            ConfigError: the file has the sweep of another model.
        """
        digests = [digest(each, self._size, self.share) for each in swept]
        others = [model for model in self.models if model["swept"]]
        others = [model for model in others if model["digest"] not in digests]
        if others:
            raise ConfigError(
                f"{self.path} has a sweep of {others[0]['weights']} with other weights or settings."
                " Give another --output, or move the file away."
            )
        for subject, name in zip(swept, digests, strict=True):
            self._place(subject, name, swept=True)
        for subject in fixed:
            self._place(subject, digest(subject, self._size, None), swept=False)

    def _place(self, subject: Subject, name: str, *, swept: bool) -> None:
        found = [model for model in self.models if model["digest"] == name]
        if not found:
            found = [
                {
                    "name": subject.name,
                    "swept": swept,
                    "config": subject.config,
                    "weights": subject.weights,
                    "digest": name,
                    "rows": [],
                }
            ]
            self.models += found
        self._entries[id(subject)] = found[0]

    def complete(self, subject: Subject, ratio: float | None, repetitions: int) -> None:
        """Measure a model at this ratio unless the file has the result, and write the file."""
        entry = self._entries[id(subject)]
        if any(row["asked_ratio"] == ratio for row in entry["rows"]):
            return
        row = measure(subject, self._size, repetitions, self.share)
        if row["protocol"] != self._protocol:
            self._protocol = row["protocol"]
            self._report(" ".join(f"{key}={value}" for key, value in row["protocol"].items()))
        shown = [f"{name} {_text(row, name)}" for name in _columns([row])]
        self._report(f"{entry['name']}: {'  '.join(shown)}")
        entry["rows"] = sorted([*entry["rows"], row], key=lambda each: each[self.share.column])
        write_json(self.path, {"unit": "percent", "models": self.models})


def _columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns of a table of these rows."""
    looks = any(row.get(LOOK.column) is not None for row in rows)
    return (*_COLUMNS[:2], *_TILE_COLUMNS, *_COLUMNS[2:]) if looks else _COLUMNS


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return "-"
    return f"{value:.{_DIGITS.get(column, 3)}f}"


def table(models: Sequence[dict[str, Any]]) -> str:
    """One line for each row of each model."""
    columns = _columns([row for model in models for row in model["rows"]])
    lines = [["model", *columns]]
    for model in models:
        lines += [[model["name"], *(_text(row, name) for name in columns)] for row in model["rows"]]
    return format_table(lines, left=())


def draw(models: Sequence[dict[str, Any]], share: Share, path: Path) -> None:
    """Plot AP against GFLOPs and milliseconds; if tiles are chosen, also their recall."""
    from matplotlib.figure import Figure

    rows = [row for model in models for row in model["rows"]]
    looks = share is LOOK and any(row.get("tile_recall") is not None for row in rows)
    figure = Figure(figsize=(15 if looks else 10, 4.2), layout="constrained")
    plots = figure.subplots(1, 3 if looks else 2)
    plots[1].sharey(plots[0])
    for axes, column, label in zip(
        plots[:2], ("GFLOPs", "ms"), ("GFLOPs", "milliseconds per image"), strict=True
    ):
        _draw_costs(axes, models, column, share)
        axes.set_xlabel(label)
    plots[0].set_ylabel("AP in %")
    plots[0].legend(title=f"numbers: {share.column.replace('_', ' ')}")
    if looks:
        _draw_recall(plots[2], models)
    write_figure(path, figure)


def _draw_costs(axes: Any, models: Sequence[dict[str, Any]], column: str, share: Share) -> None:
    for model in models:
        rows = model["rows"]
        x, y = [row[column] for row in rows], [row["AP"] for row in rows]
        axes.plot(x, y, marker="o" if model["swept"] else "D", label=model["name"])
        for row in rows if column == "GFLOPs" else []:
            place, value = (row[column], row["AP"]), row.get(share.column)
            if None not in (*place, value):
                axes.annotate(f"{value:.2g}", place, (4, 4), textcoords="offset points")
    axes.grid(alpha=0.3)


def _draw_recall(axes: Any, models: Sequence[dict[str, Any]]) -> None:
    """Plot the recall of tiles against their share, with an oracle's recall and that of chance."""
    styles = {"tile_recall": "-", "oracle": "--", "random": ":"}
    for number, model in enumerate(models):
        rows = [row for row in model["rows"] if row.get("tile_recall") is not None]
        x = [100 * row[LOOK.column] for row in rows]
        for name, style in styles.items() if rows else ():
            label = model["name"] if name == "tile_recall" else f"{model['name']}, {name}"
            marker = "o" if name == "tile_recall" else None
            y = [row[name] for row in rows]
            axes.plot(x, y, style, color=f"C{number}", marker=marker, label=label)
    axes.set_xlabel("chosen tiles in %")
    axes.set_ylabel("objects in these tiles in %")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend()


def content_table(models: Sequence[dict[str, Any]], share: Share = KEEP) -> str:
    """A table of the share that plain and busy images keep, for rows in which it varies."""
    head = ["model", "asked_ratio", share.column, "blank"]
    kinds = ("plain", "busy", "correlation")
    lines = [[*head, *(f"{name}:{kind}" for name in _AMOUNTS for kind in kinds)]]
    for model, row in _content_rows(models):
        found = [row["by_content"][name][kind] for name in _AMOUNTS for kind in kinds]
        numbers = [row["asked_ratio"], row[share.column], row["blank"], *found]
        lines.append([model["name"], *("-" if x is None else f"{x:.3f}" for x in numbers)])
    return format_table(lines, left=())


def _content_rows(
    models: Sequence[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], Row]]:
    for model in models:
        for row in model["rows"]:
            if row["by_content"]:
                yield model, row


def draw_kept(models: Sequence[dict[str, Any]], share: Share, path: Path) -> None:
    """Plot the share that images keep against their content, and AP against its mean.

    Lines are means of eighths of the images; for one ratio, dots show all images.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    rows = list(_content_rows(models))
    for plot, (amount, label) in zip(axes[:2], _AMOUNTS.items(), strict=True):
        for number, (model, row) in enumerate(rows):
            x, y = zip(*[(each[amount], each["kept"]) for each in row["per_image"]], strict=True)
            name, color = f"{model['name']}, {row['asked_ratio']:.3g}", f"C{number}"
            plot.plot(*_binned(x, y), color=color, label=name)
            plot.axhline(row["blank"], color=color, ls=":", lw=1)
            if number == len(rows) // 2:
                plot.scatter(x, y, s=6, alpha=0.4, color=color)
        plot.set_xlabel(label)
        plot.set_ylabel(f"chosen share of the {share.of}")
        plot.grid(alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    title = f"model and {share.column.replace('_', ' ')}; dotted: a gray picture"
    figure.legend(handles, names, title=title, loc="outside lower left", ncols=6, fontsize="small")
    for model in models:
        x, y = zip(*sorted((row[share.column], row["AP"]) for row in model["rows"]), strict=True)
        axes[2].plot(x, y, marker="o" if model["swept"] else "D", label=model["name"])
    axes[2].set_xlabel(f"chosen share of the {share.of}, the mean over images")
    axes[2].set_ylabel("AP in %")
    axes[2].grid(alpha=0.3)
    axes[2].legend(fontsize="small")
    write_figure(path, figure)


def _binned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of eighths of the images, in the order of x."""
    pairs = sorted(zip(x, y, strict=True))
    edges = [len(pairs) * part // 8 for part in range(9)]
    parts = [pairs[low:high] for low, high in itertools.pairwise(edges) if low < high]
    return [fmean(p[0] for p in part) for part in parts], [
        fmean(p[1] for p in part) for part in parts
    ]
