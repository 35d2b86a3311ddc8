"""The checkpoints of a run."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparsedet.checkpoint.files import CheckpointError, load_checkpoint, save_checkpoint
from sparsedet.checkpoint.values import has_nan
from sparsedet.files import atomic_write, remove_leftovers

__all__ = ["CheckpointStore"]

logger = logging.getLogger(__name__)

_PERIODIC = re.compile(r"checkpoint_(\d+)\.pth")


class CheckpointStore:
    """The checkpoints of one run, in its output directory.

    `checkpoint_<iteration>.pth` files have the complete state; `last_checkpoint` names the newest;
    `model_<name>.pth` files have only weights.

    Args:
        directory: Created on the first write.
        max_to_keep: Number of full checkpoints kept; older ones of this run are deleted.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_to_keep: int = 2) -> None:
        if max_to_keep < 1:
            raise ValueError(
                f"CheckpointStore.max_to_keep must be at least 1, got {max_to_keep}. "
                "Set train.checkpointer.max_to_keep."
            )
        self.directory = Path(directory)
        self._max_to_keep = max_to_keep

    def save(self, checkpoint: Mapping[str, Any], iteration: int) -> Path:
        """Write a full checkpoint, update `last_checkpoint`, and delete surplus checkpoints.

        Checkpoints of later iterations are deleted first: the run was not resumed from them
        (because they cannot be read, or it was resumed from an earlier one). Then the oldest.
        """
        path = self.directory / f"checkpoint_{iteration:07d}.pth"
        save_checkpoint(checkpoint, path)
        with atomic_write(self._pointer) as file:
            file.write(path.name.encode() + b"\n")
        others = sorted(self.paths(), key=lambda each: _iteration(each) <= iteration)
        for old in others[: -self._max_to_keep]:
            with suppress(OSError):  # already deleted; this must not end the run
                old.unlink()
        return path

    def save_weights(self, checkpoint: Mapping[str, Any], name: str) -> Path:
        """Write `model_<name>.pth`."""
        path = self.directory / f"model_{name}.pth"
        save_checkpoint(checkpoint, path)
        return path

    def paths(self) -> list[Path]:
        """The existing full checkpoints, oldest first."""
        found = [path for path in self.directory.glob("checkpoint_*.pth") if _iteration(path) >= 0]
        return sorted(found, key=_iteration)

    def load_last(self) -> tuple[dict[str, Any], Path] | None:
        """The newest full checkpoint that can be read, and its path; None if there is none.

        The checkpoint that `last_checkpoint` names takes precedence over later iterations, unless
        those were written after it. A warning names every checkpoint that is skipped.

        Raises:
            CheckpointError: If there are checkpoints, but none can be read.
        """
        failures: list[CheckpointError] = []
        for path in self._newest_first():
            try:
                checkpoint = load_checkpoint(path)
                _require_numbers(checkpoint, path)
            except CheckpointError as error:
                failures.append(error)
                continue
            for failure in failures:
                logger.warning("%s Using an earlier checkpoint instead: %s.", failure, path)
            return checkpoint, path
        if failures:
            others = f" None of the {len(failures)} checkpoints of the run can be used."
            raise CheckpointError(f"{failures[0]}{others if len(failures) > 1 else ''}")
        return None

    def clean(self) -> None:
        """Delete incomplete files of killed processes."""
        remove_leftovers(self.directory)

    @property
    def _pointer(self) -> Path:
        return self.directory / "last_checkpoint"

    def _newest_first(self) -> list[Path]:
        paths = self.paths()[::-1]
        if not os.path.lexists(self._pointer):
            return paths
        named = self._named()
        if named not in paths:
            there = f"Using the newest one: {paths[0]}." if paths else "There is no other."
            logger.warning("%s names a checkpoint that does not exist. %s", self._pointer, there)
        elif _written(self._pointer) >= _written(paths[0]):
            paths.sort(key=lambda path: path != named)
        return paths

    def _named(self) -> Path | None:
        """The checkpoint that the pointer names; None if the pointer cannot be read."""
        try:
            return self.directory / self._pointer.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None


def _require_numbers(checkpoint: Mapping[str, Any], path: Path) -> None:
    if has_nan(checkpoint["model"]):
        raise CheckpointError(f"checkpoint {path} has weights that are NaN: the run diverged.")


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _iteration(path: Path) -> int:
    match = _PERIODIC.fullmatch(path.name)
    return int(match[1]) if match else -1
