"""An estimate of how long a run will take, logged after ten iterations."""

from __future__ import annotations

import logging
import sys

import torch

from sparsedet.engine.hooks import Hook
from sparsedet.engine.trainer import Trainer

__all__ = ["PaceHook", "describe_device"]

logger = logging.getLogger(__name__)

_MEASURED = 10  # iterations; the first one is a warm-up and does not count


class PaceHook(Hook):
    """Logs seconds per iteration, memory and the time left once, after ten iterations."""

    def __init__(self) -> None:
        self._first = (0, 0.0)

    def before_train(self, trainer: Trainer) -> None:
        """Remember the iteration at which this process starts."""
        self._first = (trainer.iteration + 1, 0.0)

    def after_iteration(self, trainer: Trainer) -> None:
        """Measure, and log the result after the tenth iteration."""
        start, seconds = self._first
        done = trainer.iteration - start
        if done == 0:
            self._first = (start, trainer.train_seconds)
        if done != _MEASURED - 1:
            return
        pace = (trainer.train_seconds - seconds) / done
        left = trainer.max_iter - trainer.iteration
        logger.info(
            "%.3g s per iteration over the last %d; memory: %s; about %s left for %d of %d "
            "iterations, evaluations not counted",
            pace,
            done,
            _memory(trainer.device),
            _duration(pace * left),
            left,
            trainer.max_iter,
        )


def describe_device(device: torch.device) -> str:
    """The device in words; for the CPU with its number of threads."""
    if device.type == "cpu":
        return f"device cpu with {torch.get_num_threads()} threads"
    return f"device {device}"


def _memory(device: torch.device) -> str:
    """Peak memory of this process, and of its device."""
    texts = []
    if sys.platform != "win32":
        from resource import RUSAGE_SELF, getrusage

        unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        texts.append(f"{getrusage(RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of this process")
    if device.type != "cpu":
        held = torch.accelerator.max_memory_allocated(device)
        texts.append(f"{held / 1e9:.1f} GB on {device.type}")
    return ", ".join(texts) or "unknown"


def _duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
