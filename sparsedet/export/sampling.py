"""Multi-scale deformable attention by standard operators alone, for what runs without sparsedet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sparsedet.layers.constants import constants


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
    batch, tokens, heads, channels = value.shape
    rows = value.reshape(-1, channels)
    images = torch.arange(batch, device=value.device)[:, None, None, None] * (tokens * heads)
    first = images + torch.arange(heads, device=value.device)[:, None]  # B 1 M 1
    weights, total = attention_weights.flatten(3), None  # B Q M L*P
    for cells, share in _corners(sampling_locations, spatial_shapes):
        index = (cells.flatten(3) * heads + first).flatten()
        share = (share.flatten(3) * weights).flatten(0, 2)[:, None]
        read = rows.index_select(0, index).to(share.dtype)
        own = share @ read.unflatten(0, (-1, share.shape[2]))
        total = own if total is None else total + own
    assert total is not None
    return total.view(batch, -1, heads * channels).to(value.dtype)


def _corners(locations: Tensor, spatial_shapes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The cells around points, as indices among all levels, and how much each counts; 0 outside.

    Args:
        locations: ``[... L P 2]``.
        spatial_shapes: see above.
    """
    heights, widths = spatial_shapes[::2], spatial_shapes[1::2]
    areas = [height * width for height, width in zip(heights, widths, strict=True)]
    height, width, first = (
        constants(each, locations.device, locations.dtype)[:, None]
        for each in (heights, widths, [0, *accumulate(areas[:-1])])
    )
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share, nothing = x - left, y - top, torch.zeros_like(x)
    corners = []
    for down, vertical in ((0.0, 1.0 - bottom_share), (1.0, bottom_share)):
        for across, horizontal in ((0.0, 1.0 - right_share), (1.0, right_share)):
            row, column = top + down, left + across
            inside = (row >= 0.0) & (row < height) & (column >= 0.0) & (column < width)
            share = torch.where(inside, vertical * horizontal, nothing)
            cells = torch.where(inside, row * width + column + first, nothing).long()
            corners.append((cells, share))
    return corners
