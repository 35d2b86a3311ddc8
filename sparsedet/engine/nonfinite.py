"""Steps whose loss or gradient is not finite: their batches are saved, and the steps skipped."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsedet import comm
from sparsedet.files import atomic_write, write_json

__all__ = ["NonFiniteError", "NonFiniteSteps"]

logger = logging.getLogger(__name__)

_MOST_SAVED = 20  # folders per run
_FOLDER = "nonfinite_"


class NonFiniteError(ArithmeticError):
    """Too many losses or gradients in a row were not finite."""


class NonFiniteSteps:
    """Saves the batches of non-finite steps, and ends the run after too many of them in a row.

    `nonfinite_<iteration>/batch.json` has losses, file names, image ids, boxes and classes;
    `batch.pt` has the samples with their input tensors, for `torch.load`. With several processes,
    each writes its own batch as `batch_rank<n>`. Only the first 20 such steps of a run are saved.

    Args:
        folder: Folder for the batches; None = do not save them.
        max_in_row: Number of steps in a row that may be skipped; 0 ends the run at the first.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, max_in_row: int = 0
    ) -> None:
        if not isinstance(max_in_row, int) or max_in_row < 0:
            raise ValueError(
                f"NonFiniteSteps.max_in_row must be an integer of 0 or more, got {max_in_row}. Set "
                "train.max_nonfinite_steps."
            )
        self._folder = Path(folder) if folder is not None else None
        self._max_in_row = max_in_row
        self._in_row = 0

    def taken(self) -> None:
        """Reset the count of skipped steps in a row after a step that was taken."""
        self._in_row = 0

    def skip(
        self,
        iteration: int,
        losses: Sequence[Mapping[str, torch.Tensor]],
        batches: Sequence[Sequence[Mapping[str, Any]]],
        *,
        grad_norm: float | None = None,
    ) -> None:
        """Record a step that is skipped; every process calls this.

        Args:
            iteration: Iterations done before the step.
            losses: The loss terms of each batch of the step.
            batches: The samples of each batch.
            grad_norm: Norm of the gradient, if it was computed.

        Raises:
            NonFiniteError: More than `max_in_row` steps in a row were not finite.
        """
        self._in_row += 1
        place = self._save(iteration, losses, batches, grad_norm)
        what = f"{_describe(iteration, losses, batches)}{place}"
        if self._in_row > self._max_in_row:
            skipped = self._in_row - 1
            steps = "previous step was" if skipped == 1 else f"{skipped} previous steps were"
            before = f" The {steps} skipped." if skipped else ""
            raise NonFiniteError(
                f"{what}{before} Nothing was saved after the last checkpoint. Check these images "
                "and their boxes, or lower optimizer.lr."
            )
        logger.warning(
            "%s The step is skipped (%d in a row; the run ends after more than "
            "train.max_nonfinite_steps=%d).",
            what,
            self._in_row,
            self._max_in_row,
        )

    def _save(
        self,
        iteration: int,
        losses: Sequence[Mapping[str, torch.Tensor]],
        batches: Sequence[Sequence[Mapping[str, Any]]],
        grad_norm: float | None,
    ) -> str:
        if self._folder is None:
            return ""
        folder = self._folder / f"{_FOLDER}{iteration:07d}"
        if not folder.exists() and len(list(self._folder.glob(f"{_FOLDER}*"))) >= _MOST_SAVED:
            return ""
        several = comm.get_world_size() > 1
        name = f"batch_rank{comm.get_rank()}" if several else "batch"
        samples = [[_plain(sample) for sample in batch] for batch in batches]
        try:
            with atomic_write(folder / f"{name}.pt") as file:
                torch.save(samples, file)
            content = {
                "iteration": iteration,
                "losses": [{k: _number(v) for k, v in terms.items()} for terms in losses],
                "grad_norm": None if grad_norm is None else _number(grad_norm),
                "batches": _readable(samples),
            }
            write_json(folder / f"{name}.json", content)
        except (OSError, RuntimeError) as error:  # this must not end the run
            logger.warning("the batch could not be saved in %s: %s", folder, error)
            return ""
        return f" The batch is in {folder}."


def _describe(
    iteration: int,
    losses: Sequence[Mapping[str, torch.Tensor]],
    batches: Sequence[Sequence[Mapping[str, Any]]],
) -> str:
    values = [(name, float(term)) for terms in losses for name, term in terms.items()]
    bad = [f"{name} = {value}" for name, value in values if not math.isfinite(value)]
    images = ", ".join(str(sample.get("image_id", "?")) for batch in batches for sample in batch)
    if bad:
        return (
            f"the loss is not finite at iteration {iteration}: {', '.join(bad)}; images {images}."
        )
    if not math.isfinite(sum(value for _, value in values)):
        return f"the sum of the losses is not finite at iteration {iteration}; images {images}."
    where = " of this process" if comm.get_world_size() > 1 else ""
    return (
        f"the gradient is not finite at iteration {iteration} although the loss{where} is; images "
        f"{images}."
    )


def _plain(value: Any) -> Any:
    """A sample as dicts and lists of tensors, numbers and strings."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "get_fields"):  # instances of ours and of detectron2
        return _plain(value.get_fields())
    if isinstance(getattr(value, "tensor", None), torch.Tensor):  # boxes
        return value.tensor.detach().cpu()
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _readable(value: Any) -> Any:
    """A plain sample for JSON: images become their shape, other tensors become lists."""
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape)} if value.ndim > 2 else _readable(value.tolist())
    if isinstance(value, dict):
        return {name: _readable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return _number(value) if isinstance(value, float) else value


def _number(value: float | torch.Tensor) -> float | str:
    """A number, or its name if JSON cannot represent it."""
    value = float(value)
    return value if math.isfinite(value) else str(value)
