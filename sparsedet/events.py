"""Scalars from anywhere, to whoever listens.

`log_scalar` may be called from any module; it does nothing unless a `Recorder` is active. The
trainer keeps one, asks it for the averages at every logging period and hands them to its writers.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import torch

__all__ = [
    "ConsoleWriter",
    "JsonWriter",
    "Recorder",
    "TensorBoardWriter",
    "Writer",
    "log_scalar",
]

logger = logging.getLogger(__name__)

_recorders: list[Recorder] = []


def log_scalar(name: str, value: float | torch.Tensor) -> None:
    """Hand a scalar to the active recorders; nothing happens when there is none.

    A tensor is kept as it is (detached), so a call never waits for the device. Inside compiled
    code the call is dropped.

    Args:
        name: What the value is, as `"group/name"`.
        value: A number or a tensor of one element.
    """
    if not _recorders or torch.compiler.is_compiling():
        return
    for recorder in _recorders:
        recorder.record(name, value)


class Recorder:
    """Scalars since the last flush, averaged by name.

    Use it as a context manager to listen to `log_scalar`.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float | torch.Tensor]] = {}

    def __enter__(self) -> Recorder:
        _recorders.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _recorders.remove(self)

    def record(self, name: str, value: float | torch.Tensor) -> None:
        """Keep one value; a tensor is detached and stays on its device."""
        if isinstance(value, torch.Tensor):
            value = value.detach()
        self._values.setdefault(name, []).append(value)

    def flush(self) -> dict[str, float]:
        """Averages by name of what was recorded since the last flush (one wait for the device)."""
        values, self._values = self._values, {}
        tensors = [v for series in values.values() for v in series if isinstance(v, torch.Tensor)]
        numbers = iter(_to_floats(tensors))
        averages = {}
        for name, series in values.items():
            floats = [next(numbers) if isinstance(v, torch.Tensor) else float(v) for v in series]
            averages[name] = sum(floats) / len(floats)
        return averages


def _to_floats(tensors: list[torch.Tensor]) -> list[float]:
    if not tensors:
        return []
    return torch.stack([t.reshape(()).to(torch.float32) for t in tensors]).tolist()


class Writer(Protocol):
    """Something that takes a row of scalars now and then."""

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Take the scalars of one point in training."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class JsonWriter:
    """One JSON object per line and log; values that are not finite become null.

    Args:
        path: The file, appended to.
        start_iteration: Lines of later iterations (written by a run that ended after its last
            checkpoint), lines that were cut off, and everything when this is 0 are dropped.
    """

    def __init__(self, path: str | os.PathLike[str], *, start_iteration: int = 0) -> None:
        self._path = Path(path)
        kept = _lines_until(self._path, start_iteration)
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)
        self._file: IO[str] = self._path.open("a", encoding="utf-8")

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Append one line, at once on disk for whoever follows the file."""
        row: dict[str, Any] = {"iteration": iteration}
        row |= {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines_until(path: Path, iteration: int) -> list[str]:
    if iteration == 0 or not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and row.get("iteration", 0) <= iteration:
            kept.append(line)
    return kept


class TensorBoardWriter:
    """Scalars for TensorBoard; the package `tensorboard` must be installed.

    Args:
        directory: Where the event files go.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Add one point per scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class ConsoleWriter:
    """Progress for a person: a bar on a terminal, a log line per row otherwise.

    Args:
        max_iter: Iterations of the whole run, for the time left.
        start_iteration: Where this process begins.
        show_bar: Whether to draw a bar (`tqdm`) rather than log lines.
    """

    def __init__(self, max_iter: int, *, start_iteration: int = 0, show_bar: bool = False) -> None:
        self._max_iter = max_iter
        self._bar: Any = None
        if show_bar:
            from tqdm import tqdm

            # asked here, since tqdm shows nothing on terminals that tell a size of 0
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm(
                total=max_iter,
                initial=start_iteration,
                unit="it",
                ncols=columns,
                nrows=rows,
                desc="train",
            )

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Show the loss, its terms, the rates and the time left."""
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(_losses(scalars)), refresh=False)
            return
        seconds = scalars.get("seconds_per_iteration")
        left = "" if seconds is None else f"  eta {_clock(seconds * (self._max_iter - iteration))}"
        shown = "  ".join(_losses(scalars) + _rates(scalars))
        logger.info("iteration %d/%d%s  %s", iteration, self._max_iter, left, shown)

    def advance(self, iteration: int) -> None:
        """Move the bar, if there is one, after an iteration."""
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._bar is not None:
            self._bar.close()


def _losses(scalars: Mapping[str, float]) -> list[str]:
    """The loss, and its terms summed by kind over the stages."""
    terms: dict[str, float] = {}
    for name, value in scalars.items():
        if name.startswith("loss/"):
            kind = name.rsplit("/", 1)[-1]
            terms[kind] = terms.get(kind, 0.0) + value
    shown = [f"loss {scalars['loss']:.4g}"] if "loss" in scalars else []
    return shown + [f"{kind} {value:.3g}" for kind, value in terms.items()]


def _rates(scalars: Mapping[str, float]) -> list[str]:
    shown = [f"lr {scalars['lr']:.2e}"] if "lr" in scalars else []
    if "seconds_per_iteration" in scalars:
        shown.append(f"{scalars['seconds_per_iteration']:.3f} s/it")
    return shown


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
