"""Pictures that show during training what the model does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from sparsedet.engine.hooks import Hook
from sparsedet.engine.trainer import Trainer
from sparsedet.events import PictureWriter

__all__ = ["PictureHook"]

logger = logging.getLogger(__name__)

Draw = Callable[[nn.Module], Mapping[str, np.ndarray]]


class PictureHook(Hook):
    """Draws pictures after each evaluation on the main process; must come after `EvalHook`.

    If drawing fails, one warning says so and the run continues without pictures.

    Args:
        draw: Called with the evaluated model; returns pictures, uint8 (h, w, 3), by name, and
            leaves the model in its previous mode.
        writers: Receive the pictures as `pictures/<name>`.
    """

    def __init__(self, draw: Draw, writers: Sequence[PictureWriter]) -> None:
        self._draw, self._writers = draw, list(writers)

    def after_iteration(self, trainer: Trainer) -> None:
        """Draw if this iteration was evaluated."""
        if not self._writers or trainer.hook_state.get("eval", {}).get("iteration") != (
            trainer.iteration
        ):
            return
        try:
            pictures = self._draw(trainer.eval_model)
        except Exception as error:
            self._writers.clear()
            logger.warning(
                "drawing pictures failed (%s: %s); training continues without them",
                type(error).__name__,
                error,
            )
            return
        for name, pixels in pictures.items():
            for writer in self._writers:
                writer.write_picture(trainer.iteration, f"pictures/{name}", pixels)
