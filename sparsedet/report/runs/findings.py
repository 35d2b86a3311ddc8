"""What stands out in a run, each with what to try; rules of thumb over its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from sparsedet.report.runs.accuracy import class_rows, sizes_of
from sparsedet.report.runs.folder import DATA, RunFolder
from sparsedet.report.runs.mistakes import confused_pairs
from sparsedet.report.runs.parts import FORM_ERRORS, other_form, share
from sparsedet.report.runs.series import points

__all__ = ["Finding", "findings"]

_RISING = 0.5  # percent of AP over the last quarter of a run that is still worth training for
_FALLEN = 1.0  # below the best
_WAITING = 0.2  # share of an iteration that waits for data


@dataclass(frozen=True)
class Finding:
    """Something that stands out.

    Attributes:
        text: what.
        mend: what to try; empty where there is nothing.
        weight: "bad" or "fair".
    """

    text: str
    mend: str = ""
    weight: str = "fair"


def findings(run: RunFolder) -> list[Finding]:
    """What stands out in a run, the most pressing first."""
    found = [finding for rule in _RULES if (finding := _checked(rule, run)) is not None]
    return sorted(found, key=lambda each: ("bad", "fair").index(each.weight))


def _checked(rule: Callable[[RunFolder], Finding | None], run: RunFolder) -> Finding | None:
    try:
        return rule(run)
    except FORM_ERRORS as error:
        return Finding(f"A rule could not be checked. {other_form(error)}", "", "bad")


def _unfinished(run: RunFolder) -> Finding | None:
    if run.has_ended or not run.rows:
        return None
    whole = f" of {run.max_iter}" if run.max_iter else ""
    return Finding(
        f"The run has not ended: its log stops at iteration {run.iteration}{whole}.",
        f"If it is not running, resume it: sparsedet train {run.place}/config.yaml --resume",
        "bad",
    )


def _unevaluated(run: RunFolder) -> Finding | None:
    if run.metrics:
        return None
    mend = "train.eval_epochs=1 evaluates after each epoch."
    return Finding("There is no evaluation yet, so there is no AP.", mend, "bad")


def _skipped(run: RunFolder) -> Finding | None:
    folders = list(run.path.glob("nonfinite_*"))
    broken = [row for row in run.rows if "loss" in row and row["loss"] is None]
    if not folders and not broken:
        return None
    steps = max(len(folders), len(broken))
    text = f"The loss or a gradient was not finite in {steps} step{'s' if steps > 1 else ''}."
    mend = "Lower optimizer.lr, or look at the batches in nonfinite_*/."
    return Finding(text, mend, "bad")


def _still_rising(run: RunFolder) -> Finding | None:
    line = points(run.evaluations, "bbox/AP")
    if not run.has_ended or len(line) < 4:
        return None
    early = [y for x, y in line if x <= 0.75 * line[-1][0]]
    gain = line[-1][1] - max(early, default=line[0][1])
    if gain < _RISING:
        return None
    text = f"AP was still rising: {gain:.1f} more over the last quarter of the run."
    return Finding(text, "Train for longer: raise train.epochs.")


def _fallen(run: RunFolder) -> Finding | None:
    line = points(run.evaluations, "bbox/AP")
    if len(line) < 2:
        return None
    where, best = max(line, key=lambda point: point[1])
    if best - line[-1][1] < _FALLEN:
        return None
    return Finding(
        f"AP fell from {best:.1f} at iteration {where:.0f} to {line[-1][1]:.1f} at the end.",
        "model_best.pth has the best weights. Try a shorter run, more augmentation, or "
        "train.early_stopping.patience.",
    )


def _weak_classes(run: RunFolder) -> Finding | None:
    known = [(row["AP"], row["class"]) for row in class_rows(run) if row.get("AP") is not None]
    if len(known) < 3:
        return None
    middle = median(ap for ap, _ in known)
    weak = sorted((ap, name) for ap, name in known if ap < 0.5 * middle)
    if not weak:
        return None
    names = ", ".join(f"{name} ({ap:.1f})" for ap, name in weak[:5])
    more = f" and {len(weak) - 5} more" if len(weak) > 5 else ""
    text = f"AP is below half of the median ({middle:.1f}) for {names}{more}."
    return Finding(text, "Look at their pictures and labels below; more boxes of them may help.")


def _small_objects(run: RunFolder) -> Finding | None:
    sizes = {name: ap for name, ap in sizes_of(run).items() if ap is not None}
    small, large = (next(iter(sizes.items()), None), [*sizes.items()][-1:])
    if not small or not large or small[0] == large[0][0] or small[1] >= 0.4 * large[0][1]:
        return None
    return Finding(
        f"AP is {small[1]:.1f} for {small[0]} objects and {large[0][1]:.1f} for {large[0][0]} "
        "ones.",
        "Larger inputs help small objects: raise dataset.test_short_side, dataset.short_sides and "
        "dataset.max_size together.",
    )


def _loose(run: RunFolder) -> Finding | None:
    ap50, ap75 = run.metric("bbox/AP50"), run.metric("bbox/AP75")
    if ap50 is None or ap75 is None or ap50 < 20 or ap75 >= 0.5 * ap50:
        return None
    text = f"Boxes are loose: AP is {ap50:.1f} at an IoU of 0.5 and {ap75:.1f} at 0.75."
    mend = "Train for longer, or raise the weights of the box losses; check how tight labels are."
    return Finding(text, mend)


def _confused(run: RunFolder) -> Finding | None:
    known, agnostic = run.metric("bbox/AP50"), run.metric("bbox/AP50_class_agnostic")
    confusion = run.file("confusion.json")
    pairs = confused_pairs(confusion) if confusion else []
    if known is None or agnostic is None or agnostic - known < 10 or not pairs:
        return None
    true, found, count, total = pairs[0]
    return Finding(
        f"Objects are found but given the wrong class: AP50 is {known:.1f}, and {agnostic:.1f} "
        f"if all classes were one. Most often {true} is taken for {found} ({count} of {total}).",
        "See the confusion matrix.",
    )


def _missed(run: RunFolder) -> Finding | None:
    worst = run.file("worst.json")
    totals = worst.get("totals", {})
    if not totals.get("objects") or totals["missed"] < 0.3 * totals["objects"]:
        return None
    threshold = worst["score_threshold"]
    text = (
        f"{share(totals['missed'] / totals['objects'])} of the objects have no box that scores at "
        f"least {threshold:g}."
    )
    mend = "See the pictures below. A lower threshold finds more, with more false boxes."
    return Finding(text, mend)


def _waiting(run: RunFolder) -> Finding | None:
    waits = [row["data_seconds"] for row in run.rows if row.get("data_seconds") is not None]
    times = [row["seconds_per_iteration"] for row in run.rows if row.get("seconds_per_iteration")]
    if not waits or not times or sum(waits) / len(waits) < _WAITING * sum(times) / len(times):
        return None
    part = share(sum(waits) / len(waits) / (sum(times) / len(times)))
    text = f"Training waited for data {part} of the time."
    return Finding(text, "Raise dataloader.train.num_workers, or set dataset.cache_dir.")


def _misfits(run: RunFolder) -> Finding | None:
    misfits = run.file(DATA).get("misfits") or []
    if not misfits:
        return None
    return Finding(str(misfits[0]), "See Data." if len(misfits) > 1 else "")


_RULES: Sequence[Callable[[RunFolder], Finding | None]] = (
    _unfinished,
    _unevaluated,
    _skipped,
    _still_rising,
    _fallen,
    _weak_classes,
    _small_objects,
    _loose,
    _confused,
    _missed,
    _waiting,
    _misfits,
)
