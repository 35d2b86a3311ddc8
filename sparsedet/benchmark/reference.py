"""Somebody else's deformable attention: by grid_sample, by embedding_bag, or a peer's module."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsedet.layers import MultiScaleDeformableAttention, ms_deform_attn_reference
from sparsedet.layers.deformable_attention.module import sizes_of_cells
from sparsedet.layers.placing import whole_maps
from sparsedet.modeling.stages import Size

IM2COL_STEP = 64


class GridSampleAttention(nn.Module):
    """The attention module with its sampling by ``grid_sample``, in the usual order of steps.

    It has the weights of ours: the structure of the model stays the same.

    Args:
        ours: the module whose place it takes.
    """

    def __init__(self, ours: MultiScaleDeformableAttention) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = (
            ours.num_heads, ours.num_levels, ours.num_points,
        )  # fmt: skip
        self.sampling_offsets, self.attention_weights = (
            ours.sampling_offsets,
            ours.attention_weights,
        )
        self.value_proj, self.output_proj = ours.value_proj, ours.output_proj

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[Size],
        *,
        padding_mask: Tensor | None = None,
        query_order: Tensor | None = None,
        cell_sizes: Tensor | None = None,
        value_places: Tensor | None = None,
        return_sampling: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """See ``MultiScaleDeformableAttention.forward``; queries are worked on as they come."""
        projected = whole_maps(self.value_proj(value), spatial_shapes, padding_mask, value_places)
        samples = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*samples, 2))
        logits = self.attention_weights(query).float().unflatten(-1, (self.num_heads, -1))
        weights = logits.softmax(-1).unflatten(-1, samples[1:])
        reference = reference_points.float()[:, :, None, :, None]
        if reference.shape[-1] == 4:
            locations = reference[..., :2] + offsets * reference[..., 2:] * (0.5 / self.num_points)
        else:
            if cell_sizes is None:
                cell_sizes = sizes_of_cells(spatial_shapes, offsets)
            locations = reference + offsets * cell_sizes[:, None]
        heads = projected.unflatten(-1, (self.num_heads, -1))
        sampled = ms_deform_attn_reference(heads, spatial_shapes, locations, weights)
        output = self.output_proj(sampled)
        return (output, locations, weights) if return_sampling else output


def use_grid_sample(model: nn.Module) -> None:
    """Replace every deformable attention of a model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MultiScaleDeformableAttention):
                setattr(module, name, GridSampleAttention(child))


def embedding_bag_attention(
    value: Tensor, spatial_shapes: Sequence[Size], locations: Tensor, weights: Tensor
) -> Tensor:
    """``ms_deform_attn`` as one weighted ``embedding_bag``: the best form without a kernel.

    A bag holds the four cells around each sample of a query and head, weighted by the bilinear
    shares times the attention weights.
    """
    batch, tokens, heads, channels = value.shape
    queries = locations.shape[1]
    table = value.transpose(1, 2).reshape(batch * heads * tokens, channels)
    first = torch.arange(batch * heads, device=value.device).view(batch, 1, heads, 1) * tokens
    indices, shares, start = [], [], 0
    for level, (height, width) in enumerate(spatial_shapes):
        x = locations[:, :, :, level, :, 0] * width - 0.5
        y = locations[:, :, :, level, :, 1] * height - 0.5
        left, top = x.floor(), y.floor()
        for column, x_share in ((left, left + 1 - x), (left + 1, x - left)):
            for row, y_share in ((top, top + 1 - y), (top + 1, y - top)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                share = weights[:, :, :, level] * x_share * y_share
                shares.append(torch.where(inside, share, torch.zeros_like(share)))
                cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
                indices.append(cell.long() + (first + start))
        start += height * width
    bags = batch * queries * heads
    output = F.embedding_bag(
        torch.stack(indices, -1).view(bags, -1),
        table,
        per_sample_weights=torch.stack(shares, -1).view(bags, -1).to(value.dtype),
        mode="sum",
    )
    return output.view(batch, queries, heads * channels)


def locate(path: str, option: str = "--peer") -> Callable[..., Any]:
    """What a path such as ``package.module:attribute`` names.

    Args:
        path: the path.
        option: where it was given, for the message.

    Raises:
        ValueError: it cannot be found.
    """
    module_name, colon, attributes = path.partition(":")
    if not colon or not attributes:
        raise ValueError(f"{option} must be dotted.module:name, got {path!r}.")
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option} {path} cannot be imported: {error}") from error
    return found


def peer_attention(path: str) -> Callable[..., Tensor]:
    """A peer's op, to be called as ours.

    One with four parameters is called as ours. Any other, ``autograd.Function.apply`` among them,
    gets the six arguments of the original op: value, spatial shapes (L, 2) and level starts (L,) as
    tensors, locations, weights and an im2col step.
    """
    op = locate(path)
    try:
        parameters = len(inspect.signature(op).parameters)
    except (TypeError, ValueError):  # C functions and those of autograd do not tell
        parameters = 6
    if parameters == 4:
        return op

    def call(
        value: Tensor, spatial_shapes: Sequence[Size], locations: Tensor, weights: Tensor
    ) -> Tensor:
        shapes = torch.tensor(spatial_shapes, device=value.device)
        sizes = shapes.prod(1)
        starts = sizes.cumsum(0) - sizes
        return op(value, shapes, starts, locations, weights, IM2COL_STEP)

    return call
