"""`sparsedet benchmark large`: systems on large pictures, their stages, costs and memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsedet.analysis import FlopCount
from sparsedet.benchmark import cases, large, modes
from sparsedet.benchmark.memory import Worker, take_turns
from sparsedet.cli import benchmark

BRIEF = ("--seconds", "0", "--rounds", "2", "--warm-up", "0", "--threads", "1")
TINY = ("large", "--small", "--image-size", "256x384", "--tile", "256", *BRIEF)


class Here:
    """In place of a process: the call is made where the test runs."""

    made: list[Any]

    def __init__(self, prepare: Callable[..., Callable[[], Any]], *args: Any) -> None:
        self.args, self.passes = args, 0
        self._prepare = prepare
        Here.made.append(self)

    def wait(self) -> None:
        if self.passes == 0:
            self.call = self._prepare(*self.args)

    def __call__(self) -> tuple[Any, dict[str, float]]:
        self.passes += 1
        return self.call(), {"peak_mb": 100.0 * self.passes, "before_mb": 50.0}

    def close(self) -> None:
        del self.call


@pytest.fixture
def uncounted(monkeypatch) -> None:
    """FLOPs take longer to count than small passes take."""
    counted = FlopCount({"backbone": 1.0, "encoder": 2.0}, {})
    monkeypatch.setattr(large, "gflops", lambda case: counted)


@pytest.fixture
def here(monkeypatch) -> type[Here]:
    Here.made = []
    monkeypatch.setattr(large, "Worker", Here)
    return Here


def cases_of(*words: str) -> list[Any]:
    args = modes.parser("large").parse_args(words)
    return [case for size in args.image_size for case in large._cases(args, size)]


# --- a process of its own -------------------------------------------------------------------------


def prepared(answers: int) -> Callable[[], Any]:
    """A call that answers so often; then the system ends the process."""
    left = [answers]

    def call() -> int:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return os.getpid()

    return call


def test_worker_answers_as_often_as_it_is_asked():
    worker = Worker(prepared, 2)
    worker.wait()
    worker.wait()  # that it is prepared is said once
    (first, memory), (second, later) = worker(), worker()
    assert first == second != os.getpid()
    assert 0 < memory["before_mb"] <= memory["peak_mb"] <= later["peak_mb"]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="it was killed, as systems do where memory is"):
            worker()
    worker.close()


def counted(answers: int) -> Callable[[], Any]:
    """A call that says which one it is; so many of them, then it fails."""
    calls = iter(range(answers))
    return lambda: {"call": next(calls)}


def test_workers_take_turns(monkeypatch, capsys):
    """Warm-up rounds do not count; one that fails leaves the rounds, the others go on."""
    names: list[str] = []

    class Named(Here):
        def __call__(self) -> tuple[Any, dict[str, float]]:
            names.append(self.args[1])
            try:
                return super().__call__()
            except StopIteration:
                raise RuntimeError("there is no more") from None

    Here.made = []
    workers: Any = {
        name: Named(lambda answers, _: counted(answers), answers, name)
        for name, answers in (("a", 99), ("b", 2), ("c", 99))
    }
    answers, errors = take_turns(workers, seconds=0, rounds=9, warm_up=1)
    assert errors == {"b": "there is no more"} and "failed: b" in capsys.readouterr().err
    assert {name: [each["call"] for each in found] for name, found in answers.items()} == {
        "a": list(range(1, 10)), "c": list(range(1, 10)),
    }  # fmt: skip
    assert answers["a"][0]["memory"]["before_mb"] == 50.0
    rounds = [names[:3], names[3:6], names[6:9], *zip(names[9::2], names[10::2], strict=True)]
    assert [sorted(each) for each in rounds] == [["a", "b", "c"]] * 3 + [["a", "c"]] * 7
    assert {tuple(each) for each in rounds[3:]} == {("a", "c"), ("c", "a")}


# --- what is compared -----------------------------------------------------------------------------


def test_systems_of_a_size():
    found = cases_of("--image-size", "2250x4000", "--look-ratio", "0.05", "0.1")
    assert [(case.name, case.image_size, case.keep) for case in found] == [
        ("DINO at half the sides", (1125, 2000), "config"),
        ("DINO", (2250, 4000), "config"),
        ("Focus-DETR, keep 0.3", (2250, 4000), "0.3"),
        ("Focus-DETR, keep 0.1", (2250, 4000), "0.1"),
        ("DINO on slices", (2250, 4000), "config"),
        ("glance and look, 5 %", (2250, 4000), "config"),
        ("glance and look, 10 %", (2250, 4000), "config"),
    ]
    assert found[-1].overrides == ("model.regions.look_ratio=0.1",)
    assert all(case.prepared for case in found)


def test_a_fixed_number_of_tiles_is_looked_at(uncounted):
    """At every size, and all of them where there are fewer."""
    words = ("--small", "--systems", "glance", "--look-tiles", "2", "--image-size")
    looked = []
    for case in cases_of(*words, "256x256", "256x512", "600x600"):
        facts = large.prepare(case)()
        looked.append((facts["looked_tiles"], facts["tiles"]))
    assert looked == [(1, 1), (2, 2), (2, 9)]


def test_objects_say_which_tiles_are_looked_at():
    """Not the random weights: another picture has the same tiles."""
    words = ("--small", "--systems", "glance", "--image-size", "512x768", "--look-ratio", "0.3")
    (case,) = cases_of(*words)
    model = cases.load_model(case)
    seen = []
    for seed in (0, 1):
        images = torch.randn(1, 3, 512, 768, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            seen.append(model.see(images, [(512, 768)])[1])
    first, second = (glance.looked.indices[0].tolist() for glance in seen)
    scores = cases.object_scores(seen[0].features)
    finest = seen[0].features.split_levels(scores)[0].view(2, 8, 3, 8).amax((1, 3)).flatten()
    assert first == second == finest.topk(2).indices.tolist()


# --- rows -----------------------------------------------------------------------------------------


def test_rows_by_stage(measure, here, uncounted, capsys):
    rows = {row["name"]: row for row in measure(*TINY, "--keep-ratio", "0.1")["rows"]}
    assert len(here.made) == len(rows) == 5
    shared = ["backbone", "neck", "scorer", "encoder", "query_initializer", "decoder"]
    stages = {name: set(row["parts"]) for name, row in rows.items()}
    assert stages["DINO"] == stages["DINO at half the sides"] == set(shared)
    assert stages["DINO on slices"] == {*shared, "merge"}
    assert stages["glance and look, 10 %"] == {"glance", "look", *shared} - {"backbone"}
    for row in rows.values():
        parts = [part["median"] for part in row["parts"].values()]
        assert row["ms"]["passes"] == 2 and min(parts) > 0 and row["ms"]["median"] > max(parts)
        assert row["memory"] == {"peak_mb": 200.0, "before_mb": 50.0}
    shown = capsys.readouterr().out
    assert rows["glance and look, 10 %"]["gflops"] == {"glance": 1.0, "encoder": 2.0, "total": 3.0}
    assert "2 of 2" not in shown and "1 of 2" in shown


def test_slices_cost_as_many_passes_as_there_are(measure, here):
    """At 256x384, tiles of 256 begin at 0 and at 128."""
    words = ("--systems", "dense", "slices")
    whole, slices = measure(*TINY, *words)["rows"]
    tile, _ = measure(*TINY, *words, "--image-size", "256x256")["rows"]
    assert (whole["passes"], slices["passes"]) == (1, 2)
    assert slices["gflops"]["total"] == pytest.approx(2 * tile["gflops"]["total"])
    assert slices["tokens"] == slices["kept_tokens"] == 2 * tile["tokens"]
    assert slices["gflops"]["encoder"] > whole["gflops"]["encoder"]


def test_cost_that_depends_on_the_picture_is_not_stated(monkeypatch):
    monkeypatch.setattr(large, "gflops", lambda case: None)
    (case,) = cases_of("--small", "--systems", "half", "--image-size", "128x128")
    passed = {**large.prepare(case)(), "memory": {"peak_mb": 2.0, "before_mb": 1.0}}
    row = case.facts() | large._figures([passed])
    assert row["gflops"] is None and "GFLOPs" not in large.table({"rows": [row]})[0]


def test_slices_are_joined(uncounted, monkeypatch):
    """The merge has what every tile found, and a picture no larger than a tile has none."""
    joined, clocks = [], []
    join, clock = large.Slicer._join, large.Clock

    def watched(slicer: Any, parts: list[Any]) -> Any:
        joined.append((len(parts), len(parts[0]) > 0, clocks[-1].part))
        return join(slicer, parts)

    monkeypatch.setattr(large, "Clock", lambda device: clocks.append(clock(device)) or clocks[-1])
    monkeypatch.setattr(large.Slicer, "_join", watched)
    words = ("--small", "--systems", "slices", "--tile", "256", "--image-size")
    for case in cases_of(*words, "256x384", "256x256"):
        large.prepare(case)()
    assert joined == [(1, True, "merge")]


def test_a_system_that_fails_leaves_the_others(measure, here, uncounted, monkeypatch, capsys):
    call = here.__call__

    def failing(self: Here) -> Any:
        if self.args[0].system == "dense" and self.passes == 1:
            raise RuntimeError("The process that is measured failed: it was killed.")
        return call(self)

    monkeypatch.setattr(here, "__call__", failing)
    dense, half = measure(*TINY, "--systems", "dense", "half", code=1)["rows"]
    assert "it was killed" in dense["error"] and "ms" not in dense
    assert half["ms"]["passes"] == 2
    said = capsys.readouterr()
    assert "failed" in said.out and "failed: DINO: The process" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--look-ratio", "0"], "--look-ratio must be in (0, 1], got 0"),
        (["--look-ratio", "1.5"], "--look-ratio must be in (0, 1], got 1.5"),
        (["--tile", "0"], "must be a number of pixels, got 0"),
        (["--keep-ratio", "half"], "--keep-ratio must be dense, config or a number"),
        (["model.nothing=1"], "nothing"),
    ],
)
def test_bad_arguments(here, words, message, capsys):
    assert benchmark.main(["large", "--small", *BRIEF, *words]) == 2
    assert message in capsys.readouterr().err and not here.made
