"""Grids of runs: which there are, what is done of them, and the table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsedet.ablation import (
    Run,
    collect,
    finished,
    plan,
    read_grid,
    run_missing,
    short_names,
    table,
)
from sparsedet.cli.main import main
from sparsedet.config import ConfigError
from sparsedet.report import runs as runs_report

GRID = ("model.selector.keep_ratio=0.1,0.3", "model.criterion.unmatched.0.weight=0.5,1.5")


def write_results(run: Run, ap: float, config: str = "quickstart") -> None:
    run.folder.mkdir(parents=True)
    metrics = {"bbox": {"AP": ap, "AP50": 2 * ap, "APs": None}}
    content = {"metrics": metrics, "keep_ratio": 0.29, "config": config, "ended": "all"}
    content["overrides"] = list(run.overrides)
    (run.folder / "results.json").write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return plan(read_grid(GRID), 2, tmp_path / "grid", ["train.epochs=1"])


def test_every_combination_has_every_seed(runs, tmp_path):
    assert len(runs) == 8
    assert len({run.folder for run in runs}) == 8
    first, last = runs[0], runs[-1]
    assert first.folder == tmp_path / "grid" / "keep_ratio=0.1,weight=0.5" / "seed0"
    assert last.overrides == (
        "train.epochs=1",
        "model.selector.keep_ratio=0.3",
        "model.criterion.unmatched.0.weight=1.5",
        "train.seed=1",
        f"train.output_dir={last.folder}",
    )


def test_commas_in_brackets_and_quotes_belong_to_a_value():
    grid = read_grid(["a.sizes=[1,2],[3,[4,5]]", "b='x,y',z", "c={k: 1, l: 2},null"])
    assert grid == {
        "a.sizes": ["[1,2]", "[3,[4,5]]"],
        "b": ["'x,y'", "z"],
        "c": ["{k: 1, l: 2}", "null"],
    }


def test_true_is_another_value_than_one():
    assert read_grid(["model.x=true,1"]) == {"model.x": ["true", "1"]}


def test_values_that_look_alike_as_folders_have_folders_of_their_own(tmp_path):
    grid = read_grid(["a=[1 2],[1/2],{1 2}", "b=" + ",".join(x * 200 for x in "xy")])
    folders = {run.folder for run in plan(grid, 1, tmp_path)}
    assert len(folders) == 6
    assert all(len(folder.parent.name) < 100 for folder in folders)


def test_names_are_as_short_as_they_can_be():
    keys = ["model.encoder.num_layers", "model.decoder.num_layers", "optimizer.lr", "lr"]
    assert list(short_names(dict.fromkeys(keys, ())).values()) == [
        "encoder.num_layers",
        "decoder.num_layers",
        "optimizer.lr",
        "lr",
    ]


@pytest.mark.parametrize(
    ("words", "overrides", "seeds", "message"),
    [
        (["model.x"], [], 1, "--grid must be key=value"),
        (["model.x=1,,2"], [], 1, "--grid must be key=value"),
        (["model.x=1,2,1"], [], 1, "model.x=1 twice"),
        (["model.x=1,2", "model.x=3,4"], [], 1, "model.x twice"),
        (["train.seed=0,1"], [], 1, "Use --seeds"),
        (["++train.seed=0,1"], [], 1, "Use --seeds"),
        (["model.x=1,2", "+model.x=3,4"], [], 1, "model.x twice"),
        (["model.x=0.1,3,1e-1"], [], 1, "model.x=0.1 twice, the second time as 1e-1"),
        (["+model.x=1,2"], ["model.x=3"], 1, "--grid sets it"),
        (["model.x=1,2"], ["++train.output_dir=a"], 1, "--output sets it"),
        (["model.x=1,2"], ["model.x=3"], 1, "--grid sets it"),
        (["model.x=1,2"], [], 0, "--seeds must be at least 1"),
    ],
)
def test_a_wrong_grid_is_refused(words, overrides, seeds, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        plan(read_grid(words), seeds, tmp_path, overrides)


def codes(runs: list[Run], by_index: dict[int, int], started: list[int]) -> Callable[[Run], int]:
    def train(run: Run) -> int:
        index = runs.index(run)
        started.append(index)
        if not by_index.get(index):
            write_results(run, 10.0 * (index + 1))
        return by_index.get(index, 0)

    return train


def test_an_interrupted_sweep_resumes_after_what_is_finished(runs):
    started: list[int] = []
    failed, stopped = run_missing("quickstart", runs, codes(runs, {2: 143}, started))
    assert (failed, stopped, started) == ({}, 143, [0, 1, 2])
    started.clear()
    assert run_missing("quickstart", runs, codes(runs, {}, started)) == ({}, None)
    assert started == [2, 3, 4, 5, 6, 7]


def test_a_run_that_fails_does_not_end_the_others(runs):
    started: list[int] = []
    lines: list[str] = []
    train = codes(runs, {1: 3, 4: 137}, started)
    assert run_missing("quickstart", runs, train, lines.append) == ({1: 3, 4: 137}, None)
    assert started == list(range(8))
    assert sum("failed with exit code" in line for line in lines) == 2
    rows = collect("quickstart", runs)
    assert [line[2] for line in table(rows)[1:]] == ["1/2", "2/2", "1/2", "2/2"]


def test_results_of_other_settings_are_not_taken(runs):
    write_results(runs[0], 1.0)
    assert finished(runs[0], "quickstart") is not None
    with pytest.raises(ConfigError, match="has results of `sparsedet train quickstart"):
        finished(runs[0], "photos")
    other = Run(runs[0].point, 0, runs[0].folder, (*runs[0].overrides, "optimizer.lr=1"))
    with pytest.raises(ConfigError, match="Set another --output"):
        finished(other, "quickstart")
    (runs[0].folder / "results.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not from a training run"):
        finished(runs[0], "quickstart")


def test_the_table_has_mean_and_range_over_the_seeds(runs):
    for index, ap in enumerate((20.0, 30.0, 25.0)):
        write_results(runs[index], ap)
    head, *lines = table(collect("quickstart", runs))
    assert head == ["keep_ratio", "weight", "seeds", "AP", "AP50", "tokens kept"]
    assert lines[0] == ["0.1", "0.5", "2/2", "25.0 (20.0 to 30.0)", "50.0 (40.0 to 60.0)", "0.290"]
    assert lines[1] == ["0.1", "1.5", "1/2", "25.0", "50.0", "0.290"]
    assert lines[2] == ["0.3", "0.5", "0/2", "-", "-", "-"]


def test_scripts_start_each_run(tmp_path, capsys):
    command = ["sweep-config", "quickstart", "--grid", *GRID, "--seeds", "2", "--output"]
    command += [str(tmp_path / "a b"), "--num-gpus", "4", "train.epochs=1"]
    assert main([*command, "--script", "torchrun"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 8
    assert all(line.startswith("torchrun --standalone --nproc-per-node=4 ") for line in lines)
    assert f"'train.output_dir={tmp_path}/a b/keep_ratio=0.3,weight=1.5/seed1'" in lines[-1]
    assert main([*command, "--script=slurm"]) == 0
    script = capsys.readouterr().out
    assert "--array=0-7" in script and "--gpus-per-task=4" in script
    assert "--script" not in script
    assert f"'{tmp_path}/a b' --num-gpus 4 train.epochs=1 --only" in script
    assert not (tmp_path / "a b").exists()


def test_a_script_holds_any_path_and_the_trust(capsys):
    output = "it's 5% #1"
    command = ["sweep-config", "quickstart", "--grid", *GRID, "--output", output]
    command += ["--trust-config"]
    assert main([*command, "--script=slurm"]) == 0
    script = capsys.readouterr().out.splitlines()
    told = [line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")]
    words = [shlex.split(line) for line in told]
    assert [f"--job-name={output}"] in words
    assert ["--output=it's 5%% #1/slurm-%A_%a.log"] in words
    assert "--trust-config" in script[-1]
    assert main([*command, "--script=torchrun"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert all(" train quickstart --trust-config --resume=auto " in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "model.selector.keep_ration=0.1,0.3"], "keep_ratio"),
        (["--grid", "model.selector.keep_ratio=0.1,many"], "many"),
        (["--only", "4", "--grid", *GRID], "--only must be from 0 to 3"),
        (["--grid", "model"], "--grid must be key=value"),
        (["--grid", *GRID, "--num-gpus", "0"], "--num-gpus must be at least 1"),
        (["--grid", *GRID], "No run of this grid is finished in"),
    ],
)
def test_a_grid_is_checked_before_anything_is_trained(words, message, tmp_path, capsys):
    out = ["--output", str(tmp_path / "grid"), "--table"]
    out = out[:2] if "--only" in words else out
    assert main(["sweep-config", "quickstart", *words, *out]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize("place", ["a.txt", "a.txt/grid"])
def test_an_output_that_is_no_folder_is_refused_before_a_run_starts(place, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("")
    command = ["sweep-config", "quickstart", "--grid", *GRID, "--output", str(tmp_path / place)]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "a file. Name a folder." in printed.err and not printed.out


def test_a_renamed_key_is_told_once(tmp_path, caplog):
    earlier = "model.criterion.stage.0.weight"
    grid = ["--grid", "model.selector.keep_ratio=0.1,0.3", f"{earlier}=0.5,1.5"]
    command = ["sweep-config", "quickstart", *grid, "--output", str(tmp_path)]
    assert main([*command, "--script=torchrun"]) == 0
    (line,) = (message for message in caplog.messages if earlier in message)
    assert line.endswith("is called model.criterion.unmatched.0.weight now")


def test_the_command_writes_the_table(tmp_path, capsys):
    output = tmp_path / "grid"
    for index, run in enumerate(plan(read_grid(GRID), 2, output)):
        write_results(run, float(index))
    command = ["sweep-config", "quickstart", "--grid", *GRID, "--seeds", "2"]
    assert main([*command, "--output", str(output)]) == 0  # all are finished: nothing is trained
    shown = capsys.readouterr().out
    assert shown.count("already finished") == 8
    assert "0.5 (0.0 to 1.0)" in shown
    assert "| 0.3 | 1.5 | 2/2 | 6.5 (6.0 to 7.0) |" in (output / "ablation.md").read_text()
    rows = json.loads((output / "ablation.json").read_text())["rows"]
    assert [entry["AP"] for row in rows for entry in row["runs"]] == list(range(8))
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "<title>Report of 8 runs</title>" in page
    assert "keep_ratio=0.3,weight=1.5/seed1 (highest AP)" in page


def test_a_report_that_fails_does_not_take_the_table(tmp_path, capsys, monkeypatch):
    output = tmp_path / "grid"
    for index, run in enumerate(plan(read_grid(GRID), 1, output)):
        write_results(run, float(index))

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(runs_report, "write_report", fail)
    command = ["sweep-config", "quickstart", "--grid", *GRID, "--output", str(output)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert str(output / "ablation.json") in printed.out
    assert f"(no space left). Fix this, then run: sparsedet report {output}" in printed.err
