"""Rows of fewer places than a map has, put where they belong."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def in_places(
    rows: Shaped[Tensor, "B N *_"], places: Int[Tensor, "B N"], num_cells: int
) -> Shaped[Tensor, "B cells *_"]:
    """Maps that hold rows in some of their cells, and zero in the others.

    Args:
        rows: for each image what some of its cells hold.
        places: the cell of each row, counted over the maps of all images, each cell once; a row
            with the number after the last one goes nowhere.
        num_cells: cells of the map of an image.
    """
    batch = rows.shape[0]
    # one more cell, for what goes nowhere
    whole = rows.new_zeros(batch * num_cells + 1, *rows.shape[2:])
    whole.index_copy_(0, places.flatten(), rows.flatten(0, 1))
    return whole[:-1].unflatten(0, (batch, num_cells))


def whole_maps(
    value: Float[Tensor, "B N C"],
    spatial_shapes: Sequence[tuple[int, int]],
    padding_mask: Bool[Tensor, "B N"] | None,
    places: Int[Tensor, "B N"] | None,
) -> Float[Tensor, "B cells C"]:
    """All cells of some levels, zero where there is no token.

    Args:
        value: of every token.
        spatial_shapes: (height, width) of each level.
        padding_mask: True = no token; None = all are. Not needed beside ``places``.
        places: see ``in_places``; None = the tokens are the cells.
    """
    if places is not None:
        return in_places(value, places, sum(height * width for height, width in spatial_shapes))
    return value if padding_mask is None else value.masked_fill(padding_mask[..., None], 0)
