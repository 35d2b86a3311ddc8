"""The checkpoints of a run."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsedet.checkpoint.files import CheckpointError, load_checkpoint, save_checkpoint
from sparsedet.files import atomic_write

__all__ = ["CheckpointStore"]

logger = logging.getLogger(__name__)

_PERIODIC = re.compile(r"checkpoint_(\d+)\.pth")


class CheckpointStore:
    """The checkpoints of one run, in its output directory.

    `checkpoint_<iteration>.pth` hold everything; `last_checkpoint` names the newest;
    `model_<name>.pth` hold weights.

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
        """Write a full checkpoint, point to it, and delete the oldest beyond `max_to_keep`."""
        path = self.directory / f"checkpoint_{iteration:07d}.pth"
        save_checkpoint(checkpoint, path)
        with atomic_write(self.directory / "last_checkpoint") as file:
            file.write(path.name.encode() + b"\n")
        for old in self.paths()[: -self._max_to_keep]:
            old.unlink()
        return path

    def save_weights(self, checkpoint: Mapping[str, Any], name: str) -> Path:
        """Write `model_<name>.pth`."""
        path = self.directory / f"model_{name}.pth"
        save_checkpoint(checkpoint, path)
        return path

    def paths(self) -> list[Path]:
        """The full checkpoints there are, oldest first."""
        found = [path for path in self.directory.glob("checkpoint_*.pth") if _iteration(path) >= 0]
        return sorted(found, key=_iteration)

    def load_last(self) -> tuple[dict[str, Any], Path] | None:
        """The newest full checkpoint that can be read, and its path; None when there is none.

        Raises:
            CheckpointError: If there are some, but none can be read.
        """
        failure: CheckpointError | None = None
        for path in self._newest_first():
            try:
                return load_checkpoint(path), path
            except CheckpointError as error:
                logger.warning("%s Trying the one before it.", error)
                failure = error
        if failure is not None:
            raise failure
        return None

    def clean(self) -> None:
        """Delete what a killed process left half written."""
        for path in self.directory.glob(".*.pth.*.tmp"):
            path.unlink()

    def _newest_first(self) -> list[Path]:
        paths = self.paths()[::-1]
        pointer = self.directory / "last_checkpoint"
        if pointer.is_file():
            named = self.directory / pointer.read_text().strip()
            paths.sort(key=lambda path: path != named)
        return paths


def _iteration(path: Path) -> int:
    match = _PERIODIC.fullmatch(path.name)
    return int(match[1]) if match else -1
