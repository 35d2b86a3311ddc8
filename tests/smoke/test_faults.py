"""`sparsedet train` when something fails meanwhile: what is said, what is kept, how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsedet.checkpoint import CheckpointStore
from sparsedet.cli.main import main
from tests.smoke.test_train_net import CONFIG, NARROW, draw_set, set_overrides

ROOT = Path(__file__).parents[2]


class Disturbance:
    """A transform that does something at one of its calls."""

    def __init__(self, what: str = "nothing", at: int = 6) -> None:
        self.what, self.at, self.calls = what, at, 0

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def __call__(self, image: Any, boxes: Any, rng: Any) -> tuple[Any, Any]:
        self.calls += 1
        if self.calls == self.at and self.what == "error":
            return {}["colour"]
        if self.calls == self.at and self.what != "nothing":
            os.kill(os.getpid(), getattr(signal, self.what))
        return image, boxes


def disturbed(loader: str, what: str, at: int) -> str:
    target = f"{{_target_: tests.smoke.test_faults.Disturbance, what: {what}, at: {at}}}"
    return f"dataloader.{loader}.mapper.transforms=[{target}]"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("set") / "three")


@pytest.fixture
def train(drawn: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        return main(
            [
                "train",
                str(ROOT / CONFIG),
                *NARROW,
                *set_overrides(drawn),
                f"train.output_dir={tmp_path}",
                "train.max_iter=4",
                "train.eval_period=0",
                "train.checkpointer.period=0",
                *arguments,
            ]
        )

    return run


def losses(folder: Path) -> dict[int, float]:
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {row["iteration"]: row["loss"] for row in rows if "loss" in row}


def test_an_error_of_a_component_costs_nothing(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(disturbed("train", "error", 6)) == 3
    lines = capsys.readouterr().err.splitlines()
    (said,) = [line for line in lines if line.startswith("error: ")]
    assert said.startswith(f"error: KeyError: 'colour' ({__file__}, line ")
    kept = f"Iteration 2 is saved in {tmp_path}/checkpoint_0000002.pth. Add --resume to continue."
    assert said.endswith(kept) and not any("Traceback" in line for line in lines)
    log = (tmp_path / "log.txt").read_text()
    assert said.removeprefix("error: ") in log and log.count("Traceback") == 1
    assert train(disturbed("train", "nothing", 0), "--resume", "--accept-changes") == 0
    assert (tmp_path / "model_final.pth").exists()
    found = losses(tmp_path)
    whole = tmp_path / "whole"
    assert train(disturbed("train", "nothing", 0), f"train.output_dir={whole}") == 0
    assert found == losses(whole)


def test_a_fault_of_the_last_evaluation_costs_nothing(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(disturbed("test", "error", 1)) == 3
    assert "Iteration 4 is saved in" in capsys.readouterr().err
    assert (tmp_path / "model_final.pth").exists()
    assert train("--resume") == 0
    assert "only evaluating" in capsys.readouterr().err
    assert (tmp_path / "results.json").exists()
    assert losses(tmp_path).keys() == {1, 2, 3, 4}
    # the file has the results by now
    assert torch.load(tmp_path / "checkpoint_0000004.pth")["hooks"]["eval"]["iteration"] == 4


def test_an_evaluation_that_is_repeated_has_one_row(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends when its row is written and its results are not saved yet."""
    save = CheckpointStore.save

    def fail(self: CheckpointStore, checkpoint: Any, iteration: int) -> Path:
        if "eval" in checkpoint["hooks"]:
            raise OSError("gone")
        return save(self, checkpoint, iteration)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointStore, "save", fail)
        assert train() == 3
    path = tmp_path / "metrics.json"
    assert path.read_text().count('eval/bbox/AP50"') == 1
    assert train("--resume") == 0
    assert path.read_text().count('eval/bbox/AP50"') == 1
    assert losses(tmp_path).keys() == {1, 2, 3, 4}


def test_a_model_that_diverges(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = train(
        "optimizer.lr=1e30", "train.clip_grad.enabled=false", "train.max_nonfinite_steps=1"
    )
    assert code == 1
    lines = capsys.readouterr().err.splitlines()
    (said,) = [line for line in lines if line.startswith("error: ")]
    assert "not finite at iteration" in said and "The previous step was skipped." in said
    assert any("The step is skipped (1 in a row" in line for line in lines)
    folders = sorted(tmp_path.glob("nonfinite_*"))
    assert len(folders) == 2 and str(folders[1]) in said
    (sample, *_), *_ = json.loads((folders[0] / "batch.json").read_text())["batches"]
    assert sample["file_name"].endswith(".png") and sample["instances"]["gt_boxes"]


def test_a_folder_that_cannot_be_made(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert train(f"train.output_dir={tmp_path}/file/run") == 2
    assert "file/run cannot be created (not a directory" in capsys.readouterr().err


def test_a_log_that_cannot_be_opened(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").mkdir()
    assert train() == 2
    said = capsys.readouterr().err
    assert f"error: {tmp_path}/log.txt cannot be used: is a directory." in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("where", ["train", "test"])
def test_kills_of_real_processes(drawn: Path, tmp_path: Path, where: str) -> None:
    """A worker that is killed is named; a process that is killed in the last evaluation resumes."""
    command = [sys.executable, "-m", "sparsedet", "train", str(ROOT / CONFIG), *NARROW]
    command += [*set_overrides(drawn), f"train.output_dir={tmp_path}", "train.max_iter=4"]
    command += ["train.eval_period=0", "dataloader.train.num_workers=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    broken = subprocess.run(
        [*command, disturbed(where, "SIGKILL", 3)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in broken.stderr
    if where == "train":
        assert broken.returncode == 3
        assert "orker process" in broken.stderr and "memory ran out" in broken.stderr
    else:
        assert broken.returncode == -signal.SIGKILL
        assert (tmp_path / "checkpoint_0000004.pth").exists()
    command += ["--resume=auto", "--accept-changes"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]
    if where == "test":
        assert "only evaluating" in done.stderr


@pytest.mark.slow
def test_a_second_run_in_the_folder(drawn: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsedet", "train", str(ROOT / CONFIG), *NARROW]
    command += [*set_overrides(drawn), f"train.output_dir={tmp_path}", "train.max_iter=1000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if (tmp_path / "metrics.json").exists() and losses(tmp_path):
                break
            time.sleep(0.1)
        log = (tmp_path / "log.txt").read_text()
        second = subprocess.run(
            [*command, "--resume"], env=environment, capture_output=True, text=True, timeout=120
        )
        assert second.returncode == 2
        assert f"in use by another run: process {first.pid} on " in second.stderr
        assert (tmp_path / "log.txt").read_text().startswith(log)
        assert "in use" not in (tmp_path / "log.txt").read_text()
    finally:
        first.kill()
        first.wait()
