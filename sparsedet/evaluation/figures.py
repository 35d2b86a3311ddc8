"""Plots of an evaluation, from the numbers of `curves.json` and `confusion.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparsedet.files import write_figure

_NAMED_CURVES = 10  # number of distinguishable colors
_SHOWN_CLASSES = 60  # rows of a matrix that fit on a screen
_CELL = 0.27  # side of a cell in inches
_NAME_LENGTH = 24


def draw_curves(found: dict[str, Any], path: Path) -> None:
    """Plot precision over recall at two IoU thresholds, the mean and each class.

    With more than ten classes, only ten have a color, evenly spaced from the best to the worst.

    Args:
        found: result of `details.curves`, with at least one class.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    colors = _curve_colors(found["0.50"]["classes"])
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, iou in zip(figure.subplots(1, 2, sharey=True), ("0.50", "0.75"), strict=True):
        for name, curve in found[iou]["classes"].items():
            color = colors.get(name)
            style = {
                "color": color or "0.8",
                "lw": 1.3 if color else 0.6,
                "zorder": 2 if color else 1,
            }
            axes.plot(found["recall"], curve["precision"], **style)
        axes.plot(found["recall"], found[iou]["mean"], color="black", lw=2.2, zorder=3)
        axes.set(xlabel="recall in %", xlim=(0, 100), ylim=(0, 102))
        axes.set_title(f"IoU {iou}: AP {np.mean(found[iou]['mean']):.1f}")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("precision in %")
    _curve_legend(figure, found["0.50"]["classes"], colors)
    write_figure(path, figure)


def _curve_colors(classes: dict[str, Any]) -> dict[str, str]:
    ranked = sorted(classes, key=lambda name: -_ap50(classes[name]))
    if len(ranked) > _NAMED_CURVES:
        chosen = np.linspace(0, len(ranked) - 1, _NAMED_CURVES).round().astype(int)
        ranked = [ranked[place] for place in chosen]
    return {name: f"C{place}" for place, name in enumerate(ranked)}


def _curve_legend(figure: Any, classes: dict[str, Any], colors: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color="black", lw=2.2, label=f"mean of {len(classes)} classes")]
    lines += [
        Line2D([], [], color=color, label=f"{_short(name)}  {_ap50(classes[name]):.1f}")
        for name, color in colors.items()
    ]
    if len(colors) < len(classes):
        rest = f"the other {len(classes) - len(colors)}"
        lines.append(Line2D([], [], color="0.8", label=rest))
    figure.legend(handles=lines, loc="outside right upper", title="class, AP50", fontsize="small")


def _ap50(curve: dict[str, list[float]]) -> float:
    return float(np.mean(curve["precision"]))


def draw_confusion(found: dict[str, Any], path: Path) -> None:
    """Plot the confusion matrix, each cell in blue by its share of the true class.

    The background row has no total; it is gray, relative to its largest count. With many classes,
    only the most confused ones are shown.

    Args:
        found: result of `confusion.confusion_summary`.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    counts = np.array(found["matrix"])
    shown = _most_confused(counts)
    names = [_short(found["classes"][place]) for place in shown]
    part = counts[np.ix_(shown, shown)]
    whole = counts.sum(axis=1)[shown]
    whole[-1] = part[-1].max()
    shares = part / np.maximum(whole, 1)[:, None]
    side = 2.6 + _CELL * max(len(shown), 10)
    figure = Figure(figsize=(side + 0.7, side), layout="constrained")
    axes = figure.subplots()
    last = np.arange(len(shown)) == len(shown) - 1
    style = {"vmin": 0, "vmax": 1, "aspect": "auto"}
    axes.imshow(np.where(last[:, None], shares / 2, np.nan), cmap="Greys", **style)
    image = axes.imshow(np.where(last[:, None], np.nan, shares), cmap="Blues", **style)
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize="small")
    axes.set_yticks(range(len(shown)), names, fontsize="small")
    axes.set(xlabel="found as", ylabel="true class")
    for line in (axes.axhline, axes.axvline):
        line(len(shown) - 1.5, color="0.6", lw=0.8)
    _write_counts(axes, part, shares)
    axes.set_title(_confusion_title(found, len(shown) - 1), fontsize="small")
    label = "share of the true class"
    figure.colorbar(image, ax=axes, shrink=0.5, aspect=25, label=label)
    write_figure(path, figure)


def _most_confused(counts: np.ndarray) -> np.ndarray:
    """Indices of the classes to show, in their order, and of the background."""
    own = np.diag(counts)[:-1]
    wrong = counts[:-1].sum(axis=1) + counts[:, :-1].sum(axis=0) - 2 * own
    chosen = np.sort(np.argsort(-wrong, kind="stable")[:_SHOWN_CLASSES])
    return np.append(chosen, len(counts) - 1)


def _write_counts(axes: Any, part: np.ndarray, shares: np.ndarray) -> None:
    width = 72 * _CELL / 0.7  # width of a cell in digits of font size 1
    size = min(8.0, width / len(str(part.max())))
    for row, column in np.argwhere(part > 0):
        dark = shares[row, column] > 0.55 and row < len(part) - 1
        text = str(part[row, column])
        style = {"color": "white" if dark else "black", "fontsize": size}
        axes.text(column, row, text, ha="center", va="center", **style)


def _confusion_title(found: dict[str, Any], shown: int) -> str:
    score, iou, total = found["score_threshold"], found["iou"], len(found["classes"]) - 1
    title = f"detections with scores of at least {score:g}, matched at IoU {iou:g}"
    if shown < total:
        title += f"\nthe {shown} most confused of {total} classes"
    return f"{title}\nbackground: boxes without an object, and objects without a box"


def _short(name: str) -> str:
    """Shorten a name in the middle, since names often differ at the end."""
    if len(name) <= _NAME_LENGTH:
        return name
    half = (_NAME_LENGTH - 3) // 2
    return f"{name[:half]}...{name[-half:]}"
