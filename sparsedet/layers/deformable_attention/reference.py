"""Deformable attention in plain PyTorch: one grid_sample per level, and its gradients."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of locations, weights and sums for values of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference_forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Compute the output (B, Q, M * D); locations and weights have the precision of the sums."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    maps = _split_levels(value.to(locations.dtype), spatial_shapes)
    sampled = [
        F.grid_sample(maps[level], _grid(locations, level), align_corners=False)
        for level in range(levels)
    ]
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)
    output = output.view(batch, heads * channels, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the reference without autograd, for use below the autograd dispatch key."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    samples = batch, heads, queries, points
    grad_locations = locations.new_empty(locations.shape)
    grad_weights = weights.new_empty(weights.shape)
    grad_output = grad_output.to(locations.dtype).reshape(batch, queries, heads, channels)
    grad_output = grad_output.permute(0, 2, 3, 1).reshape(batch * heads, channels, queries, 1)
    grad_maps = []
    for level, level_map in enumerate(_split_levels(value.to(locations.dtype), spatial_shapes)):
        grid = _grid(locations, level)
        level_weights = (
            weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        )
        sampled = F.grid_sample(level_map, grid, align_corners=False)
        grad_map, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad_output * level_weights, level_map, grid, 0, 0, False, [True, True]
        )
        grad_maps.append(grad_map.flatten(2))
        grad_locations[:, :, :, level] = 2 * grad_grid.view(*samples, 2).transpose(1, 2)
        grad_weights[:, :, :, level] = (grad_output * sampled).sum(1).view(samples).transpose(1, 2)
    grad_value = (
        torch.cat(grad_maps, 2).view(batch, heads, channels, value.shape[1]).permute(0, 3, 1, 2)
    )
    return torch.empty_like(value).copy_(grad_value), grad_locations, grad_weights


def _split_levels(value: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Split (B, N, M, D) into one map (B * M, D, H, W) per level."""
    batch, _, heads, channels = value.shape
    sizes = [height * width for height, width in spatial_shapes]
    return [
        part.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        for part, (height, width) in zip(value.split(sizes, 1), spatial_shapes, strict=True)
    ]


def _grid(locations: Tensor, level: int) -> Tensor:
    """Sampling grid (B * M, Q, P, 2) in [-1, 1] of one level; -3 and 3 lie outside of any map."""
    grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
    return grid.nan_to_num(nan=-3.0, posinf=3.0, neginf=-3.0)
