"""Fully connected blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers with ReLU between them (the box head of DETR, section A.4).

    Args:
        in_dim: input channels.
        out_dim: output channels.
        hidden_dim: channels of the hidden layers.
        num_layers: number of linear layers, at least 1.
    """

    def __init__(self, in_dim: int, out_dim: int, *, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x[... in_dim]`` to ``[... out_dim]``."""
        for layer in self.layers[:-1]:
            x = _relu(layer(x))
        return self.layers[-1](x)


# Hidden numbers that are computed at a time on a CPU: few enough for its caches and for memory that
# the allocator reuses instead of asking the system for new pages.
_HIDDEN_AT_A_TIME = 2**21


Activation = Literal["relu", "prelu"]


class FeedForward(nn.Module):
    """Position-wise feed-forward block of a transformer layer, without residual and norm.

    Inference on a CPU processes the tokens in blocks.

    Args:
        embed_dim: input and output channels.
        feedforward_dim: hidden channels.
        dropout: probability after the activation.
        activation: "relu", or "prelu" with one learned slope (DAB-DETR's released code).

    Raises:
        ValueError: for another ``activation``.
    """

    def __init__(
        self,
        embed_dim: int,
        feedforward_dim: int,
        *,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if activation not in ("relu", "prelu"):
            raise ValueError(
                f"FeedForward.activation must be 'relu' or 'prelu', got {activation!r}. Set "
                "activation of model.encoder or model.decoder."
            )
        self.activation = nn.PReLU() if activation == "prelu" else _relu
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x[... C]`` to ``[... C]``."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._block(x)
        rows = x.reshape(-1, x.shape[-1])
        blocks = rows.split(max(_HIDDEN_AT_A_TIME // self.linear1.out_features, 1))
        if len(blocks) == 1:
            return self._block(x)
        return torch.cat([self._block(block) for block in blocks]).view(x.shape)

    def _block(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


def _relu(x: Tensor) -> Tensor:
    """ReLU; in place only without gradients, since autograd would copy the view that is changed."""
    return F.relu(x, inplace=not torch.is_grad_enabled())
