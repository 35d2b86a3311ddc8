"""Raise an error when code asks for more memory than is free, instead of being killed later.

Linux grants memory that it does not have and kills the process that uses it. So a block of code can
be limited to the memory that is free when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["free_memory", "within_memory"]

_MEMORY = Path("/proc/meminfo")
_OWN = Path("/proc/self/status")
# limit and usage of a container
_GROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


@contextmanager
def within_memory() -> Iterator[None]:
    """Limit a block to the free memory: allocating more raises an error.

    If the system does not report the free memory, there is no limit.
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
    """Bytes that this process may still allocate; None if the system does not report it."""
    free = _kilobytes(_MEMORY, "MemAvailable")
    try:
        limit, used = (int(path.read_text()) for path in _GROUP)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return limit - used if free is None else min(free, limit - used)


def _kilobytes(path: Path, name: str) -> int | None:
    """The value of a line such as `MemAvailable: 12 kB`, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
