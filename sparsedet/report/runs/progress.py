"""Losses, rates and times over a run."""

from __future__ import annotations

from collections.abc import Sequence

from sparsedet.report.runs.folder import RunFolder
from sparsedet.report.runs.parts import Block, Section
from sparsedet.report.runs.series import chart, loss_terms, of_runs, points

__all__ = ["progress"]


def progress(runs: Sequence[RunFolder]) -> Section:
    """Losses, learning rate, gradients and time; of several runs beside each other."""
    blocks = [
        chart(
            "Loss", "loss", of_runs(runs, lambda run: points(run.rows, "loss")), digits=4, log=True
        ),
        *_terms(runs),
        chart("Learning rate", "rate", of_runs(runs, lambda run: points(run.rows, "lr"))),
        chart(
            "Gradient norm",
            "norm before clipping",
            of_runs(runs, lambda run: points(run.rows, "grad_norm")),
            log=True,
        ),
        _times(runs),
        chart(
            "Accelerator memory",
            "MB",
            of_runs(runs, lambda run: points(run.rows, "memory_mb")),
            digits=5,
        ),
    ]
    known: list[Block] = [block for block in blocks if block is not None]
    return Section("training", "Losses, rates and time", known, files=("metrics.json",))


def _terms(runs: Sequence[RunFolder]):
    """The terms of the loss: in one chart for a run, in one for each term for several."""
    terms = [loss_terms(run.rows) for run in runs]
    if len(runs) == 1:
        lines = [(kind, line, color) for color, (kind, line) in enumerate(terms[0].items())]
        note = "Each term is weighted and summed over the stages, as in the loss."
        return [chart("Terms of the loss", "loss", lines, digits=4, log=True, note=note)]
    kinds = dict.fromkeys(kind for each in terms for kind in each)
    return [
        chart(
            f"Loss: {kind}",
            "loss",
            [(run.name, terms[i].get(kind, []), i) for i, run in enumerate(runs)],
            digits=4,
            log=True,
        )
        for kind in kinds
    ]


def _times(runs: Sequence[RunFolder]):
    title, unit = "Time of an iteration", "seconds"
    if len(runs) > 1:
        lines = of_runs(runs, lambda run: points(run.rows, "seconds_per_iteration"))
        return chart(title, unit, lines)
    rows = runs[0].rows
    columns = {"iteration": "seconds_per_iteration", "waiting for data": "data_seconds"}
    lines = [(name, points(rows, key), i) for i, (name, key) in enumerate(columns.items())]
    return chart(title, unit, lines)
