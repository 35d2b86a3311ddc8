"""Scatter rows into the cells of maps."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def in_places(
    rows: Shaped[Tensor, "B N *_"], places: Int[Tensor, "B N"], num_cells: int
) -> Shaped[Tensor, "B cells *_"]:
    """Scatter rows into some cells of zero maps.

    Args:
        rows: the rows of each image.
        places: the cell of each row, numbered over the maps of all images; no cell occurs twice. A
            row whose number is one past the last cell is discarded.
        num_cells: cells of the map of one image.
    """
    batch = rows.shape[0]
    # one more cell, for discarded rows
    whole = rows.new_zeros(batch * num_cells + 1, *rows.shape[2:])
    whole.index_copy_(0, places.flatten(), rows.flatten(0, 1))
    return whole[:-1].unflatten(0, (batch, num_cells))


def whole_maps(
    value: Float[Tensor, "B N C"],
    spatial_shapes: Sequence[tuple[int, int]],
    padding_mask: Bool[Tensor, "B N"] | None,
    places: Int[Tensor, "B N"] | None,
) -> Float[Tensor, "B cells C"]:
    """The values of all cells of the levels, zero in cells without a token.

    Args:
        value: the value of every token.
        spatial_shapes: (height, width) of each level.
        padding_mask: True = padding; None = no padding. Not needed with ``places``.
        places: see ``in_places``; None = there is one token for each cell.
    """
    if places is not None:
        return in_places(value, places, sum(height * width for height, width in spatial_shapes))
    return value if padding_mask is None else value.masked_fill(padding_mask[..., None], 0)
