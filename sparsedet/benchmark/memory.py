"""Peak memory of a pass: of a process of its own on the CPU, of the allocator on a GPU."""

from __future__ import annotations

import gc
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MB = 1e6
_STATUS = Path("/proc/self/status")


def process_peak(prepare: Callable[..., Callable[[], object]], *args: Any) -> dict[str, float]:
    """Run a pass twice in a fresh process and see how large that becomes.

    The process starts with the same environment, so the same allocator settings hold.

    Args:
        prepare: at the top of a module; called with ``args`` there, it returns the pass.
        args: plain values.

    Returns:
        ``peak_mb``: most resident memory of the process; ``before_mb``: that of the process with
        the model loaded, before the passes.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    threads = torch.get_num_threads()
    child = context.Process(target=_run, args=(sender, threads, prepare, args), daemon=True)
    child.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = "it was killed"
    child.join()
    if isinstance(result, str):
        raise RuntimeError(f"The process that measures peak memory failed: {result}.")
    return result


def _run(
    sender: Connection, threads: int, prepare: Callable[..., Callable[[], object]], args: Any
) -> None:
    try:
        torch.set_num_threads(threads)
        call = prepare(*args)
        gc.collect()
        before = _resident("VmRSS")
        call()
        call()
        sender.send({"peak_mb": _resident("VmHWM"), "before_mb": before})
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def _resident(field: str) -> float:
    """Megabytes of this process. On Linux of its own: getrusage counts the parent's before exec."""
    if _STATUS.is_file():
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.M)
        assert found is not None
        return int(found[1]) * 1024 / MB
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MB


def device_peak(
    call: Callable[[], object], owned: Sequence[Tensor], device: torch.device
) -> dict[str, float]:
    """Peak of one pass on an accelerator, as if nothing but its own tensors were there.

    Args:
        call: the pass, after a warm-up.
        owned: weights and other tensors that it needs and that are there already.
        device: the accelerator.
    """
    torch.accelerator.synchronize(device)
    before = torch.accelerator.memory_allocated(device)
    torch.accelerator.reset_peak_memory_stats(device)
    call()
    torch.accelerator.synchronize(device)
    peak = torch.accelerator.max_memory_allocated(device)
    own = sum(tensor.nbytes for tensor in owned)
    return {"peak_mb": (peak - before + own) / MB, "before_mb": own / MB}
