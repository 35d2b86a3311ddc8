"""Rank, world size and the few collectives that the rest of the package uses.

If `torch.distributed` is not initialized, all functions behave as with a single process. Nothing
here starts processes; see `sparsedet.engine.launch`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

__all__ = [
    "all_gather",
    "all_reduce_mean",
    "any_process",
    "broadcast",
    "get_local_rank",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "of_first",
    "smallest",
    "synchronize",
]


def get_rank() -> int:
    """Index of this process among all processes of the run (0 if there is only one)."""
    return dist.get_rank() if _is_initialized() else 0


def get_world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if _is_initialized() else 1


def get_local_rank() -> int:
    """Index of this process on its machine, from its launcher (0 if there is only one)."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes files."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process has reached this call."""
    if get_world_size() > 1:
        dist.barrier(group=_host_group())


def all_gather(obj: Any) -> list[Any]:
    """Collect one picklable object per process, on the host.

    Args:
        obj: This process's contribution.

    Returns:
        The objects of all processes, by rank; the same list everywhere.
    """
    world_size = get_world_size()
    if world_size == 1:
        return [obj]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, obj, group=_host_group())
    return gathered


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over the processes.

    Args:
        tensor: A floating tensor of the same shape everywhere; it is not changed.

    Returns:
        A new tensor, detached and equal on all processes (with one process, the detached input).
    """
    tensor = tensor.detach()
    world_size = get_world_size()
    if world_size == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world_size


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Copy the values of the first process to all processes.

    Args:
        tensors: On the device of the run, of the same shapes on all processes; filled in place.
    """
    if get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def of_first(number: float) -> float:
    """The number of the first process, on all processes."""
    if get_world_size() == 1:
        return number
    given = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(given, src=0, group=_host_group())
    return float(given)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on at least one process; the same on all processes."""
    return smallest(0 if flag else None) is not None


def smallest(number: int | None) -> int | None:
    """The smallest number of all processes, None if all are None; the same on all processes."""
    if get_world_size() == 1:
        return number
    none = torch.iinfo(torch.int64).max
    votes = torch.tensor([none if number is None else number])
    dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=_host_group())
    found = int(votes.item())
    return None if found == none else found


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _host_group() -> Any:
    """A group whose collectives accept host tensors: the default group if possible."""
    if dist.get_backend() == "gloo":
        return None
    return _gloo_group(dist.group.WORLD)


@functools.cache
def _gloo_group(_world: Any) -> Any:
    return dist.new_group(backend="gloo")
