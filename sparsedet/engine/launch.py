"""Start a run in one process, in several on this machine, or in those that torchrun started."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.rendezvous import rendezvous

from sparsedet import comm
from sparsedet.engine.faults import REFUSED
from sparsedet.engine.peers import Place, among_peers, conclude, fresh_store
from sparsedet.engine.signals import STOP_SIGNALS

__all__ = [
    "check_processes",
    "has_several_machines",
    "is_launched",
    "launch",
    "resolve_device",
    "together",
]

logger = logging.getLogger(__name__)

# how long a process waits in a collective before it gives up
_TIMEOUT = timedelta(minutes=30)
_JOIN_SECONDS = 300.0
# seconds that the other processes have to end by themselves after the first one failed
_GRACE = 90.0
_START_METHOD = "spawn"
_place: Place | None = None


def is_launched() -> bool:
    """Whether torchrun or a similar launcher started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def has_several_machines() -> bool:
    """Whether the processes of the run were started on more than one machine."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun sets it, srun and mpirun do not
    return is_launched() and here != os.environ["WORLD_SIZE"]


def resolve_device(name: str) -> str:
    """The device type to run on.

    Args:
        name: A device type, or "auto": the accelerator if there is one, else the CPU.

    Raises:
        ValueError: If this machine has no such device.
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
    """Check that `num_processes` processes can be started.

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


def together(body: Callable[[], int], say: Callable[[str], None]) -> int:
    """Call `body`; under torchrun, a fault in one process ends all of them.

    The processes connect before anything is read. So if one of them fails, for example because a
    file is missing on its machine, all of them report it.

    Args:
        body: Returns an exit code; may call `launch`.
        say: Prints a sentence for the user.

    Returns:
        The exit code.
    """
    global _place
    if not is_launched() or _place is not None:
        return body()
    try:
        _place = _meet()
    except (ValueError, dist.DistError) as error:
        local_rank = os.environ.get("LOCAL_RANK", "0")
        if local_rank == "0" or not local_rank.isdigit():  # one process per machine prints
            say(str(error))
        return REFUSED
    try:
        return among_peers(_place, body, say)
    finally:
        _place = None


def launch(
    main: Callable[..., int],
    args: tuple[Any, ...],
    *,
    num_processes: int,
    device_type: str,
    say: Callable[[str], None] = logger.error,
) -> int:
    """Call `main(device, *args)` in `num_processes` processes.

    Under torchrun its processes are used, and `num_processes` must be 1.

    Args:
        main: A module-level function that returns an exit code.
        args: Its picklable arguments after the device.
        num_processes: Processes to start on this machine.
        device_type: As from `resolve_device`.
        say: Prints a sentence for the user; a module-level function.

    Returns:
        The exit code: 0, 128 + n after signal n, or the code of the first fault.

    Raises:
        ValueError: As `check_processes`.
    """
    check_processes(num_processes, device_type)
    if is_launched():
        return together(lambda: _run_placed(main, args, device_type, say), say)
    if num_processes == 1:
        return main(_device(device_type, 0), *args)
    return _spawn(main, args, num_processes, device_type, say)


# --- several processes on this machine ----------------------------------------------------------


def _spawn(
    main: Callable[..., int],
    args: tuple[Any, ...],
    num_processes: int,
    device_type: str,
    say: Callable[[str], None],
) -> int:
    # this process holds the store, since it outlives the others; the system chooses a free port
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    context = mp.start_processes(  # pyright: ignore[reportPrivateImportUsage]
        _child,
        args=(main, args, num_processes, store.port, device_type, say),
        nprocs=num_processes,
        join=False,
        start_method=_START_METHOD,
    )
    assert context is not None  # join=False
    with _forwarded_signals(context.processes) as received:
        ended = _wait(context.processes)
    for index, code in ended.items():
        if code < 0 and not received:
            say(f"process {index} was killed by {signal.Signals(-code).name}.")
    if received.count(signal.SIGINT) > 1:
        say(
            "interrupted by a second Ctrl-C. Add --resume to continue from the last checkpoint, if "
            "one was written."
        )
    first = next((code for code in ended.values() if code), 0)
    if received and (first < 0 or first > 128):
        return 128 + received[0]
    return first if first >= 0 else 128 - first


def _wait(processes: Sequence[Any]) -> dict[int, int]:
    """Exit codes by index, in the order of ending; processes that had to be killed are left out."""
    ended: dict[int, int] = {}
    latest: float | None = None
    while len(ended) < len(processes):
        alive = {p.sentinel: i for i, p in enumerate(processes) if i not in ended}
        seconds = None if latest is None else latest - time.monotonic()
        if seconds is not None and seconds <= 0:
            for index in alive.values():
                processes[index].kill()
            return ended
        for sentinel in wait(list(alive), timeout=seconds):
            index = alive[sentinel]  # pyright: ignore[reportArgumentType]
            processes[index].join()
            ended[index] = processes[index].exitcode
        if latest is None and any(ended.values()):
            latest = time.monotonic() + _GRACE
    return ended


@contextmanager
def _forwarded_signals(processes: Sequence[Any]) -> Iterator[list[int]]:
    """Forward stop signals to the processes and list them; a second SIGINT kills all immediately.

    A terminal sends SIGINT to all processes itself. A forwarded SIGINT would be their second one,
    which ends them immediately, so SIGTERM is sent instead.
    """
    received: list[int] = []

    def forward(number: int, frame: Any) -> None:
        again = number == signal.SIGINT and number in received
        received.append(number)
        for process in processes:
            with suppress(ProcessLookupError):
                if again:
                    process.kill()
                else:
                    os.kill(process.pid, signal.SIGTERM if number == signal.SIGINT else number)

    previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield received
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
    say: Callable[[str], None],
) -> None:
    global _place
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", port, is_master=False
    )
    _place = Place(index, index, num_processes, store, ("127.0.0.1", port), _JOIN_SECONDS)
    code = among_peers(_place, lambda: _run_placed(main, args, device_type, say), say)
    if code:
        raise SystemExit(code)


# --- one of several -----------------------------------------------------------------------------


def _meet() -> Place:
    """Connect to the store that torchrun's variables name.

    Raises:
        ValueError: The variables are invalid, or the other processes cannot be reached.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    wrong = [name for name in names if not os.environ.get(name, "").isdigit()]
    if wrong or not os.environ.get("MASTER_ADDR"):
        what = ", ".join(f"{name}={os.environ.get(name)}" for name in wrong or ["MASTER_ADDR"])
        raise ValueError(
            f"RANK and WORLD_SIZE are set, so {', '.join(names)} must be numbers and MASTER_ADDR a "
            f"host name, got {what}. Start with torchrun, or unset RANK."
        )
    rank, world_size, local_rank, port = (int(os.environ[name]) for name in names)
    if rank >= world_size:
        raise ValueError(f"RANK must be below WORLD_SIZE={world_size}, got {rank}.")
    seconds = float(os.environ.get("SPARSEDET_JOIN_SECONDS", _JOIN_SECONDS))
    master = (os.environ["MASTER_ADDR"], port)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
    except (dist.DistError, RuntimeError) as error:
        raise ValueError(_why_alone(error, rank, world_size, master, seconds)) from error
    return Place(rank, local_rank, world_size, store, master, seconds)


