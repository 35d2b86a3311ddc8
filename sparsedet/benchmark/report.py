"""Figures as JSON, as tables for the terminal and for a page."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparsedet import __version__
from sparsedet.analysis import Timing, machine_facts
from sparsedet.files import write_json
from sparsedet.tables import format_table

Table = list[list[str]]
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


def environment(device: str) -> dict[str, object]:
    """What figures depend on: the machine, the threads, the allocator, versions."""
    return {
        **machine_facts(torch.device(device)),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "allocator": allocator(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "sparsedet": __version__,
    }


def allocator() -> str:
    """The settings of the C allocator, and another one that was put in its place."""
    settings = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if _tunes(name)]
    preloaded = os.environ.get("LD_PRELOAD", "")
    others = [name for name in _ALLOCATORS if name in preloaded]
    return " ".join([*others, *settings]) or "default"


def _tunes(name: str) -> bool:
    return name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "PYTORCH_CUDA_ALLOC_CONF")


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", path.read_text(), re.M) if path.is_file() else None
    return found[1].strip() if found else platform.processor()


def read_json(path: Path) -> dict[str, Any]:
    """What a suite or a mode has written.

    Raises:
        ValueError: it is something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not the JSON of this tool: {error}") from error


class Record:
    """The file that a mode writes its figures to, as often as there are more of them.

    Args:
        path: of the JSON; None = nothing is written.
        head: what the figures depend on: ``mode``, ``command`` and ``environment``.
    """

    def __init__(self, path: Path | None, head: dict[str, Any]) -> None:
        self.path, self.head = path, head

    def save(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Write all that has been measured so far; return it with what it depends on."""
        result = {**self.head, **figures}
        if self.path:
            write_json(self.path, result)
        return result

    def earlier(self) -> list[dict[str, Any]]:
        """The rows that the file has from a run that was broken off; none if it is not there.

        Raises:
            ValueError: no file is named, or it is of another kind of run or another machine.
        """
        if self.path is None:
            raise ValueError("--resume needs --json, the file of the run that was broken off.")
        if not self.path.is_file():
            return []
        found = read_json(self.path)
        for key in ("mode", "environment"):
            if found.get(key) != json.loads(json.dumps(self.head[key])):
                raise ValueError(
                    f"--resume: {self.path} has {key} {found.get(key)}, and this run has "
                    f"{self.head[key]}. Leave --resume out, or measure where it was measured."
                )
        return found["rows"]


def print_facts(facts: dict[str, object]) -> None:
    """One line of what the figures depend on."""
    print(" ".join(f"{key}={value}" for key, value in facts.items()), flush=True)


def print_table(table: Table) -> None:
    """Columns under their names, numbers to the right; the first column to the left."""
    print(format_table(table), flush=True)


def markdown(table: Table) -> str:
    """The same for a page."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def without_empty(table: Table) -> Table:
    """Leave out columns that have a name and nothing else."""
    kept = [i for i in range(len(table[0])) if i == 0 or any(row[i] for row in table[1:])]
    return [[row[i] for i in kept] for row in table]


def number(value: float | None, digits: int = 2) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def reason(error: Exception) -> str:
    """The first line of an exception, with its kind."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def milliseconds(value: float | None) -> str:
    """With about three digits that mean something; nothing for None."""
    if value is None:
        return ""
    return number(value, 3 if value < 1 else 2 if value < 100 else 1 if value < 1000 else 0)


def spread(timing: dict[str, Any] | Timing | None, share: int = 1) -> str:
    """Median (p10..p90) of a ``Timing``, divided among some images."""
    if timing is None:
        return ""
    facts = vars(timing) if isinstance(timing, Timing) else timing
    median, low, high = (milliseconds(facts[key] / share) for key in ("median", "p10", "p90"))
    return f"{median} ({low}..{high})"


CASE_HEAD = ("size", "batch", "ms per image (p10..p90)")


def case_cells(row: dict[str, Any]) -> list[str]:
    """Name, size, batch and milliseconds of a row that is a case, or why it has none."""
    time = "failed" if "error" in row else spread(row["ms"], row["batch"])
    return [row["name"], size_text(row["image_size"]), str(row["batch"]), time]


def size_text(size: Sequence[int]) -> str:
    """HxW."""
    return "x".join(map(str, size))
