"""Kept tokens against AP, and cost by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsedet.report.runs.folder import COSTS, RunFolder
from sparsedet.report.runs.parts import Bar, Block, Cell, Chart, Line, Note, Section, Table, number

__all__ = ["gflops_of", "tokens"]

_SWEEP = "sweep/sweep.json"


def tokens(runs: Sequence[RunFolder]) -> Section:
    """What the kept tokens give, and what a picture costs."""
    blocks: list[Block] = [_against_ap(runs) or Note(_how_to_sweep(runs))]
    blocks += _one_cost(runs[0]) if len(runs) == 1 else _costs(runs)
    return Section("cost", "Tokens and cost", blocks, files=(COSTS,))


def gflops_of(run: RunFolder) -> float | None:
    """GFLOPs of a picture; None where they are not known."""
    return (run.file(COSTS).get("gflops") or {}).get("total")


def _how_to_sweep(runs: Sequence[RunFolder]) -> str:
    run = runs[0]
    if not (run.path / "model_best.pth").is_file():
        return "AP at other keep ratios is not known: there are no best weights to sweep."
    return (
        f"AP at other keep ratios is not known. Run: sparsedet sweep {run.place}/config.yaml "
        f"--weights {run.place}/model_best.pth --ratios 0.1 0.2 0.4 0.75"
    )


def _against_ap(runs: Sequence[RunFolder]) -> Chart | None:
    lines, rows = [], []
    for color, run in enumerate(runs):
        swept = _swept(run)
        ratio, ap = run.metric("keep_ratio"), run.metric("bbox/AP")
        if swept:
            lines.append(Line(f"{run.name}, swept", swept, color, dots=True, dashed=True))
        elif ratio is not None and ap is not None and len(runs) > 1:
            swept = [(ratio, ap)]
            lines.append(Line(run.name, swept, color, dots=True))
        rows += [[run.name, number(x, 3), number(y)] for x, y in swept]
    if not lines:
        return None
    title = "AP against kept tokens"
    numbers = Table(f"{title}: numbers", ["", "keep ratio", "AP"], rows)
    return Chart(title, "keep ratio", "AP in percent", lines, numbers, from_zero=True)


def _swept(run: RunFolder) -> list[tuple[float, float]]:
    """Keep ratios and AP of the sweep in the folder of the run."""
    models = run.file(_SWEEP).get("models", [])
    rows = [row for model in models[:1] for row in model["rows"]]
    found = [(row["keep_ratio"], row["AP"]) for row in rows]
    return sorted((x, y) for x, y in found if x is not None and y is not None)


def _one_cost(run: RunFolder) -> list[Block]:
    found = run.file(COSTS)
    if not found:
        return []
    counted, latency = found["gflops"], found.get("latency") or {}
    times = latency.get("stages") or {}
    parameters = found["parameters"]["by_stage"]
    stages = dict.fromkeys([*counted["stages"], *parameters])
    total = counted["total"]
    rows: list[list[Cell]] = []
    for stage in stages:
        flops = counted["stages"].get(stage)
        cell = number(flops, 3)
        rows.append(
            [
                stage.replace("_", " "),
                Bar(cell, flops / total) if flops is not None and total else cell,
                number(parameters.get(stage, 0) / 1e6, 3),
                *([number(times.get(stage))] if times else []),
            ]
        )
    millions = number(found["parameters"]["total"] / 1e6, 3)
    rows.append(["total", number(counted["total"], 3), millions])
    rows[-1] += [number(latency.get("total"))] if times else []
    head = ["stage", "GFLOPs", "parameters in millions", *(["ms"] if times else [])]
    return [Table("Cost by stage", head, rows, note=_cost_note(counted, bool(times), run))]


def _cost_note(counted: Mapping[str, Any], timed: bool, run: RunFolder) -> str:
    note = "A multiply-add counts as 1."
    if len(counted["sizes"]) == 1:
        height, width, _ = counted["sizes"][0]
        note = f"For an input of {width} x {height} pixels; a multiply-add counts as 1."
    if not timed:
        note += (
            f" Milliseconds have not been measured. Run: sparsedet analyze {run.place}/config.yaml "
            f"--latency --output {run.place}/{COSTS}"
        )
    return note


def _costs(runs: Sequence[RunFolder]) -> list[Block]:
    """GFLOPs of each stage, the runs beside each other."""
    found = [(run.file(COSTS).get("gflops") or {}).get("stages", {}) for run in runs]
    stages = list(dict.fromkeys(stage for each in found for stage in each))
    if not stages:
        return []
    highest = max(value for each in found for value in each.values()) or 1.0
    rows: list[list[Cell]] = [
        [
            stage.replace("_", " "),
            *(
                Bar(number(each[stage], 3), each[stage] / highest) if stage in each else number("")
                for each in found
            ),
        ]
        for stage in stages
    ]
    rows.append(["total", *(number(gflops_of(run), 3) for run in runs)])
    head = ["stage", *(run.name for run in runs)]
    return [Table("GFLOPs by stage", head, rows, note="A multiply-add counts as 1.")]
