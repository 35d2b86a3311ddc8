"""More memory than the machine has: an error where it is asked for, not the end of the process.

Linux grants memory that it does not have, and kills who uses it. So a block can be held to what is
free when it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["free_memory", "within_memory"]

_MEMORY = Path("/proc/meminfo")
_OWN = Path("/proc/self/status")
# of a container: its limit, and what it uses
_GROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


@contextmanager
def within_memory() -> Iterator[None]:
    """A block in which asking for more than the free memory raises an error.

    Where the system does not tell how much is free, nothing changes.
    """
    free, used = free_memory(), _kilobytes(_OWN, "VmData")
    if free is None or used is None:
        yield
        return
    from resource import RLIM_INFINITY, RLIMIT_DATA, getrlimit, setrlimit

    soft, hard = getrlimit(RLIMIT_DATA)
    limits = [each for each in (soft, hard) if each != RLIM_INFINITY]
    setrlimit(RLIMIT_DATA, (min(used + free, *limits) if limits else used + free, hard))
    try:
        yield
    finally:
        setrlimit(RLIMIT_DATA, (soft, hard))


def free_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not tell."""
    free = _kilobytes(_MEMORY, "MemAvailable")
    try:
        limit, used = (int(path.read_text()) for path in _GROUP)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return limit - used if free is None else min(free, limit - used)


def _kilobytes(path: Path, name: str) -> int | None:
    """A line such as `MemAvailable: 12 kB`, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
