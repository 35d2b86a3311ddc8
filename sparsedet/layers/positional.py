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
    steps = torch.arange(0, num_features, 2, device=coordinates.device, dtype=torch.float32)
    wavelengths = temperature ** (steps / num_features)
    angles = coordinates.float()[..., None] * (2 * math.pi) / wavelengths
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` after clamping ``x`` and ``1 - x`` to at least ``eps`` each.

    This is the clamp of the released Deformable DETR code: the two sides are clamped separately.
    """
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


class SinePositionEmbedding(nn.Module):
    """Sine embedding of the cells of maps, normalized by the valid size of each image (DETR, A.4).

    A cell in row r of an image with h valid rows has the angle ``(r + 1 + offset) / h * 2 pi``:
    with the default offset that is the middle of the cell. Channels are y first, then x.

    Args:
        embed_dim: channels of the result, divisible by 4.
        temperature: base of the wavelengths. Published 24/36-epoch DINO-like weights need 20.
        offset: added to the 1-based index. Those same weights need 0.

    Raises:
        ValueError: for ``embed_dim`` that 4 does not divide, or a ``temperature`` of 0 or less.
    """

    takes_cells = True

    def __init__(
        self, embed_dim: int = 256, *, temperature: float = 10000.0, offset: float = -0.5
    ) -> None:
        super().__init__()
        if embed_dim % 4:
            raise ValueError(
                f"SinePositionEmbedding.embed_dim must be divisible by 4, got {embed_dim}. "
                "Choose such a model.embed_dim."
            )
        if not temperature > 0:
            raise ValueError(
                f"SinePositionEmbedding.temperature must be positive, got {temperature}. Set "
                "model.position_embedding.temperature."
            )
        self.embed_dim = embed_dim
        self.temperature = temperature
        self.offset = offset

    def forward(
        self,
        valid_sizes: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        *,
        cells: Sequence[Tensor | None] = (),
    ) -> tuple[Tensor, ...]:
        """Embed the maps of several levels.

        Args:
            valid_sizes: ``[B, L, 2]``, valid (rows, columns) of every image and level, in float32.
            spatial_shapes: (rows, columns) of the padded map of each level.
            cells: for each level the cells ``[B, n]`` to embed, numbered row by row, or None for
                all of them.

        Returns:
            ``[B, rows * columns, embed_dim]`` in float32 for each level, or ``[B, n, embed_dim]``.
        """
        eps = 1e-6
        longest = max(length for shape in spatial_shapes for length in shape)
        index = torch.arange(1, longest + 1, dtype=torch.float32, device=valid_sizes.device)
        relative = (index + self.offset) / (valid_sizes + eps)[..., None]
        waves = sine_embedding(
            relative[..., None], self.embed_dim // 2, temperature=self.temperature
        )
        maps = []
        for level, (rows, columns) in enumerate(spatial_shapes):
            if cells and (own := cells[level]) is not None:
                places = torch.stack((own // columns, own % columns), dim=1)
                chosen = waves[:, level].gather(
                    2, places[..., None].expand(-1, -1, -1, waves.shape[-1])
                )
                maps.append(torch.cat((chosen[:, 0], chosen[:, 1]), dim=-1))
                continue
            y = waves[:, level, 0, :rows, None].expand(-1, -1, columns, -1)
            x = waves[:, level, 1, None, :columns].expand(-1, rows, -1, -1)
            maps.append(torch.cat((y, x), dim=-1).flatten(1, 2))
        return tuple(maps)
