"""`sparsedet train --resume`: what it goes on from, says and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsedet.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.cli.main import main
from tests.smoke.test_train_net import CONFIG, NARROW, draw_set, set_overrides


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("set") / "three")


@pytest.fixture(scope="module")
def stopped(drawn: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of six iterations, as it was after the fourth."""
    output = tmp_path_factory.mktemp("run")
    arguments = (*NARROW, *set_overrides(drawn), f"train.output_dir={output}", "train.epochs=2")
    every = (
        "train.checkpointer.period=1",
        "train.eval_epochs=0",
        "train.checkpointer.max_to_keep=9",
    )
    assert main(["train", str(root / CONFIG), *arguments, *every]) == 0
    for iteration in (5, 6):
        (output / f"checkpoint_{iteration:07d}.pth").unlink()
    (output / "last_checkpoint").write_text("checkpoint_0000004.pth\n")
    return output


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Callable[..., int]:
    """Go on with a copy of the run in `tmp_path`."""
    for name in ("config.yaml", "metrics.json", "last_checkpoint"):
        shutil.copy(stopped / name, tmp_path)
    for path in stopped.glob("checkpoint_*.pth"):
        shutil.copy(path, tmp_path)

    def resume(*arguments: str, option: str = "--resume") -> int:
        config = str(tmp_path / "config.yaml")
        return main(["train", config, option, f"train.output_dir={tmp_path}", *arguments])

    return resume


def _losses(output: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {row["iteration"]: row["loss"] for row in rows if "loss" in row}


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_resumed_run_says_what_has_changed(
    run: Callable[..., int], stopped: Path, tmp_path: Path
) -> None:
    assert run("train.log_period=2") == 0
    log = (tmp_path / "log.txt").read_text()
    assert "train.log_period was 1 in the checkpoint and is 2 now" in log
    assert "resuming at iteration 4" in log
    assert run() == 0
    facts = load_checkpoint(tmp_path / "model_final.pth")["run"]
    assert facts["torch"] == torch.__version__
    assert len(facts["the SHA-256 of the training annotations"]) == 16
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["annotations"]) == {"training", "validation"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("dataloader.train.total_batch_size=3", "dataloader.train.total_batch_size was 2"),
        ("train.epochs=4", "the length of the learning rate schedule was 6"),
        ("train.accumulation_steps=2", "train.accumulation_steps was 1"),
    ],
)
def test_what_bends_the_schedule_is_refused_unless_it_is_confirmed(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    says: str,
) -> None:
    before = (tmp_path / "config.yaml").read_bytes()
    assert run(change) == 2
    assert says in _error(capsys)
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert run(change, "--accept-changes") == 0
    assert "accepted: " in (tmp_path / "log.txt").read_text()


def test_other_training_annotations_are_refused(
    run: Callable[..., int], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((drawn / "instances.json").read_text())
    content["annotations"][0]["bbox"][2] -= 1
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert run(f"dataset.train_json={tmp_path}/other.json") == 2
    assert "the SHA-256 of the training annotations was" in _error(capsys)
    (tmp_path / "same.json").write_bytes((drawn / "instances.json").read_bytes())
    assert run(f"dataset.train_json={tmp_path}/same.json") == 0
    assert "dataset.train_json was " in (tmp_path / "log.txt").read_text()


def test_nothing_to_resume(
    drawn: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = (*NARROW, *set_overrides(drawn), f"train.output_dir={output}", "train.max_iter=1")
    # the word after --resume is the config
    assert main(["train", "--resume", str(root / CONFIG), *arguments]) == 2
    assert "there is no checkpoint to resume" in _error(capsys)
    assert main(["train", "--resume=auto", str(root / CONFIG), *arguments]) == 0
    log = (output / "log.txt").read_text()
    assert log.count("starting a new run") == 1
    assert main(["train", "--resume=auto", str(root / CONFIG), *arguments]) == 0
    assert (output / "log.txt").read_text().count("starting a new run") == 1


@pytest.mark.parametrize(
    "words", [("--resume=DIR",), ("--resume", "DIR"), ("--resume=autom",), ("--resume=auto", "DIR")]
)
def test_resume_takes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "quickstart", *(word.replace("DIR", str(tmp_path)) for word in words)])
    assert caught.value.code == 2
    assert "--resume takes no value except auto" in capsys.readouterr().err


def test_a_broken_newest_checkpoint_costs_one_period(
    run: Callable[..., int], stopped: Path, tmp_path: Path
) -> None:
    newest = tmp_path / "checkpoint_0000004.pth"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert run() == 0
    log = (tmp_path / "log.txt").read_text()
    assert f"{newest} is damaged" in log and "checkpoint_0000003.pth" in log
    assert _losses(tmp_path) == _losses(stopped)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("iteration", "four"),
        ("optimizer", 5),
        ("optimizer", {"state": {}, "param_groups": [1]}),
        ("hooks", None),
    ],
)
def test_a_checkpoint_that_no_run_wrote(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    value: object,
) -> None:
    path = tmp_path / "checkpoint_0000004.pth"
    save_checkpoint(load_checkpoint(path) | {part: value}, path)
    assert run() == 2
    assert f"checkpoint {path} cannot be resumed: " in _error(capsys)


def test_an_optimizer_that_is_not_finite(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint_0000004.pth"
    checkpoint = load_checkpoint(path)
    checkpoint["optimizer"]["state"][0]["exp_avg"].fill_(torch.nan)
    save_checkpoint(checkpoint, path)
    assert run() == 2
    assert "optimizer.state.0.exp_avg" in _error(capsys)


def test_weights_that_are_not_finite_are_not_evaluated(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(stopped / "model_final.pth")
    name = next(iter(checkpoint["model"]))
    checkpoint["model"][name].view(-1)[:2] = torch.nan
    save_checkpoint(checkpoint, tmp_path / "bad.pth")
    words = (f"train.init_checkpoint={tmp_path}/bad.pth", f"train.output_dir={tmp_path}")
    assert main(["train", str(stopped / "config.yaml"), "--eval-only", *words]) == 2
    assert f"2 values in 1 tensor (2 of {name})" in _error(capsys)


def test_a_diverged_model_does_not_replace_a_finite_one(
    run: Callable[..., int], stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of infinite length from a finite loss and gradient."""
    (tmp_path / "model_best.pth").unlink(missing_ok=True)
    before = {path.name for path in tmp_path.glob("*.pth")}
    assert run("optimizer.lr=1e39", "train.max_nonfinite_steps=9", "--accept-changes") == 1
    assert "the model has diverged by iteration 5" in _error(capsys)
    assert {path.name for path in tmp_path.glob("*.pth")} == before
    (tmp_path / "config.yaml").write_bytes((stopped / "config.yaml").read_bytes())
    assert run() == 0
