"""Whole runs on several processes: as on one, and with faults; torchrun, also as two machines."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparsedet.cli.train import Command, start
from tests.processes import free_port, wait_for
from tests.smoke.test_train_net import CONFIG, SMALL, draw_set, set_overrides

pytestmark = pytest.mark.slow

# what a process draws for itself, padding, which the backbone sees, and crops are left out
COMPARABLE = (
    "dataset.short_sides=[64]",
    "model.encoder.dropout=0.0",
    "model.decoder.dropout=0.0",
    "dataloader.train.mapper.transforms.0.crop_probability=0.0",
    "dataloader.train.total_batch_size=4",
    "dataloader.test.batch_size=1",
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("set") / "alike", heights=(48,))


def _rows(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


# --- one, two and four processes


@pytest.mark.parametrize(
    "optimizer",
    [
        ("optimizer._target_=torch.optim.SGD", "optimizer.lr=1e-3"),
        ("optimizer.lr=2e-4",),
    ],
    ids=["SGD", "AdamW"],
)
def test_the_number_of_processes_does_not_matter(
    root: Path,
    drawn: Path,
    tmp_path: Path,
    quick_processes: None,
    optimizer: tuple[str, ...],
) -> None:
    """The same losses, each term of them, and the same detections at the end."""
    found = {}
    for number in (1, 2, 4):
        output = tmp_path / str(number)
        words = (*SMALL, *set_overrides(drawn), *COMPARABLE, *optimizer, "train.max_iter=20")
        words += (
            f"train.output_dir={output}",
            "train.eval_epochs=0",
            "train.checkpointer.epochs=0",
        )
        assert start(Command(str(root / CONFIG), words, num_gpus=number)) == 0
        results = json.loads((output / "results.json").read_text())
        boxes = json.loads((output / "predictions.json").read_text())
        found[number] = _rows(output), results["metrics"]["bbox"], boxes
    rows, metrics, boxes = found[1]
    assert len(rows) == 20
    for number in (2, 4):
        others, other_metrics, other_boxes = found[number]
        for row, other in zip(rows, others, strict=True):
            terms = {name: value for name, value in row.items() if name.startswith("loss")}
            assert {name: other[name] for name in terms} == pytest.approx(terms, abs=1e-5, rel=1e-5)
        assert other_metrics == pytest.approx(metrics, abs=1e-9, nan_ok=True)
        key = lambda box: (box["image_id"], -box["score"])  # noqa: E731
        for box, other in zip(sorted(boxes, key=key), sorted(other_boxes, key=key), strict=True):
            assert other["score"] == pytest.approx(box["score"], abs=1e-4)
            assert other["bbox"] == pytest.approx(box["bbox"], abs=1e-2)


# --- faults


@pytest.mark.parametrize(
    ("fault", "code", "says", "saved"),
    [
        ("build raise 1", 2, "process 1 on {host} failed: FileNotFoundError: pictures", None),
        ("train kill 0", 137, "process 0 on {host} ended without a message", 2),
        ("evaluate kill 1", 137, "process 1 on {host} ended without a message", 6),
        ("metric raise 0", 3, "process 0 on {host} failed: FileNotFoundError: pictures", 6),
    ],
)  # fmt: skip
def test_a_fault_of_one_process_ends_the_run(
    root: Path, drawn: Path, tmp_path: Path, fault: str, code: int, says: str, saved: int | None
) -> None:
    """Who failed is said, no process stays, and what was saved stays."""
    words = [str(root / CONFIG), *SMALL, *set_overrides(drawn), "train.max_iter=6"]
    words += ["lr_multiplier._target_=tests.engine.faulty.Schedule"]
    words += ["dataloader.evaluator._target_=tests.engine.faulty.Evaluator"]
    words += ["train.checkpointer.period=2", "train.eval_period=0", f"train.output_dir={tmp_path}"]
    at = tmp_path / "fault"
    environment = os.environ | {"PYTHONPATH": str(root), "FAULT": fault, "FAULT_TIME": str(at)}
    command = [sys.executable, "-m", "sparsedet", "train", *words, "--num-gpus", "2"]
    with (tmp_path / "said.txt").open("w") as file:
        run = subprocess.run(command, env=environment, stderr=file, cwd=root, timeout=300)
    assert time.time() - float(at.read_text()) < 60
    said = (tmp_path / "said.txt").read_text()
    assert run.returncode == code, said
    assert f"error: {says.format(host=socket.gethostname())}" in said
    assert "Traceback" not in said
    last = tmp_path / "last_checkpoint"
    found = int(last.read_text()[11:18]) if last.exists() else None
    assert found == saved
    if fault.endswith("1") and saved is not None:  # the first process tells
        assert f"Iteration {saved} is saved in" in said


# --- two machines: two agents of torchrun here


class Agents:
    """Two agents of torchrun with one process each, and what they write."""

    def __init__(self, root: Path, folder: Path, words: list[str], *options: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        torchrun = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
            *("--nproc-per-node", "1", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"localhost:{free_port()}", *options),
        ]
        self.logs = [folder / f"agent-{i}.txt" for i in range(2)]
        self.processes = []
        for log in self.logs:
            with log.open("wb") as file:
                command = [*torchrun, "-m", "sparsedet", "train", *words]
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=root)
                )

    def wait(self, seconds: float) -> list[int]:
        """Exit codes."""
        return [process.wait(seconds) for process in self.processes]

    def texts(self) -> list[str]:
        return [log.read_text() for log in self.logs]

    def worker(self, agent: int) -> int:
        """The id of the process that an agent started last."""
        pid = self.processes[agent].pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[-1])


def test_a_killed_process_comes_back(root: Path, drawn: Path, tmp_path: Path) -> None:
    """Both machines start again, and go on as if nothing had been."""
    words = [str(root / CONFIG), *SMALL, *set_overrides(drawn), *COMPARABLE, "train.max_iter=30"]
    words += ["train.eval_epochs=0", "train.checkpointer.period=5", "--resume=auto"]
    plain, output = tmp_path / "plain", tmp_path / "run"
    for folder in (plain, output):
        folder.mkdir()
    whole = Agents(root, plain, [*words, f"train.output_dir={plain}"])
    assert whole.wait(300) == [0, 0], whole.texts()
    agents = Agents(root, output, [*words, f"train.output_dir={output}"], "--max-restarts", "3")
    wait_for(output / "checkpoint_0000010.pth", 200)
    os.kill(agents.worker(1), signal.SIGKILL)
    assert agents.wait(300) == [0, 0], agents.texts()
    assert re.search(r"process [01] on \S+ ended without a message", "".join(agents.texts()))
    losses = [[(row["iteration"], row["loss"]) for row in _rows(f)] for f in (plain, output)]
    assert losses[0] == losses[1] and len(losses[0]) == 30