def _why_alone(
    error: Exception, rank: int, world_size: int, master: tuple[str, int], seconds: float
) -> str:
    where = f"MASTER_ADDR={master[0]}, MASTER_PORT={master[1]}"
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        return (
            f"the port is in use: {where}. Another job on this machine uses it: give torchrun "
            "another --master-port, or --standalone for a single machine."
        )
    if rank == 0:
        return (
            f"not all of the {world_size} processes connected to {where} within {seconds:g} "
            "seconds. Check the output of their machines; SPARSEDET_JOIN_SECONDS sets the timeout."
        )
    return (
        f"process {rank} of {world_size} cannot reach process 0 at {where} within {seconds:g} "
        "seconds. Check that this is the name of the first machine, that both machines can connect "
        "on all ports, and that process 0 runs. SPARSEDET_JOIN_SECONDS sets the timeout."
    )


def _run_placed(
    main: Callable[..., int],
    args: tuple[Any, ...],
    device_type: str,
    say: Callable[[str], None],
) -> int:
    assert _place is not None
    try:
        device = _device(device_type, _place.local_rank)
    except ValueError as error:
        return conclude(error, say, otherwise=REFUSED)
    dist.init_process_group(
        dist.get_default_backend_for_device(device),
        store=fresh_store(_place.store),
        rank=_place.rank,
        world_size=_place.world_size,
        timeout=_TIMEOUT,
        device_id=device if device.type != "cpu" else None,
    )
    code = main(device, *args)
    if code == 0 or code > 128:  # done or stopped; a failed process does not wait for the others
        comm.synchronize()
        dist.destroy_process_group()
    return code


def _device(device_type: str, index: int) -> torch.device:
    if device_type == "cpu":
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    if index >= count:
        raise ValueError(
            f"LOCAL_RANK must be below {count}, the number of devices here, got {index}. Set "
            "torchrun's --nproc-per-node to the number of devices of each machine."
        )
    torch.accelerator.set_device_index(index)
    return torch.device(device_type, index)
