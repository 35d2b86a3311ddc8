"""Two processes with one image each, one of them without objects, train as one with both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet import comm
from sparsedet.engine.launch import launch
from tests.modeling import small

NAMES = ("deformable_two_stage", "dn_deformable", "focus", "sparse_dual")
COUNTS = (3, 0)


def _gradients(device: torch.device, folder: str) -> int:
    """Gradients of one step, by the name of the system."""
    torch.set_num_threads(1)
    rank, world_size = comm.get_rank(), comm.get_world_size()
    found = {}
    for name in NAMES:
        model = small.fix_noise(small.detector(small.NAMED[name]).train())
        wrapped: nn.Module = model
        if world_size > 1:
            wrapped = nn.parallel.DistributedDataParallel(model)
        batch = small.samples([(64, 96)] * 2, COUNTS)
        losses = wrapped(batch if world_size == 1 else batch[rank : rank + 1])
        sum(losses.values()).backward()
        found[name] = {key: p.grad for key, p in model.named_parameters()}
    if rank == 0:
        torch.save(found, Path(folder) / f"{world_size}.pt")
    return 0


def test_one_process_without_objects(tmp_path: Path) -> None:
    for processes in (1, 2):
        args = (str(tmp_path),)
        assert launch(_gradients, args, num_processes=processes, device_type="cpu") == 0
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    for name in NAMES:
        for key, expected in one[name].items():
            assert expected is not None, (name, key)
            difference = (two[name][key] - expected).norm()
            assert difference <= 1e-3 * expected.norm() + 1e-3, (name, key)
    embedding = two["focus"]["denoising.label_embedding.weight"]
    assert embedding.any(), "the process with objects has no say"


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
