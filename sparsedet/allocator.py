"""Settings of the C allocator with which a process reuses its memory instead of releasing it.

By default, glibc returns large blocks to the system and requests them again, page by page, in every
layer. It reads its settings when a process starts, so a command must restart to change them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys

__all__ = ["ALLOCATORS", "TUNED", "add_allocator", "use_allocator"]

ALLOCATORS = ("default", "tuned")
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
"""Environment variables of glibc (mallopt(3)): large blocks use the heap, which never shrinks."""
_BY_HAND = " ".join(f"{name}={value}" for name, value in TUNED.items())


def add_allocator(parser: argparse.ArgumentParser) -> None:
    """Add `--allocator`, the argument of :func:`use_allocator`."""
    parser.add_argument(
        "--allocator",
        choices=ALLOCATORS,
        default="default",
        help="tuned: reuse memory instead of returning it to the system; faster on CPUs, but the "
        "process keeps its peak memory until it ends (glibc only)",
    )


def use_allocator(name: str) -> None:
    """Return if the process already has these settings; otherwise restart the program with them.

    The program restarts in the same process, with the same command line and two more environment
    variables, which child processes inherit.

    Args:
        name: one of :data:`ALLOCATORS`; "default" changes nothing.

    Raises:
        ValueError: this process does not use glibc's allocator, or `--allocator` was not given on
            a command line.
    """
    has = all(os.environ.get(key) == value for key, value in TUNED.items())
    if name == "default" or has:
        return
    _require_glibc()
    if not any(word.endswith("tuned") for word in sys.argv[1:]) or not sys.executable:
        raise ValueError(
            "--allocator tuned restarts the process, so it works only on a command line. Start "
            f"your Python program with {_BY_HAND} instead."
        )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, **TUNED})


def _require_glibc() -> None:
    library = platform.libc_ver()[0]
    if library != "glibc":
        raise ValueError(
            "--allocator tuned needs glibc, but this system has "
            f"{library or 'another C library'}. Leave it out."
        )
    if os.environ.get("LD_PRELOAD"):
        named = os.environ["LD_PRELOAD"]
        if any(other in named for other in ("jemalloc", "tcmalloc", "mimalloc")):
            raise ValueError(
                f"--allocator tuned needs glibc's allocator, which LD_PRELOAD={named} replaces. "
                "Leave one of them out."
            )
