"""`sparsedet benchmark deploy`: forms in processes of their own, in turns with the eager model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsedet.allocator import TUNED
from sparsedet.benchmark import deploy
from sparsedet.benchmark.cases import SMALL_MODEL
from tests.predictor.trained import write_checkpoint, write_pictures

BRIEF = ("--seconds", "0", "--rounds", "3", "--warm-up", "1", "--threads", "1")
TINY = ("--image-size", "64x96", "--config-file", "focus_detr_r50_12ep", *BRIEF)


class Clock:
    """In place of a process: the eager model takes 2 ms, any other one of `times`."""

    log: list[str]
    times: dict[str, float]

    def __init__(self, prepare: Any, case: Any) -> None:
        self.case = case

    def wait(self) -> None:
        if self.case.form == "bfloat16":
            raise RuntimeError("no memory")

    def __call__(self) -> tuple[dict[str, Any], dict[str, float]]:
        Clock.log.append(self.case.form)
        scores = np.asarray([[0.5 + 0.001 * Clock.times.get(self.case.form, 2.0)]])
        answer = [scores, np.zeros((1, 1)), np.zeros((1, 1, 4))]
        ms = Clock.times.get(self.case.form, 2.0)
        facts = {"ms": ms, "answer": answer, "start_s": 1.0, "allocator": "default"}
        return facts, {"peak_mb": 10 * ms, "before_mb": 1.0}

    def close(self) -> None:
        Clock.log.append(f"end of {self.case.form}")


def test_forms_take_turns_with_the_eager_model(measure, monkeypatch, capsys):
    Clock.log, Clock.times = [], {"torch.compile": 1.0, "eager, allocator tuned": 1.5}
    monkeypatch.setattr(deploy, "Worker", Clock)
    forms = ("torch.compile", "bfloat16", "eager, allocator tuned")
    rows = measure("deploy", *SMALL_MODEL, *TINY, "--forms", *forms, code=1)["rows"]
    assert [row["form"] for row in rows] == ["eager", *forms]
    assert Clock.log[:4] == ["eager"] * 4  # a warm-up and three rounds
    for begin in (4, 6, 8, 10):
        assert sorted(Clock.log[begin : begin + 2]) == ["eager", "torch.compile"]
    assert Clock.log[12] == "end of torch.compile" and Clock.log[-1] == "end of eager"
    ratios = [row.get("time_over_eager") for row in rows]
    assert ratios == [1.0, 0.5, None, 0.75]
    assert "no memory" in rows[2]["error"]
    assert rows[1]["memory"]["peak_mb"] == 10.0
    assert rows[1]["differences"] is None  # of random weights
    assert "failed: bfloat16: no memory" in capsys.readouterr().err


def test_answers_of_trained_weights_are_compared(measure, tmp_path, monkeypatch):
    Clock.log, Clock.times = [], {"torch.compile": 1.0}
    monkeypatch.setattr(deploy, "Worker", Clock)
    (tmp_path / "photos").mkdir()
    path = write_checkpoint(tmp_path / "photos")
    words = ("--config-file", str(path), "--forms", "torch.compile", *BRIEF)
    rows = measure("deploy", *words)["rows"]
    assert [row["name"] for row in rows] == ["photos, eager", "photos, torch.compile"]
    assert [row["differences"]["scores"] for row in rows] == pytest.approx([0, 0.001])
    table = deploy.table({"rows": rows})
    assert table[2][:5] == ["photos", "640x640", "torch.compile", "0.001", "0.50"]
    assert table[2][table[0].index("scores differ by")] == "1e-03"


def test_inputs_are_pictures_of_the_test_set(tmp_path):
    (tmp_path / "run").mkdir()
    path = write_checkpoint(tmp_path / "run")
    write_pictures(tmp_path / "run")
    for name in ("gray.png", "deep.png", "turned.png", "broken.png"):
        (tmp_path / "run" / "val" / name).unlink(missing_ok=True)
    case = deploy.Deployed(str(path), (), (64, 96), deploy.EAGER)
    (image,) = deploy.pictures(case, 1)
    assert image.shape == (1, 3, 64, 96) and image.dtype == np.float32
    drawn = deploy.pictures(deploy.Deployed("photos", (), (64, 96), deploy.EAGER), 2)
    assert [each.shape for each in drawn] == [(1, 3, 64, 96)] * 2
    assert not np.array_equal(*drawn)


@pytest.mark.slow
def test_each_form_has_a_process_with_its_own_allocator_and_file(measure, tmp_path):
    forms = ("eager, allocator tuned", ".pt2")
    words = (*SMALL_MODEL, *TINY, "--forms", *forms, "--files", str(tmp_path / "files"))
    rows = measure("deploy", *words)["rows"]
    assert [row["allocator"] for row in rows] == [
        "default", " ".join(f"{name}={value}" for name, value in TUNED.items()), "default",
    ]  # fmt: skip
    (path,) = (tmp_path / "files").iterdir()
    assert rows[2]["file_mb"] == pytest.approx(path.stat().st_size / 1e6)
    assert all(row["memory"]["peak_mb"] > 100 and row["start_s"] > 0 for row in rows)
    written = path.stat().st_mtime_ns
    assert len(measure("deploy", *words)["rows"]) == 3
    assert path.stat().st_mtime_ns == written  # it is taken as it is
