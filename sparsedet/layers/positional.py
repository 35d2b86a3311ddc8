"""Sine position embeddings of map cells and of boxes, and the logit of a clamped probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def sine_embedding(
    coordinates: Tensor, num_features: int, *, temperature: float = 10000.0
) -> Tensor:
    """Interleaved sine and cosine of every coordinate ("Attention is all you need", section 3.5).

    Args:
        coordinates: ``[..., K]`` numbers in [0, 1]; they are multiplied by 2 pi.
        num_features: features per coordinate, an even number.
        temperature: base of the geometric series of wavelengths.

    Returns:
        ``[..., K * num_features]``, coordinates in the given order.
    """
    steps = torch.arange(num_features, device=coordinates.device, dtype=torch.float32)
    wavelengths = temperature ** (2 * torch.div(steps, 2, rounding_mode="floor") / num_features)
    angles = coordinates.float()[..., None] * (2 * math.pi) / wavelengths
    waves = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1)
    return waves.flatten(-3)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` after clamping ``x`` and ``1 - x`` to at least ``eps`` each.

    This is the clamp of the released Deformable DETR code: the two sides are clamped separately.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class SinePositionEmbedding(nn.Module):
    """Sine embedding of the cells of a map, normalized by the valid size of each image (DETR, A.4).

    A cell in row r of an image with h valid rows has the angle ``(r + 1 + offset) / h * 2 pi``:
    with the default offset that is the middle of the cell. Channels are y first, then x.

    Args:
        embed_dim: channels of the result, divisible by 4.
        temperature: base of the wavelengths. Published 24/36-epoch DINO-like weights need 20.
        offset: added to the 1-based index. Those same weights need 0.
    """

    def __init__(
        self, embed_dim: int = 256, *, temperature: float = 10000.0, offset: float = -0.5
    ) -> None:
        super().__init__()
        if embed_dim % 4:
            raise ValueError(
                f"SinePositionEmbedding.embed_dim must be divisible by 4, got {embed_dim}. "
                "Choose such a model.embed_dim."
            )
        self.embed_dim = embed_dim
        self.temperature = temperature
        self.offset = offset

    def forward(
        self, valid_sizes: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Embed a map.

        Args:
            valid_sizes: valid (rows, columns) of every image, host integers.
            size: (rows, columns) of the padded map.
            device: where the result lives.

        Returns:
            ``[B, rows * columns, embed_dim]`` in float32.
        """
        eps = 1e-6
        valid = torch.tensor(valid_sizes, dtype=torch.float32, device=device)
        axes = []
        for axis, length in enumerate(size):
            index = torch.arange(1, length + 1, dtype=torch.float32, device=device)
            relative = (index + self.offset) / (valid[:, axis, None] + eps)
            axes.append(
                sine_embedding(
                    relative[..., None], self.embed_dim // 2, temperature=self.temperature
                )
            )
        y = axes[0][:, :, None].expand(-1, -1, size[1], -1)
        x = axes[1][:, None].expand(-1, size[0], -1, -1)
        return torch.cat((y, x), dim=-1).flatten(1, 2)
