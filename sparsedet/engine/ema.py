"""Running averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["ModelEma"]


class ModelEma:
    """An exponential moving average of a model's weights.

    The decay rises with the number of updates n, min(decay, (1 + n) / (10 + n)), so that the random
    initial weights have little influence in short runs. Buffers are copied.

    Args:
        model: The model to average; copied once.
        decay: Weight of the old average in each update, once it has risen.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9997) -> None:
        if not 0 < decay < 1:
            raise ValueError(
                f"ModelEma.decay must be in (0, 1), got {decay}. Set train.model_ema.decay."
            )
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.num_updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's current weights."""
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        own: list[torch.Tensor] = list(self.module.parameters())
        new: list[torch.Tensor] = list(model.parameters())
        torch._foreach_lerp_(own, new, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        buffers, sources = list(self.module.buffers()), list(model.buffers())
        if buffers:
            torch._foreach_copy_(buffers, sources)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates."""
        return {"model": self.module.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved average."""
        self.module.load_state_dict(state["model"])
        self.num_updates = state["num_updates"]
