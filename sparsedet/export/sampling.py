"""Multi-scale deformable attention by standard operators alone, for what runs without sparsedet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gathered_attention(
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    query_order: Tensor | None = None,
) -> Tensor:
    """``torch.ops.sparsedet.ms_deform_attn`` by gathers: four cells for every sampling point.

    There is no ``GridSample`` in it, which some runtimes are known to compute wrongly.

    Args:
        value: ``[B N M D]``.
        spatial_shapes: height and width of every level, one after the other.
        sampling_locations: ``[B Q M L P 2]``.
        attention_weights: ``[B Q M L P]``.
        query_order: changes nothing.

    Returns:
        ``[B Q M*D]`` in the dtype of ``value``.
    """
    by_head = value.transpose(1, 2)
    locations = sampling_locations.permute(0, 2, 3, 1, 4, 5)  # B M L Q P 2
    weights = attention_weights.permute(0, 2, 3, 1, 4)
    total, first = None, 0
    for level in range(len(spatial_shapes) // 2):
        size = spatial_shapes[2 * level], spatial_shapes[2 * level + 1]
        for cells, share in _corners(locations[:, :, level], size):
            share = (share * weights[:, :, level])[..., None]
            index = (cells + first).flatten(2)[..., None].expand(-1, -1, -1, value.shape[3])
            read = by_head.gather(2, index).unflatten(2, cells.shape[2:])
            own = (read.to(share.dtype) * share).sum(3)
            total = own if total is None else total + own
        first += size[0] * size[1]
    assert total is not None
    return total.transpose(1, 2).flatten(2).to(value.dtype)


def _corners(locations: Tensor, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """The cells around points of one level, as indices, and how much each counts; 0 outside."""
    height, width = size
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share, nothing = x - left, y - top, torch.zeros_like(x)
    corners = []
    for down, vertical in ((0.0, 1.0 - bottom_share), (1.0, bottom_share)):
        for across, horizontal in ((0.0, 1.0 - right_share), (1.0, right_share)):
            row, column = top + down, left + across
            inside = (row >= 0.0) & (row < height) & (column >= 0.0) & (column < width)
            share = torch.where(inside, vertical * horizontal, nothing)
            corners.append((torch.where(inside, row * width + column, nothing).long(), share))
    return corners
