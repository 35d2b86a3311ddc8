"""Writers of rows of scalars on this machine: a JSON file and the console."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from sparsedet.files import atomic_write

__all__ = ["ConsoleWriter", "JsonWriter", "Writer"]

logger = logging.getLogger(__name__)


class Writer(Protocol):
    """Receives rows of scalars during training."""

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of one iteration."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


class JsonWriter:
    """Writes each row as a JSON object on one line; values that are not finite become null.

    Args:
        path: The file; rows are appended.
        start_iteration: Existing lines of later iterations (from a run that stopped after its last
            checkpoint) and truncated lines are dropped; 0 drops all lines.
        evaluated: Whether the results at `start_iteration` were saved; if not, the evaluation is
            repeated, and its old line is dropped.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, start_iteration: int = 0, evaluated: bool = True
    ) -> None:
        self._path = Path(path)
        kept = _lines_until(self._path, start_iteration, evaluated)
        with atomic_write(self._path) as file:
            file.write("".join(line + "\n" for line in kept).encode())
        self._file: IO[str] = self._path.open("a", encoding="utf-8")

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Append one line and flush it, so that other programs can follow the file.

        Raises:
            OSError: The file, which the error names, cannot be written.
        """
        row: dict[str, Any] = {"iteration": iteration}
        row |= {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            error.filename = str(self._path)
            raise

    def close(self) -> None:
        """Close the file; data that could not be written is dropped."""
        with suppress(OSError):
            self._file.close()


def _lines_until(path: Path, iteration: int, evaluated: bool) -> list[str]:
    if iteration == 0 or not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict) or row.get("iteration", 0) > iteration:
            continue
        repeated = not evaluated and row.get("iteration") == iteration
        if not (repeated and any(name.startswith("eval/") for name in row)):
            kept.append(line)
    return kept


class ConsoleWriter:
    """Shows progress on the console: a bar on a terminal, otherwise a log line per row.

    Args:
        max_iter: Iterations of the whole run, for the time left.
        start_iteration: The iteration at which this process starts.
        show_bar: Whether to draw a bar (`tqdm`) rather than log lines.
    """

    def __init__(self, max_iter: int, *, start_iteration: int = 0, show_bar: bool = False) -> None:
        self._max_iter = max_iter
        self._bar: Any = None
        if show_bar:
            from tqdm import tqdm

            # read here, since tqdm shows nothing on terminals that report a size of 0
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
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def _losses(scalars: Mapping[str, float]) -> list[str]:
    """The loss, and its terms, each summed over the stages."""
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
