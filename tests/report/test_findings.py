"""What stands out in a run, and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsedet.report.runs.findings import findings
from sparsedet.report.runs.folder import RunFolder

GOOD = {"AP": 40.0, "AP50": 60.0, "AP75": 42.0, "APs": 30.0, "APm": 40.0, "APl": 50.0}


def run(
    line: Mapping[int, float] = {10: 30.0, 20: 38.0, 30: 39.8, 40: 40.0},
    *,
    bbox: Mapping[str, Any] = GOOD,
    classes: Mapping[str, float] = {"a": 30.0, "b": 40.0, "c": 50.0},
    files: Mapping[str, Any] = {},
    row: Mapping[str, Any] = {},
    folder: Path = Path("nowhere"),
) -> RunFolder:
    usual = {"loss": 1.0, "data_seconds": 0.01, "seconds_per_iteration": 1.0}
    last = max(line)
    details = {"per_class": [{"class": name, "AP": ap} for name, ap in classes.items()]}
    results = {"iterations": last, "metrics": {"bbox": dict(bbox), "details": details}}
    return RunFolder(
        folder,
        "run",
        rows=[{"iteration": last, **usual, **row}],
        evaluations=[{"iteration": step, "bbox/AP": ap} for step, ap in line.items()],
        config=None,
        files={"results.json": results, **files},
    )


def texts(run: RunFolder) -> list[str]:
    return [each.text for each in findings(run)]


def test_nothing_stands_out_in_a_good_run():
    assert texts(run()) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (run({10: 20.0, 20: 30.0, 30: 38.0, 40: 40.0}), "AP was still rising: 2.0 more"),
        (run({10: 30.0, 20: 42.0, 30: 41.0, 40: 40.0}), "AP fell from 42.0 at iteration 20 to 40"),
        (run(classes={"a": 5.0, "b": 40.0, "c": 50.0}), "half of the median (40.0) for a (5.0)."),
        (run(bbox={**GOOD, "APs": 5.0}), "AP is 5.0 for small objects and 50.0 for large"),
        (run(bbox={**GOOD, "AP75": 20.0}), "Boxes are loose: AP is 60.0 at an IoU of 0.5"),
        (run(row={"data_seconds": 0.5}), "Training waited for data 50 % of the time."),
        (run(row={"loss": None}), "was not finite in 1 step."),
        (run(files={"data.json": {"misfits": ["Boxes vanish."]}}), "Boxes vanish."),
        (
            run(files={"worst.json": {"totals": {"objects": 10, "missed": 4},
                                      "score_threshold": 0.3}}),
            "40 % of the objects have no box that scores at least 0.3.",
        ),
        (
            run(
                bbox={**GOOD, "AP50_class_agnostic": 75.0},
                files={"confusion.json": {"matrix": [[5, 4, 0], [1, 9, 0], [0, 0, 0]],
                                          "classes": ["a", "b", "background"]}},
            ),
            "Most often a is taken for b (4 of 9).",
        ),
    ],
)  # fmt: skip
def test_one_thing_stands_out(changed, says):
    (found,) = texts(changed)
    assert says in found


def test_a_rise_that_has_ended_is_none():
    assert texts(run({10: 20.0, 20: 39.0, 30: 39.8, 40: 40.0})) == []


def test_what_is_bad_comes_first(tmp_path):
    (tmp_path / "nonfinite_000012").mkdir()
    found = findings(run({10: 30.0, 20: 42.0, 30: 41.0, 40: 40.0}, folder=tmp_path))
    assert [each.weight for each in found] == ["bad", "fair"]


def test_a_run_without_end_and_without_evaluation_says_both():
    begun = RunFolder(Path("nowhere"), "run", [{"iteration": 7, "loss": 1.0}], [], None, {})
    first, second = texts(begun)
    assert first == "The run has not ended: its log stops at iteration 7."
    assert second == "There is no evaluation yet, so there is no AP."
