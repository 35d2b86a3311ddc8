"""Hooks and selectors over two processes: they end together, and evaluate the same model."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from sparsedet import comm
from sparsedet.checkpoint import CheckpointStore, load_checkpoint
from sparsedet.engine import CheckpointHook, EvalHook, StopHook, Trainer
from sparsedet.engine.launch import launch
from sparsedet.engine.signals import StopTraining
from sparsedet.evaluation.loop import EvaluationStopped, evaluate
from sparsedet.modeling import AdaptiveSelector
from tests.engine import faulty
from tests.engine.fakes import TinyLoader, TinyModel
from tests.modeling import small

pytestmark = pytest.mark.usefixtures("quick_processes")


def _trainer(max_iter: int, batches: Any = None, model: nn.Module | None = None) -> Trainer:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(model or TinyModel())
    return Trainer(
        model,
        batches or TinyLoader(4, comm.get_rank(), 2).iter_from,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        lr_multiplier=ConstantParamScheduler(1.0),
        max_iter=max_iter,
    )


def _keep(folder: str, **facts: Any) -> None:
    torch.save(facts, Path(folder) / f"{comm.get_rank()}.pt")


def _two(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


# --- early stopping


def _end_early(device: torch.device, folder: str) -> int:
    """The main process alone knows the metrics, and so that they do not get better."""

    def metrics(model: nn.Module) -> dict[str, Any]:
        return {"bbox": {"AP": 0.5}} if comm.is_main_process() else {}

    trainer = _trainer(50)
    trainer.hooks = [EvalHook(1, metrics, patience=2)]
    trainer.train()
    _keep(folder, iteration=trainer.iteration, reason=trainer.end_reason)
    return 0


def test_early_stopping_ends_all_processes(tmp_path: Path) -> None:
    assert launch(_end_early, (str(tmp_path),), num_processes=2, device_type="cpu") == 0
    reason = "early stopping: no better bbox/AP in 2 evaluations"
    assert _two(tmp_path) == [{"iteration": 3, "reason": reason}] * 2


# --- an adaptive selector


def _adapt(device: torch.device, folder: str) -> int:
    """Which curve each process has when a forward begins, and when an evaluation does."""
    torch.set_num_threads(1)
    model = small.detector(small.NAMED["focus"])
    model.selector = AdaptiveSelector(0.5, layer_ratios=[0.5, 0.5])
    curve, begun = model.selector.curve, []
    sizes = ((64, 96), (96, 64))[comm.get_rank()]

    def batches(start: int) -> Iterator[Any]:
        return itertools.repeat(small.samples([sizes], (2 + comm.get_rank(),)))

    trainer = _trainer(3, batches, model)
    model.selector.register_forward_pre_hook(lambda *_: begun.append(curve.shares.clone()))
    evaluated = []
    trainer.hooks = [EvalHook(0, lambda model: evaluated.append(curve.shares.clone()) or {})]
    own = []
    trainer.optimizer.register_step_post_hook(lambda *_: own.append(curve.shares.clone()))
    trainer.train()
    _keep(folder, begun=begun, evaluated=evaluated, own=own)
    return 0


def test_the_curve_of_an_adaptive_selector_is_the_first_process_s(tmp_path: Path) -> None:
    assert launch(_adapt, (str(tmp_path),), num_processes=2, device_type="cpu") == 0
    first, second = _two(tmp_path)
    assert not torch.equal(first["own"][0], second["own"][0])  # each added its own image
    assert len(first["begun"]) == 3
    for step in (1, 2):
        assert torch.equal(first["begun"][step], first["own"][step - 1])
        assert torch.equal(second["begun"][step], first["own"][step - 1])
    assert torch.equal(first["evaluated"][0], first["own"][2])
    assert torch.equal(second["evaluated"][0], first["own"][2])


# --- signals


def _stop(device: torch.device, folder: str, told: list[int], numbers: list[int]) -> int:
    """Train until told to stop; the processes of `told` get the signals in the third iteration."""
    rank = comm.get_rank()

    def batches(start: int) -> Iterator[Any]:
        for step, batch in enumerate(TinyLoader(4, rank, 2).iter_from(start)):
            time.sleep(0.02 * (1 + rank))
            if step == 2 and rank in told:
                os.kill(os.getpid(), numbers[told.index(rank)])
            yield batch

    trainer = _trainer(500, batches)
    trainer.hooks = [StopHook(), CheckpointHook(CheckpointStore(folder), 0)]
    trainer.train()
    os.kill(os.getpid(), signal.SIGTERM)  # as where another process passes it on late
    _keep(folder, iteration=trainer.iteration, number=trainer.stop_signal)
    return 128 + (trainer.stop_signal or 0)


@pytest.mark.parametrize(
    ("told", "numbers"),
    [
        ([1], [signal.SIGUSR1]),
        ([0], [signal.SIGHUP]),
        ([0, 1], [signal.SIGTERM] * 2),
        ([1], [signal.SIGINT]),
    ],
)
def test_a_signal_to_some_processes_stops_all(
    tmp_path: Path, told: list[int], numbers: list[int]
) -> None:
    args = (str(tmp_path), told, numbers)
    code = launch(_stop, args, num_processes=2, device_type="cpu")
    first, second = _two(tmp_path)
    assert first == second
    assert 2 < first["iteration"] < 8
    assert code == 128 + numbers[0] == 128 + first["number"]
    (path,) = tmp_path.glob("checkpoint_*.pth")
    assert load_checkpoint(path)["iteration"] == first["iteration"]


def _signal_when(path: Path, *numbers: int) -> None:
    """Send this process signals as soon as a file is there."""

    def send() -> None:
        while not path.exists():
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    threading.Thread(target=send, daemon=True).start()


def _go_on(device: torch.device, folder: str, seconds: float) -> int:
    """Train until told to stop."""

    def batches(start: int) -> Iterator[Any]:
        for step, batch in enumerate(TinyLoader(4, comm.get_rank(), 2).iter_from(start)):
            if step == 2:  # all processes are in the loop by now
                (Path(folder) / "begun").touch()
                time.sleep(seconds)
            time.sleep(0.02)
            yield batch

    trainer = _trainer(5000, batches)
    trainer.hooks = [StopHook(), CheckpointHook(CheckpointStore(folder), 0)]
    trainer.train()
    _keep(folder, iteration=trainer.iteration)
    return 128 + (trainer.stop_signal or 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_parent_stops_all(tmp_path: Path, number: int) -> None:
    _signal_when(tmp_path / "begun", number)
    args = (str(tmp_path), 0.0)
    assert launch(_go_on, args, num_processes=2, device_type="cpu") == 128 + number
    first, second = _two(tmp_path)
    assert first == second
    assert len(list(tmp_path.glob("checkpoint_*.pth"))) == 1


def test_a_second_ctrl_c_ends_all_at_once(tmp_path: Path) -> None:
    _signal_when(tmp_path / "begun", signal.SIGINT, signal.SIGINT)
    args, say = (str(tmp_path), 600.0), partial(faulty.say, str(tmp_path))
    assert launch(_go_on, args, num_processes=2, device_type="cpu", say=say) == 130
    said = (tmp_path / "said.txt").read_text()
    assert said.startswith("parent: interrupted by a second Ctrl-C. Add --resume")
    assert time.time() - (tmp_path / "begun").stat().st_mtime < 20


def _stop_in_evaluation(device: torch.device, folder: str, told: int) -> int:
    """The process with many batches (1) is told to stop, or the one that waits for it by then."""
    rank = comm.get_rank()
    batches = [[{"image": torch.zeros(3), "target": 0.0}]] * (1000 if rank else 2)
    seen = []

    def progress(count: int) -> None:
        seen.append(count)
        time.sleep(0.02)
        if len(seen) == (20 if rank else 2) and rank == told:
            send = partial(os.kill, os.getpid(), signal.SIGTERM)
            threading.Timer(0.0 if rank else 1.0, send).start()

    def run(model: nn.Module) -> dict[str, Any]:
        try:
            return evaluate(
                _Finding(),
                batches,
                _Counting(),
                progress=progress,
                is_stopped=lambda: trainer.stop_signal is not None,
            )
        except EvaluationStopped:
            raise StopTraining from None

    trainer = _trainer(3)
    trainer.hooks = [StopHook(), CheckpointHook(CheckpointStore(folder), 1), EvalHook(2, run)]
    trainer.train()
    _keep(folder, iteration=trainer.iteration, batches=len(seen), number=trainer.stop_signal)
    return 128 + (trainer.stop_signal or 0)


class _Finding(nn.Module):
    def forward(self, samples: list[Any]) -> list[dict[str, Any]]:
        return [{"instances": torch.zeros(0)} for _ in samples]


class _Counting:
    """An evaluator that gathers, as they do."""

    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.count += 1

    def evaluate(self) -> dict[str, Any]:
        return {"bbox": {"AP": float(sum(comm.all_gather(self.count)))}}


@pytest.mark.parametrize("told", [0, 1])
def test_an_evaluation_is_broken_off_by_all(tmp_path: Path, told: int) -> None:
    args = (str(tmp_path), told)
    code = launch(_stop_in_evaluation, args, num_processes=2, device_type="cpu")
    first, second = _two(tmp_path)
    assert code == 143
    assert first == {"iteration": 2, "batches": 2, "number": 15}
    assert 20 <= second.pop("batches") < 800
    assert second == {"iteration": 2, "number": 15}
    assert (tmp_path / "last_checkpoint").read_text() == "checkpoint_0000002.pth\n"
