"""Multi-scale deformable attention with only standard operators, to run without sparsedet."""

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
    """``torch.ops.sparsedet.ms_deform_attn`` with gathers: four cells per sampling point.

    It does not use ``GridSample``, which some runtimes compute incorrectly.

    Args:
        value: ``[B N M D]``.
        spatial_shapes: height and width of every level, flattened.
        sampling_locations: ``[B Q M L P 2]``.
        attention_weights: ``[B Q M L P]``.
        query_order: not used.

    Returns:
        ``[B Q M*D]`` in the dtype of ``value``.
    """
    batch, num_cells, heads = value.shape[:3]
    table = value.flatten(0, 2)
    of_image = torch.arange(batch, device=value.device) * (num_cells * heads)
    row_of = of_image[:, None, None, None] + torch.arange(heads, device=value.device)[:, None]
    total, first = None, 0
    for level in range(len(spatial_shapes) // 2):
        size = spatial_shapes[2 * level], spatial_shapes[2 * level + 1]
        cells, shares = _corners(sampling_locations[:, :, :, level], size)
        shares = (shares * attention_weights[:, :, :, level, None, None]).flatten(3)
        rows = (cells.flatten(3) + first) * heads + row_of  # B Q M 4P
        read = table.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        own = torch.matmul(shares[..., None, :], read.to(shares.dtype))
        total = own if total is None else total + own
        first += size[0] * size[1]
    assert total is not None
    return total.flatten(2).to(value.dtype)


def _corners(locations: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around points of one level.

    Args:
        locations: ``[B Q M P 2]``, x and y in [0, 1] of the level.
        size: (h, w) of the level.

    Returns:
        Indices of the cells and their weights, 0 outside of the level: ``[B Q M 2 2 P]``.
    """
    columns, across = _neighbors(locations[..., 0], size[1])
    rows, down = _neighbors(locations[..., 1], size[0])
    cells = rows[..., :, None, :] * size[1] + columns[..., None, :, :]
    return cells, down[..., :, None, :] * across[..., None, :, :]


def _neighbors(places: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two nearest cells of a row or a column and their weights, ``[... 2 P]`` each."""
    middle = (places * length - 0.5)[..., None, :]
    cells = middle.floor() + torch.arange(2, device=places.device)[:, None]
    shares = 1.0 - (middle - cells).abs()
    inside = (cells >= 0.0) & (cells < length)
    return torch.where(inside, cells, 0.0).long(), torch.where(inside, shares, 0.0)
