"""Deformable attention as functions, with checked arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedet.layers.arguments import SpatialShapes, on_host
from sparsedet.layers.deformable_attention.operator import FORWARD
from sparsedet.layers.deformable_attention.reference import accumulation_dtype, reference_forward

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_TILE = 8  # as in csrc/cuda/tiles.h
_SHAPES_FORM = "(height, width) pairs of positive ints, one per level"


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    query_order: Tensor | None = None,
) -> Tensor:
    """Sample every level of a feature pyramid bilinearly and sum with attention weights.

    Deformable DETR, equation 3, without the projections. A location ``x`` reads at the continuous
    column ``x * W - 0.5`` of its level (pixel centers); places outside the level, and locations
    that are not finite, read zero.

    Args:
        value: Features (B, N, M, D), level by level, each row by row; any strides. float64,
            float32, float16 or bfloat16.
        spatial_shapes: (height, width) per level; their areas add up to N. A sequence of pairs of
            Python ints, or an integer tensor or array (L, 2). Reading a tensor on an accelerator
            synchronizes in every call, and compiled or exported graphs cannot contain one, so the
            layers of a model should share one list.
        sampling_locations: (B, Q, M, L, P, 2): x, y in units of the level, [0, 1] inside.
        attention_weights: (B, Q, M, L, P). Locations and weights are converted to float32, or to
            float64 if ``value`` is float64; sums have the same precision.
        query_order: (B, Q) int64, for each image a permutation of its queries: the order in which
            they are processed. It only changes the speed (and the last bits of the backward, where
            float sums depend on their order): queries that sample neighboring places should follow
            each other (see :func:`tile_order`). Without it, queries that are all tokens are
            processed by tiles of the levels, and other queries in the given order. An order that is
            not a permutation is an error on the CPU; CUDA does not check it, and leaves the rows of
            missing queries unwritten.

    Returns:
        (B, Q, M * D) in the dtype of ``value``.

    Raises:
        ValueError: If a shape, dtype or device does not fit; the message names the argument.
    """
    spatial_shapes = on_host(spatial_shapes)
    check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    _check_query_order(query_order, sampling_locations)
    precise = accumulation_dtype(value.dtype)
    return FORWARD(
        value,
        [size for shape in spatial_shapes for size in shape],
        sampling_locations.to(precise),
        attention_weights.to(precise),
        query_order,
    )


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Compute :func:`ms_deform_attn` by ``grid_sample``: slow, differentiable, easy to read.

    Args:
        value: See :func:`ms_deform_attn`.
        spatial_shapes: See :func:`ms_deform_attn`.
        sampling_locations: See :func:`ms_deform_attn`.
        attention_weights: See :func:`ms_deform_attn`.

    Returns:
        (B, Q, M * D) in the dtype of ``value``.

    Raises:
        ValueError: If a shape, dtype or device does not fit; the message names the argument.
    """
    spatial_shapes = on_host(spatial_shapes)
    check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    precise = accumulation_dtype(value.dtype)
    return reference_forward(
        value, spatial_shapes, sampling_locations.to(precise), attention_weights.to(precise)
    )


def tile_order(tokens: Tensor, spatial_shapes: SpatialShapes) -> Tensor:
    """Order queries that are tokens of a pyramid by tiles of 8 x 8, for ``query_order``.

    The sort pays off if several calls share the queries, as in the layers of an encoder.

    Args:
        tokens: (B, Q) int64: which tokens the queries of each image are, in any order.
        spatial_shapes: See :func:`ms_deform_attn`.

    Returns:
        (B, Q) int64: for each image a permutation of its queries.
    """
    return tile_places(spatial_shapes, tokens.device)[tokens].argsort(-1)


