"""Processes: one, several on this machine, or those that torchrun started."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sparsedet import comm

__all__ = ["check_processes", "is_launched", "launch", "resolve_device"]

_TIMEOUT = timedelta(minutes=30)


def is_launched() -> bool:
    """Whether torchrun (or alike) started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def resolve_device(name: str) -> str:
    """The device type to run on.

    Args:
        name: A device type, or "auto": the accelerator if there is one, else the CPU.

    Raises:
        ValueError: If there is no such device here.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    available = ["cpu"] + ([accelerator.type] if accelerator is not None else [])
    if name == "auto":
        return available[-1]
    if name not in available:
        raise ValueError(
            f"train.device must be one of auto, {', '.join(available)} here, got {name!r}."
        )
    return name


def check_processes(num_processes: int, device_type: str) -> None:
    """Check that so many processes can be started.

    Args:
        num_processes: Processes to start on this machine.
        device_type: As from `resolve_device`.

    Raises:
        ValueError: If there are fewer devices than processes, or torchrun started them already.
    """
    if num_processes < 1:
        raise ValueError(f"--num-gpus must be at least 1, got {num_processes}.")
    if is_launched() and num_processes > 1:
        raise ValueError(
            f"--num-gpus must be left out under torchrun, got {num_processes}. Set torchrun's "
            "--nproc-per-node."
        )
    count = torch.accelerator.device_count() if device_type != "cpu" else num_processes
    if count < num_processes:
        raise ValueError(
            f"--num-gpus must be at most {count}, the number of devices here, got {num_processes}."
        )


def launch(
    main: Callable[..., int], args: tuple[Any, ...], *, num_processes: int, device_type: str
) -> int:
    """Call `main(device, *args)` in as many processes as asked for.

    Under torchrun its processes are used, and `num_processes` must be 1.

    Args:
        main: A function at the top of a module; returns an exit code.
        args: Its picklable arguments after the device.
        num_processes: Processes to start on this machine.
        device_type: As from `resolve_device`.

    Returns:
        The exit code: that of the first process that failed, or 0.

    Raises:
        ValueError: As `check_processes`.
    """
    check_processes(num_processes, device_type)
    if is_launched():
        return _run_launched(main, args, device_type)
    if num_processes == 1:
        return main(_device(device_type, 0), *args)
    return _spawn(main, args, num_processes, device_type)


def _spawn(
    main: Callable[..., int], args: tuple[Any, ...], num_processes: int, device_type: str
) -> int:
    context = mp.start_processes(  # pyright: ignore[reportPrivateImportUsage]
        _child,
        args=(main, args, num_processes, _free_port(), device_type),
        nprocs=num_processes,
        join=False,
        start_method="spawn",
    )
    assert context is not None  # join=False
    try:
        with _forwarded_signals(context.pids()):
            while not context.join():
                pass
    except mp.ProcessExitedException as error:  # pyright: ignore[reportPrivateImportUsage]
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    return 0


@contextmanager
def _forwarded_signals(pids: Sequence[int]) -> Iterator[None]:
    """SIGINT and SIGTERM ask the processes to stop; this one waits for them."""

    def forward(number: int, frame: Any) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    previous = {
        number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _child(
    index: int,
    main: Callable[..., int],
    args: tuple[Any, ...],
    num_processes: int,
    port: int,
    device_type: str,
) -> None:
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    code = _run_launched(main, args, device_type)
    if code:
        raise SystemExit(code)


def _run_launched(main: Callable[..., int], args: tuple[Any, ...], device_type: str) -> int:
    device = _device(device_type, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        dist.get_default_backend_for_device(device),
        timeout=_TIMEOUT,
        device_id=device if device.type != "cpu" else None,
    )
    code = main(device, *args)
    if code == 0 or code > 128:  # done or stopped; one that failed does not wait for the others
        comm.synchronize()
        dist.destroy_process_group()
    return code


def _device(device_type: str, index: int) -> torch.device:
    if device_type == "cpu":
        return torch.device("cpu")
    torch.accelerator.set_device_index(index)
    return torch.device(device_type, index)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
