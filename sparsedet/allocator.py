"""Settings of the C allocator under which a process keeps the memory that it has had.

glibc gives large blocks back to the system and gets them again, page by page, in every layer. It
reads its settings when a process starts, so a command that is to have others starts itself anew.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys

__all__ = ["ALLOCATORS", "TUNED", "add_allocator", "use_allocator"]

ALLOCATORS = ("default", "tuned")
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
"""Variables of glibc (mallopt(3)): large blocks come from the heap, which does not shrink."""
_BY_HAND = " ".join(f"{name}={value}" for name, value in TUNED.items())


def add_allocator(parser: argparse.ArgumentParser) -> None:
    """Add the option whose value :func:`use_allocator` takes."""
    parser.add_argument(
        "--allocator",
        choices=ALLOCATORS,
        default="default",
        help="tuned: keep memory instead of giving it back to the system; faster on CPUs, and the "
        "process holds its peak to its end (glibc)",
    )


def use_allocator(name: str) -> None:
    """Go on with these settings; returns if the process has them.

    Otherwise the program begins again in the same process, with the same command line and two more
    variables of the environment, which processes that it starts inherit.

    Args:
        name: of :data:`ALLOCATORS`. "default" leaves everything as it is.

    Raises:
        ValueError: the allocator of this process is not that of glibc, or the command was not given
            on a command line.
    """
    has = all(os.environ.get(key) == value for key, value in TUNED.items())
    if name == "default" or has:
        return
    _require_glibc()
    if not any(word.endswith("tuned") for word in sys.argv[1:]) or not sys.executable:
        raise ValueError(
            "--allocator tuned starts the command anew, which a program that calls it from Python "
            f"would not survive. Start that program with {_BY_HAND}."
        )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, **TUNED})


def _require_glibc() -> None:
    library = platform.libc_ver()[0]
    if library != "glibc":
        raise ValueError(
            "--allocator tuned sets two variables of glibc, and this system has "
            f"{library or 'another C library'}. Leave it out."
        )
    if os.environ.get("LD_PRELOAD"):
        named = os.environ["LD_PRELOAD"]
        if any(other in named for other in ("jemalloc", "tcmalloc", "mimalloc")):
            raise ValueError(
                f"--allocator tuned is of glibc's allocator, which LD_PRELOAD={named} replaces. "
                "Leave one of them out."
            )
