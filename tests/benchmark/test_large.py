"""`sparsedet benchmark large`: systems on large pictures, their stages, ratios and curves."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsedet.analysis import FlopCount

MODULE = "sparsedet.benchmark"
BRIEF = ("--seconds", "0", "--rounds", "2", "--warm-up", "0", "--threads", "1")
TINY = ("large", "--small", "--image-size", "256x384", "--tile", "256", *BRIEF)


@pytest.fixture
def tool() -> Any:
    return importlib.import_module("sparsedet.cli.benchmark")


@pytest.fixture
def large() -> Any:
    return importlib.import_module(f"{MODULE}.large")


class Here:
    """In place of a process: the call is made where the test runs."""

    made: list[Any]

    def __init__(self, prepare: Callable[..., Callable[[], Any]], *args: Any) -> None:
        self.args, self.passes = args, 0
        self._prepare = prepare
        Here.made.append(self)

    def wait(self) -> None:
        self.call = self._prepare(*self.args)

    def __call__(self) -> tuple[Any, dict[str, float]]:
        self.passes += 1
        return self.call(), {"peak_mb": 100.0 * self.passes, "before_mb": 50.0}

    def close(self) -> None:
        del self.call


@pytest.fixture
def uncounted(large, monkeypatch) -> None:
    """FLOPs take longer to count than small passes take."""
    counted = FlopCount({"backbone": 1.0, "encoder": 2.0}, {})
    monkeypatch.setattr(large, "gflops", lambda case: counted)


@pytest.fixture
def here(large, monkeypatch) -> type[Here]:
    Here.made = []
    monkeypatch.setattr(large, "Worker", Here)
    return Here


def cases_of(large: Any, *words: str) -> list[Any]:
    args = importlib.import_module(f"{MODULE}.modes").parser("large").parse_args(words)
    return [case for size in args.image_size for case in large._cases(args, size)]


def run(tool: Any, tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    target = tmp_path / "large.json"
    assert tool.main([*words, "--json", str(target)]) == 0
    return json.loads(target.read_text())["rows"]


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
    worker = importlib.import_module(f"{MODULE}.memory").Worker(prepared, 2)
    worker.wait()
    (first, memory), (second, later) = worker(), worker()
    assert first == second != os.getpid()
    assert 0 < memory["before_mb"] <= memory["peak_mb"] <= later["peak_mb"]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="it was killed, as systems do where memory is"):
            worker()
    worker.close()


# --- what is compared -----------------------------------------------------------------------------


def test_systems_of_a_size(large):
    cases = cases_of(large, "--image-size", "2250x4000", "--look-ratio", "0.05", "0.1")
    assert [(case.name, case.image_size, case.keep) for case in cases] == [
        ("DINO at half the sides", (1125, 2000), "config"),
        ("DINO", (2250, 4000), "config"),
        ("Focus-DETR, keep 0.3", (2250, 4000), "0.3"),
        ("Focus-DETR, keep 0.1", (2250, 4000), "0.1"),
        ("DINO on slices", (2250, 4000), "config"),
        ("glance and look, 5 %", (2250, 4000), "config"),
        ("glance and look, 10 %", (2250, 4000), "config"),
    ]
    assert cases[-1].overrides == ("model.regions.look_ratio=0.1",)
    assert all(case.prepared for case in cases)


def test_a_fixed_number_of_tiles_is_looked_at(large, uncounted):
    """At every size, and all of them where there are fewer."""
    words = ("--small", "--systems", "glance", "--look-tiles", "2", "--image-size")
    looked = []
    for case in cases_of(large, *words, "256x256", "256x512", "600x600"):
        facts = large.prepare(case)()
        looked.append((facts["looked_tiles"], facts["tiles"]))
    assert looked == [(1, 1), (2, 2), (2, 9)]


def test_objects_say_which_tiles_are_looked_at(large):
    """Not the random weights: another picture has the same tiles."""
    cases = importlib.import_module(f"{MODULE}.cases")
    words = ("--small", "--systems", "glance", "--image-size", "512x768", "--look-ratio", "0.3")
    (case,) = cases_of(large, *words)
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


def test_rows_by_stage(tool, here, uncounted, tmp_path, capsys):
    rows = {row["name"]: row for row in run(tool, tmp_path, *TINY, "--keep-ratio", "0.1")}
    assert len(here.made) == len(rows) == 5
    shared = ["backbone", "neck", "scorer", "encoder", "query_initializer", "decoder"]
    stages = {name: set(row["parts"]) for name, row in rows.items()}
    assert stages["DINO"] == stages["DINO at half the sides"] == set(shared)
    assert stages["DINO on slices"] == {*shared, "merge"}
    assert stages["glance and look, 10 %"] == {"glance", "look", *shared} - {"backbone"}
    for row in rows.values():
        parts = [part["median"] for part in row["parts"].values()]
        assert row["ms"]["passes"] == 2 and min(parts) > 0 and row["ms"]["median"] > max(parts)
        assert row["memory"] == {"peak_mb": 200.0, "before_mb": 50.0} and not row["unfinished"]
        assert set(row["memory_over"]) == set(rows) - {"glance and look, 10 %"}
        assert set(row["time_over"]) == {*row["memory_over"], "DINO on slices without merge"}
        assert set(row["memory_over"].values()) == {1.0}
    assert rows["DINO"]["time_over"]["DINO"] == 1
    shown = capsys.readouterr().out
    assert rows["glance and look, 10 %"]["gflops"] == {"glance": 1.0, "encoder": 2.0, "total": 3.0}
    assert "time / DINO on slices" in shown and "2 of 2" not in shown and "1 of 2" in shown


def test_slices_cost_as_many_passes_as_there_are(tool, here, tmp_path):
    """At 256x384, tiles of 256 begin at 0 and at 128."""
    words = ("--systems", "dense", "slices")
    whole, slices = run(tool, tmp_path, *TINY, *words)
    tile, _ = run(tool, tmp_path, *TINY, *words, "--image-size", "256x256")
    assert (whole["passes"], slices["passes"]) == (1, 2)
    assert slices["gflops"]["total"] == pytest.approx(2 * tile["gflops"]["total"])
    assert slices["tokens"] == slices["kept_tokens"] == 2 * tile["tokens"]
    assert slices["gflops"]["encoder"] > whole["gflops"]["encoder"]


def test_cost_that_depends_on_the_picture_is_not_stated(large, monkeypatch):
    monkeypatch.setattr(large, "gflops", lambda case: None)
    (case,) = cases_of(large, "--small", "--systems", "half", "--image-size", "128x128")
    rows = large._rows([case], {case.name: [one_pass(large, case)]}, {}, unfinished=False)
    assert rows[0]["gflops"] is None and "GFLOPs" not in large.table({"rows": rows})[0]


def one_pass(large: Any, case: Any) -> dict[str, Any]:
    return {**large.prepare(case)(), "memory": {"peak_mb": 2.0, "before_mb": 1.0}}


def test_slices_are_joined(large, uncounted, monkeypatch):
    """The merge has what every tile found, and a picture no larger than a tile has none."""
    joined, clocks = [], []
    join, clock = large.Slicer._join, large.Clock

    def watched(slicer: Any, parts: list[Any]) -> Any:
        joined.append((len(parts), len(parts[0]) > 0, clocks[-1].part))
        return join(slicer, parts)

    monkeypatch.setattr(large, "Clock", lambda device: clocks.append(clock(device)) or clocks[-1])
    monkeypatch.setattr(large.Slicer, "_join", watched)
    words = ("--small", "--systems", "slices", "--tile", "256", "--image-size")
    for case in cases_of(large, *words, "256x384", "256x256"):
        large.prepare(case)()
    assert joined == [(1, True, "merge")]


def passes_of(*seconds: float, peak: float = 300.0) -> list[dict[str, Any]]:
    memory = {"peak_mb": peak, "before_mb": 100.0}
    costs = {
        "gflops": {"backbone": 1.0, "encoder": 2.0, "total": 3.0},
        "tokens": 9,
        "kept_tokens": 9.0,
    }
    return [
        {"parts": {"backbone": 1e3 * each, "encoder": 0.0}, "memory": memory, "passes": 1, **costs}
        for each in seconds
    ]


def test_ratios_are_those_within_a_round(large):
    case = large.LargeCase("a", label="sparse", system="focus", keep="0.1")
    cases = [replace(case, label="dense", system="dense"), case]
    passes = {"dense": passes_of(2, 8, 40), "sparse": passes_of(1, 2, 30, peak=150.0)}
    rows = large._rows(cases, passes, {}, unfinished=False)
    assert rows[1]["time_over"] == {"dense": 0.5, "sparse": 1.0}  # of 2/4, 1/4 and 3/4
    assert rows[1]["memory_over"] == {"dense": 0.5, "sparse": 1.0}
    assert rows[1]["ms"]["median"] == 2e3 and rows[1]["gflops"]["total"] == 3.0
    begun = {"dense": passes["dense"], "sparse": passes["sparse"][:1]}
    assert large._rows(cases, begun, {}, unfinished=True)[1]["time_over"]["dense"] == 0.5
    assert large.table({"rows": rows})[2][:3] == ["sparse", "800x1333", "2.00"]
    lines = large.ratio_table({"rows": rows})
    assert lines[0][2:] == ["time / dense", "time / sparse", "memory / dense", "memory / sparse"]
    assert lines[2][2:] == ["0.50", "1.00", "0.50", "1.00"]


def test_time_over_slices_without_their_merge(large):
    cases = [
        large.LargeCase("a", label="slices", system="slices"),
        large.LargeCase("b", label="glance", system="glance"),
    ]
    slices = passes_of(4)
    slices[0]["parts"]["merge"] = 4e3
    rows = large._rows(cases, {"slices": slices, "glance": passes_of(2)}, {}, unfinished=False)
    assert rows[1]["time_over"] == {"slices": 0.25, "slices without merge": 0.5}
    assert rows[1]["memory_over"] == {"slices": 1.0}
    assert len(large.ratio_table({"rows": rows})[0]) == 5


def test_a_system_that_fails_leaves_the_others(
    tool, here, uncounted, tmp_path, monkeypatch, capsys
):
    call = here.__call__

    def failing(self: Here) -> Any:
        if self.args[0].system == "dense" and self.passes == 1:
            raise RuntimeError("The process that is measured failed: it was killed.")
        return call(self)

    monkeypatch.setattr(here, "__call__", failing)
    target = tmp_path / "large.json"
    words = [*TINY, "--systems", "dense", "half", "--json", str(target)]
    assert tool.main(words) == 1
    dense, half = json.loads(target.read_text())["rows"]
    assert "it was killed" in dense["error"] and "ms" not in dense
    assert half["ms"]["passes"] == 2 and half["time_over"] == {"DINO at half the sides": 1.0}
    assert "failed" in capsys.readouterr().out


# --- what is broken off ---------------------------------------------------------------------------


def test_every_pass_is_written_and_whole_sizes_are_kept(
    tool, here, uncounted, tmp_path, monkeypatch
):
    words = (*TINY, "--systems", "dense", "half", "--image-size", "128x128", "256x256")
    call, target = here.__call__, tmp_path / "large.json"

    def stopping(self: Here) -> Any:
        if self.args[0].image_size[0] == 256 and self.passes == 1:
            raise KeyboardInterrupt
        return call(self)

    monkeypatch.setattr(here, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        tool.main([*words, "--json", str(target)])
    begun = json.loads(target.read_text())["rows"]
    assert [row["unfinished"] for row in begun] == [False, False, True, True]
    monkeypatch.setattr(here, "__call__", call)
    here.made.clear()
    rows = run(tool, tmp_path, *words, "--resume")
    assert [worker.args[0].image_size for worker in here.made] == [(256, 256), (128, 128)]
    assert rows[:2] == begun[:2] and not any(row["unfinished"] for row in rows)
    run(tool, tmp_path, *words, "--resume", "--tile", "128")
    assert len(here.made) == 6  # what is measured otherwise is measured again


def test_figures_of_another_machine_are_not_mixed_in(tool, here, uncounted, tmp_path, capsys):
    target = tmp_path / "large.json"
    rows = run(tool, tmp_path, *TINY, "--systems", "half")
    result = json.loads(target.read_text())
    result["environment"]["cpu"] = "another"
    target.write_text(json.dumps(result))
    words = [*TINY, "--systems", "half", "--resume"]
    assert rows and tool.main([*words, "--json", str(target)]) == 2
    assert "measure where it was measured" in capsys.readouterr().err
    assert tool.main(words) == 2
    assert "--resume needs --json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--look-ratio", "0"], "--look-ratio must be in (0, 1], got 0"),
        (["--look-ratio", "1.5"], "--look-ratio must be in (0, 1], got 1.5"),
        (["--tile", "0"], "must be a number of pixels, got 0"),
        (["--overlap", "1"], "overlap must be in [0, 1), got 1.0"),
        (["--keep-ratio", "half"], "--keep-ratio must be dense, config or a number"),
        (["model.nothing=1"], "nothing"),
    ],
)
def test_bad_arguments(tool, here, words, message, capsys):
    assert tool.main(["large", "--small", *BRIEF, *words]) == 2
    assert message in capsys.readouterr().err and not here.made


# --- the suite ------------------------------------------------------------------------------------


def test_a_suite_goes_on_where_it_was_broken_off(tool, tmp_path, monkeypatch):
    suites = importlib.import_module(f"{MODULE}.suites")
    target, commands, code = tmp_path / "suite.json", [], [0, 2]

    def measure(command: list[str], env: Any) -> Any:
        commands.append(command)
        path = Path(command[command.index("--json") + 1])
        path.write_text(json.dumps({"mode": "large", "environment": {}, "rows": []}))
        return type("Done", (), {"returncode": code.pop(0)})

    monkeypatch.setattr(suites.subprocess, "run", measure)
    words = ["--suite", "large", "--only", "systems", "canvas", "--json", str(target)]
    assert tool.main(words) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["suite.canvas.json", "suite.json"]
    code.append(0)
    assert tool.main([*words, "--resume"]) == 0
    assert ["--resume" in command for command in commands] == [False, False, True]
    assert "--look-tiles" in commands[-1] and [*tmp_path.iterdir()] == [target]
    found = json.loads(target.read_text())["sections"]
    assert [each["status"] for each in found] == ["done", "done"]


def suite_of(large: Any) -> dict[str, Any]:
    """A suite whose costs are known: seconds are megapixels, or tenths of a tile."""

    def row(system: str, side: int, seconds: float, keep: str = "config", **more: Any) -> Any:
        case = large.LargeCase(
            "a", system=system, label=f"{system} {keep}", keep=keep, image_size=(side, side)
        )
        (made,) = large._rows([case], {case.name: passes_of(seconds)}, {}, unfinished=False)
        return {**made, **more}

    def glance(side: int, looked: int, tiles: int) -> Any:
        seconds = side**2 / 1e6 + looked / 10
        return row("glance", side, seconds, looked_tiles=looked, tiles=tiles)

    systems = [
        row("half", 500, 1), row("dense", 1000, 9), row("focus", 1000, 5, "0.3"),
        row("focus", 1000, 3, "0.1"), row("slices", 1000, 11), glance(1000, 4, 40),
        glance(1500, 9, 90),
    ]  # fmt: skip
    canvas = [
        each
        for side in (2000, 3000)
        for each in (row("dense", side, side / 100), row("focus", side, side / 200, "0.1"))
    ]
    canvas += [glance(2000, 4, 160), glance(3000, 4, 360)]
    share = [glance(1000, looked, 40) for looked in (20, 40)]
    rows = {"systems": systems, "canvas": canvas, "share": share}
    return {
        "suite": "large",
        "sections": [
            {
                "name": name, "title": name.title(), "command": f"do {name}", "status": "done",
                "result": {"mode": "large", "environment": {"threads": 2}, "rows": found},
            }
            for name, found in rows.items()
        ],
    }  # fmt: skip


def test_curves(large, tool, tmp_path, monkeypatch):
    curves = importlib.import_module(f"{MODULE}.curves")
    figures = []
    monkeypatch.setattr(curves, "write_figure", lambda path, figure, dpi: figures.append(figure))
    curves.draw(suite_of(large), tmp_path / "x.png")
    axes = figures[0].axes
    assert len(axes) == 6 and all(each.get_xlabel() and each.get_ylabel() for each in axes)
    canvas, share = (
        {line.get_label(): line.get_xydata().tolist() for line in axes[place].lines}
        for place in (0, 3)
    )
    assert canvas["DINO"] == [[1000, 9], [2000, 20], [3000, 30]]
    assert canvas["Focus-DETR, keep ratio 0.1"] == [[1000, 3], [2000, 10], [3000, 15]]
    assert canvas["glance and look"] == [[1000, 1.4], [2000, 4.4], [3000, 9.4]]
    assert share["glance and look"] == [[10, 1.4], [50, 3.0], [100, 5.0]]
    assert [y for _, y in share["Focus-DETR, keep ratio 0.1"]] == [3, 3]
    assert [y for _, y in share["DINO on slices"]] == [11, 11]
    texts = [each.get_legend().get_texts()[0].get_text() for each in (axes[0], axes[3])]
    assert texts == ["0.4 s + 1 s per megapixel", "1 s + 0.04 s per % of the tiles"]
    with pytest.raises(ValueError, match="'canvas' or 'share'"):
        curves.draw({"sections": []}, tmp_path / "x.png")


def test_tables_are_put_into_pages(large, tool, tmp_path, capsys):
    source, page, plot = (tmp_path / name for name in ("suite.json", "page.md", "plot.png"))
    source.write_text(json.dumps(suite_of(large)))
    page.write_text(
        "before\n<!-- benchmark large systems -->\nold\n<!-- end of benchmark -->\nbetween\n"
        "<!-- benchmark large share -->\n<!-- end of benchmark -->\nafter\n"
    )
    words = ["--render", str(source), "--fill", str(page), "--plot", str(plot)]
    assert tool.main(words) == 0
    text = page.read_text()
    assert tool.main(words) == 0 and page.read_text() == text
    assert "old" not in text and text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
    first, second = text.split("between")
    assert "```bash\ndo systems\n```" in first and "| focus 0.3 | 1000x1000 | 5.00 |" in first
    assert "do share" in second and "20 of 40" in second and "time /" not in second
    assert "do canvas" not in text and plot.read_bytes().startswith(b"\x89PNG")
    page.write_text("nothing\n")
    assert tool.main(words) == 2
    assert "has no place for a table of this suite" in capsys.readouterr().err
    assert page.read_text() == "nothing\n"
