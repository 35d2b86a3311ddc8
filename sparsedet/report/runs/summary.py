"""What was reached, in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsedet.report.runs.accuracy import sizes_of
from sparsedet.report.runs.findings import Finding, findings
from sparsedet.report.runs.folder import RunFolder
from sparsedet.report.runs.parts import (
    FORM_ERRORS,
    NONE,
    Bar,
    Cell,
    Table,
    number,
    other_form,
    share,
)
from sparsedet.report.runs.series import points
from sparsedet.report.runs.tokens import gflops_of

__all__ = ["Card", "Summary", "comparison", "summary"]


@dataclass(frozen=True)
class Card:
    """A number that a reader looks for first.

    Attributes:
        name: of the number.
        value: as text.
        note: below it.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """A run in a few lines.

    Attributes:
        name: of the run.
        path: of its folder.
        state: how far it came, in words.
        cards: its numbers.
        findings: what stands out.
        notes: what is to be known of the numbers.
    """

    name: str
    path: str
    state: str
    cards: Sequence[Card]
    findings: Sequence[Finding]
    notes: Sequence[str]


def summary(run: RunFolder) -> Summary:
    """A run in a few lines."""
    found, notes = findings(run), []
    try:
        state, cards = _state(run), _cards(run)
    except FORM_ERRORS as error:
        state, cards, notes = NONE, [], [f"There is no summary. {other_form(error)}"]
    if run.is_evaluated_since:
        notes.append(
            "sparsedet eval has run in this folder since the run ended. Precision, confusion and "
            "pictures are those of that evaluation; the numbers above are those of the run."
        )
    return Summary(run.name, str(run.path), state, cards, found, notes)


def _cards(run: RunFolder) -> list[Card]:
    best = _best(run)
    ap75 = "" if run.metric("bbox/AP75") is None else f"AP75 {number(run.metric('bbox/AP75'))}"
    kept = run.metric("keep_ratio")
    sizes = sizes_of(run)
    return [
        Card("AP", number(run.metric("bbox/AP")), "best " + best if best else ""),
        Card("AP50", number(run.metric("bbox/AP50")), ap75),
        Card("AP by size", " / ".join(map(number, sizes.values())) or NONE, " / ".join(sizes)),
        Card("Kept tokens", share(kept, 1), "" if kept is None else "mean over the layers"),
        Card("Cost of a picture", _cost(run), _speed(run)),
        Card("Training", _duration(run), _pace(run)),
    ]


def comparison(runs: Sequence[RunFolder]) -> Table:
    """The main numbers of several runs, a row for each."""
    values = [run.metric("bbox/AP") for run in runs]
    top = max((each for each in values if each is not None), default=None)
    rows: list[Sequence[Cell]] = []
    for run, ap in zip(runs, values, strict=True):
        name = f"{run.name} (highest AP)" if ap is not None and ap == top else run.name
        try:
            rows.append([name, *_compared(run, ap)])
        except FORM_ERRORS:
            rows.append([name, *[NONE] * 10, "see below"])
    head = ["run", "AP", "AP50", "AP75", "APs", "APm", "APl", "keep ratio", "GFLOPs"]
    return Table("Side by side", [*head, "ms per picture", "training", "state"], rows)


def _compared(run: RunFolder, ap: float | None) -> list[Cell]:
    cell = number(ap) if ap is None else Bar(number(ap), max(ap, 0.0) / 100)
    return [
        cell,
        *(number(run.metric(f"bbox/{name}")) for name in ("AP50", "AP75")),
        *(number(run.metric(f"bbox/{name}")) for name in ("APs", "APm", "APl")),
        number(run.metric("keep_ratio"), 3),
        number(gflops_of(run), 2),
        _milliseconds(run),
        _duration(run),
        _state(run),
    ]


def _best(run: RunFolder) -> str:
    best = run.results.get("best")
    if not best:
        line = points(run.evaluations, "bbox/AP")
        if not line:
            return ""
        iteration, value = max(line, key=lambda point: point[1])
        return f"{value:.1f} at iteration {iteration:.0f}"
    name = "" if best["metric"] == "bbox/AP" else f"{best['metric']} "
    return f"{name}{number(best['value'])} at iteration {best['iteration']}"


def _state(run: RunFolder) -> str:
    if run.has_ended:
        ended = str(run.results.get("ended", ""))
        done = f"{run.results['iterations']} iterations"
        return done if ended.startswith("all iterations") else f"{done}, {ended}"
    if not run.rows:
        return "evaluated only" if run.results else "no iteration is logged yet"
    whole = f" of {run.max_iter}" if run.max_iter else ""
    return f"not ended: iteration {run.iteration}{whole}"


def _cost(run: RunFolder) -> str:
    flops = gflops_of(run)
    return NONE if flops is None else f"{flops:.3g} GFLOPs"


def _milliseconds(run: RunFolder) -> str:
    seconds = run.metric("seconds_per_image")
    return NONE if seconds is None else f"{1e3 * seconds:.3g}"


def _speed(run: RunFolder) -> str:
    milliseconds = _milliseconds(run)
    if milliseconds == NONE:
        return ""
    device = run.about.get("device")
    return f"{milliseconds} ms in the evaluation" + (f", on {device}" if device else "")


def _seconds(run: RunFolder) -> float | None:
    known = run.results.get("seconds_training")
    if known is not None:
        return known
    times = points(run.rows, "seconds_per_iteration")
    starts = [0.0, *(x for x, _ in times)]
    lengths = (y * (x - start) for (x, y), start in zip(times, starts, strict=False))
    return sum(lengths) if times else None


def _duration(run: RunFolder) -> str:
    seconds = _seconds(run)
    if seconds is None:
        return NONE
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute:02d} min"
    return f"{minute} min {second:02d} s" if minute else f"{second} s"


def _pace(run: RunFolder) -> str:
    pace = run.results.get("seconds_per_iteration")
    return _state(run) + ("" if pace is None else f", {pace:.3g} s each")