def tile_places(spatial_shapes: SpatialShapes, device: torch.device) -> Tensor:
    """The sort keys of :func:`tile_order`, for several selections of one pyramid.

    Args:
        spatial_shapes: See :func:`ms_deform_attn`.
        device: device of the result.

    Returns:
        (N,) int64, one for each token.
    """
    spatial_shapes = on_host(spatial_shapes)
    check_spatial_shapes(spatial_shapes)
    longest = max(length for shape in spatial_shapes for length in shape)
    index = torch.arange(longest, device=device)
    tile, inside = index // _TILE, index % _TILE
    along = tile * _TILE**2 + inside
    places, first = [], 0
    for height, width in spatial_shapes:
        row_of_tiles = -(-width // _TILE) * _TILE**2
        down = torch.add(inside[:height] * _TILE + first, tile[:height], alpha=row_of_tiles)
        places.append((down[:, None] + along[:width]).flatten())
        first += -(-height // _TILE) * row_of_tiles
    return torch.cat(places)


def _error(argument: str, expected: str, got: object) -> ValueError:
    return ValueError(f"ms_deform_attn.{argument} must be {expected}, got {got}.")


# Messages are built only when they are raised: printing a size would fix it in an exported graph.


def check_arguments(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Refuse arguments that :func:`ms_deform_attn` cannot use.

    Raises:
        ValueError: If a shape, dtype or device does not fit; the message names the argument.
    """
    check_spatial_shapes(spatial_shapes)
    check_value(value)
    _check_tensor("sampling_locations", sampling_locations, value)
    _check_tensor("attention_weights", attention_weights, value)
    batch, tokens, heads, _ = value.shape
    if tokens != sum(height * width for height, width in spatial_shapes):
        form = f"of shape (B, N, M, D) with N the tokens of {_pairs(spatial_shapes)}"
        raise _error("value", form, tuple(value.shape))
    levels, sizes = len(spatial_shapes), sampling_locations.shape
    if len(sizes) != 6 or (sizes[0], sizes[2], sizes[3], sizes[5]) != (batch, heads, levels, 2):
        form = f"of shape ({batch}, Q, {heads}, {levels}, P, 2)"
        raise _error("sampling_locations", form, tuple(sampling_locations.shape))
    if attention_weights.shape != sizes[:-1]:
        raise _error(
            "attention_weights", f"of shape {tuple(sizes[:-1])}", tuple(attention_weights.shape)
        )


def check_value(value: Tensor) -> None:
    """Refuse values with a wrong dtype or number of axes.

    Raises:
        ValueError: If it has another dtype or number of axes.
    """
    _check_tensor("value", value, value)
    if value.dim() != 4:
        raise _error("value", "of shape (B, N, M, D)", tuple(value.shape))


def _check_query_order(query_order: Tensor | None, sampling_locations: Tensor) -> None:
    if query_order is None:
        return
    if query_order.dtype != torch.int64:
        raise _error("query_order", "int64", query_order.dtype)
    if query_order.shape != sampling_locations.shape[:2]:
        form = f"of shape {tuple(sampling_locations.shape[:2])}"
        raise _error("query_order", form, tuple(query_order.shape))
    if query_order.device != sampling_locations.device:
        form = f"on the device of value ({sampling_locations.device})"
        raise _error("query_order", form, query_order.device)


def _check_tensor(name: str, tensor: Tensor, value: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise _error(name, "a tensor", type(tensor).__name__)
    if tensor.dtype not in _DTYPES:
        raise _error(name, "float64, float32, float16 or bfloat16", tensor.dtype)
    if tensor.device != value.device:
        raise _error(name, f"on the device of value ({value.device})", tensor.device)


def check_spatial_shapes(spatial_shapes: Sequence[Sequence[int]]) -> None:
    """Refuse invalid sizes of levels.

    Raises:
        ValueError: If they are not pairs of positive ints.
    """
    if not isinstance(spatial_shapes, Sequence) or not all(
        isinstance(shape, Sequence) for shape in spatial_shapes
    ):
        raise _error("spatial_shapes", _SHAPES_FORM, spatial_shapes)
    fits = len(spatial_shapes) > 0
    for shape in spatial_shapes:
        fits = fits and len(shape) == 2
        fits = fits and all(isinstance(n, int | torch.SymInt) and n > 0 for n in shape)
    if not fits:
        raise _error("spatial_shapes", _SHAPES_FORM, _pairs(spatial_shapes))


def _pairs(spatial_shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for shape in spatial_shapes]
