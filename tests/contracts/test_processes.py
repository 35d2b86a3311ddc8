"""Processes that share a batch, one of them without objects, train as one with all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from sparsedet import comm
from sparsedet.engine import LogHook, Trainer
from sparsedet.engine.launch import launch
from tests.modeling import glancing, small

NAMES = ("deformable_two_stage", "dn_deformable", "focus", "sparse_dual")
COUNTS = (3, 0)
REGIONS = "focus with regions"


def _gradients(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Of one step in which every process has its part of the batch."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    wrapped = model
    if world_size > 1:
        wrapped = nn.parallel.DistributedDataParallel(model)
    share = len(batch) // world_size
    losses = wrapped(batch[rank * share : (rank + 1) * share])
    sum(losses.values()).backward()
    return {key: p.grad for key, p in model.named_parameters()}


def _steps(device: torch.device, folder: str) -> int:
    """Gradients by the name of the system; and with its layers kept, and computed again."""
    torch.set_num_threads(1)
    found = {}
    for name in NAMES:  # in double precision, where biases before a norm have no gradient
        model = small.fix_noise(small.detector(small.NAMED[name]).train().double())
        found[name] = _gradients(model, small.samples([(64, 96)] * 2, COUNTS))
    model = glancing.detector("focus", **glancing.foreground(), taught_passes=0)
    model = small.fix_noise(model.train().double())
    found[REGIONS] = _gradients(model, small.samples([(130, 200)] * 2, COUNTS))
    for key, flag in (("kept", False), ("anew", True)):
        options = dict(activation_checkpointing=flag, dropout=0.2)
        model = small.detector(small.NAMED["focus"], **options).train()
        torch.manual_seed(0)
        found[key] = _gradients(model, small.samples(((96, 128), (128, 70)), (4, 3)))
    if comm.get_rank() == 0:
        torch.save(found, Path(folder) / f"{comm.get_world_size()}.pt")
    return 0


@pytest.fixture(scope="module")
def steps(
    tmp_path_factory: pytest.TempPathFactory, quick_processes: None
) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What one process finds, and what two do."""
    folder = tmp_path_factory.mktemp("steps")
    for processes in (1, 2):
        args = (str(folder),)
        assert launch(_steps, args, num_processes=processes, device_type="cpu") == 0
    return [torch.load(folder / f"{processes}.pt") for processes in (1, 2)]


def test_one_process_without_objects(steps) -> None:
    one, two = steps
    for name in (*NAMES, REGIONS):
        for key, expected in one[name].items():
            assert expected is not None, (name, key)
            difference = (two[name][key] - expected).norm()
            assert difference <= 1e-5 * expected.norm() + 1e-7, (name, key)
    embedding = two["focus"]["denoising.label_embedding.weight"]
    assert embedding.any(), "the process with objects has no say"


def test_layers_that_are_computed_again_work_in_several_processes(steps) -> None:
    _, two = steps
    for key, expected in two["kept"].items():
        assert torch.equal(two["anew"][key], expected), key


def test_the_count_of_objects_is_a_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without objects divides by the others' too, and never by zero."""
    model = small.detector(small.NAMED["dino"]).train()
    batch = small.samples([(64, 96)], (4,))
    losses = []
    for mean in (None, 2.0, 0.0):
        if mean is not None:
            monkeypatch.setattr(comm, "get_world_size", lambda: 2)
            monkeypatch.setattr(comm, "all_reduce_mean", lambda x, mean=mean: torch.tensor(mean))
        torch.manual_seed(0)
        losses.append(model(batch))
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], 2 * loss)
        torch.testing.assert_close(losses[2][name], 4 * loss)


class _Rows:
    """Keeps the losses of every iteration, their means over the processes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def write(self, iteration: int, scalars: dict[str, float]) -> None:
        self.rows.append({name: v for name, v in scalars.items() if name.startswith("loss")})

    def close(self) -> None:
        pass


# AdamW turns the rounding of gradients near zero into steps of full length
PRECISION = {torch.optim.SGD: torch.float32, torch.optim.AdamW: torch.float64}


def _train(name: str, optimizer: type, *, drawn: bool = False) -> list[dict[str, float]]:
    """Losses of 20 iterations over the same global batches of four images."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    model = small.detector(small.NAMED[name]).train().to(PRECISION[optimizer])
    model = model if drawn else small.fix_noise(model)
    wrapped = model if world_size == 1 else nn.parallel.DistributedDataParallel(model)

    def batches(start: int) -> Iterator[Any]:
        share = 4 // world_size
        for step in range(start, 20):
            seeds = [4 * step + place for place in range(4)]
            batch = small.samples([(64, 96)] * 4, [(seed * 7) % 4 for seed in seeds], seeds)
            yield batch[rank * share : (rank + 1) * share]

    writer = _Rows()
    trainer = Trainer(
        wrapped,
        batches,
        optimizer=optimizer(model.parameters(), lr=1e-4),
        lr_multiplier=ConstantParamScheduler(1.0),
        max_iter=20,
        clip_grad={"max_norm": 0.1},
    )
    trainer.hooks = [LogHook(1, [writer])]
    trainer.train()
    return writer.rows


def _trainings(device: torch.device, folder: str) -> int:
    torch.set_num_threads(1)
    found = {
        f"{name} {optimizer.__name__}": _train(name, optimizer)
        for name in ("deformable_two_stage", "sparse_dual", "focus")
        for optimizer in (torch.optim.SGD, torch.optim.AdamW)
    }
    found["drawn"] = _train("focus", torch.optim.SGD, drawn=True)
    if comm.get_rank() == 0:
        torch.save(found, Path(folder) / f"{comm.get_world_size()}.pt")
    return 0


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, quick_processes: None
) -> None:
    """Apart from noise that each process draws for itself."""
    for processes in (1, 2, 4):
        args = (str(tmp_path),)
        assert launch(_trainings, args, num_processes=processes, device_type="cpu") == 0
    one, *others = [torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2, 4)]
    for processes, other in zip((2, 4), others, strict=True):
        for name, rows in one.items():
            assert len(rows) == 20
            largest = max(
                abs(row[term] - again[term]) / max(1.0, abs(row[term]))
                for row, again in zip(rows, other[name], strict=True)
                for term in row
            )
            print(f"{name}, {processes} processes: largest difference of a loss {largest:.1e}")
            assert (largest <= 1e-5) is (name != "drawn"), (name, processes, largest)
