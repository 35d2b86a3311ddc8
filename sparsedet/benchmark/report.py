"""Figures as JSON, and as tables for the terminal and for a page."""

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
from sparsedet.analysis import machine_facts
from sparsedet.files import write_json
from sparsedet.tables import format_table

Row = dict[str, Any]
Table = list[list[str]]
CASE_HEAD = ("size", "batch", "ms per image (p10..p90)")
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


def environment(device: str) -> Row:
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
    """The settings of the C allocator, and another allocator that is preloaded."""
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


def read_json(path: Path) -> Row:
    """What a mode has written."""
    return json.loads(path.read_text(encoding="utf-8"))


class Record:
    """The JSON file of a mode, which is written again after every group of cases.

    Args:
        path: of the JSON; None = nothing is written.
        head: what the figures depend on: ``mode``, ``command`` and ``environment``.
    """

    def __init__(self, path: Path | None, head: Row) -> None:
        self.path, self.head = path, head

    def save(self, figures: Row) -> Row:
        """Write all that has been measured so far; return it with what it depends on."""
        result = {**self.head, **figures}
        if self.path:
            write_json(self.path, result)
        return result


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


def peak_cell(row: Row) -> str:
    """Peak memory of a row in MB, where it was measured."""
    return number((row.get("memory") or {}).get("peak_mb"), 0)


def reason(error: Exception) -> str:
    """The first line of an exception, with its kind."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def milliseconds(value: float | None) -> str:
    """With about three significant digits; nothing for None."""
    if value is None:
        return ""
    return number(value, 3 if value < 1 else 2 if value < 100 else 1 if value < 1000 else 0)


def spread(timing: Row, share: int = 1) -> str:
    """Median (p10..p90) of the fields of a ``Timing``, divided by a number of images."""
    median, low, high = (milliseconds(timing[key] / share) for key in ("median", "p10", "p90"))
    return f"{median} ({low}..{high})"


def case_cells(row: Row) -> list[str]:
    """Name, size, batch and milliseconds of a row that is a case, or that it failed."""
    time = "failed" if "error" in row else spread(row["ms"], row["batch"])
    return [row["name"], size_text(row["image_size"]), str(row["batch"]), time]


def size_text(size: Sequence[int]) -> str:
    """HxW."""
    return "x".join(map(str, size))
