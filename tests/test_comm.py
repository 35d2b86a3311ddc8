"""Collectives, alone and over two processes."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsedet import comm
from sparsedet.engine.launch import launch


def test_one_process() -> None:
    assert (comm.get_rank(), comm.get_local_rank(), comm.get_world_size()) == (0, 0, 1)
    assert comm.is_main_process()
    assert comm.all_gather({"a": 1}) == [{"a": 1}]
    assert comm.any_process(True) is True
    assert comm.any_process(False) is False
    assert comm.of_first(0.25) == 0.25
    assert (comm.smallest(7), comm.smallest(None)) == (7, None)
    comm.synchronize()
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = comm.all_reduce_mean(value)
    assert mean.tolist() == [1.0, 2.0]
    assert not mean.requires_grad


def _collect(device: torch.device, folder: str) -> int:
    rank = comm.get_rank()
    value = torch.tensor([float(rank), 10.0])
    answers = {
        "rank": rank,
        "local_rank": comm.get_local_rank(),
        "main": comm.is_main_process(),
        "gathered": comm.all_gather(f"from {rank}"),
        "mean": comm.all_reduce_mean(value).tolist(),
        "first": comm.of_first(rank + 1 / 3),
        "untouched": value.tolist(),
        "any": [comm.any_process(rank == 1), comm.any_process(False)],
        "smallest": [comm.smallest(n) for n in (15 - 5 * rank, None if rank else 3, None)],
    }
    filled = torch.full((2,), rank)
    comm.broadcast([filled])
    answers["filled"] = filled.tolist()
    comm.synchronize()
    torch.save(answers, Path(folder) / f"{rank}.pt")
    return 0


def test_two_processes(tmp_path: Path, quick_processes: None) -> None:
    assert launch(_collect, (str(tmp_path),), num_processes=2, device_type="cpu") == 0
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == {
            "rank": rank,
            "local_rank": rank,
            "main": rank == 0,
            "gathered": ["from 0", "from 1"],
            "mean": [0.5, 10.0],
            "first": 1 / 3,
            "untouched": [float(rank), 10.0],
            "any": [True, False],
            "smallest": [10, 3, None],
            "filled": [0, 0],
        }
