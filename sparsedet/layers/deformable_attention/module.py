"""The attention module."""

import math
from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sparsedet.layers.arguments import SpatialShapes, on_host
from sparsedet.layers.constants import constants
from sparsedet.layers.deformable_attention.functional import ms_deform_attn
from sparsedet.layers.deformable_attention.operator import has_compiled_kernel
from sparsedet.layers.deformable_attention.reference import accumulation_dtype
from sparsedet.layers.placing import whole_maps

# Queries per token up to which a CPU projects the samples instead of every token.
_FEW_QUERIES = 0.15
# Without a kernel, sampling first would copy the map for every head.
_HAS_KERNEL = has_compiled_kernel("cpu")


class MultiScaleDeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1, equation 3).

    Each query samples ``num_points`` places per level and head, at learned offsets from its
    reference, and sums them with learned weights, a softmax over all levels and points.

    The values are projected, then sampled. In CPU inference with few queries (a sparse encoder, a
    decoder), most projected values would never be sampled, so the order is reversed.

    The arguments have the order of detrex and of the first release of Deformable DETR.

    Args:
        embed_dim: Channels of queries, values and output.
        num_heads: Heads; must divide ``embed_dim``.
        num_levels: Levels of the feature pyramid.
        num_points: Points per level and head.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dim`` or a number is not positive.
    """

    def __init__(
        self, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()
        numbers = {
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "num_levels": num_levels,
            "num_points": num_points,
        }
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{type(self).__name__}.{name} must be positive, got {number}.")
        if embed_dim % num_heads:
            raise ValueError(
                f"{type(self).__name__}.embed_dim must be a multiple of num_heads ({num_heads}), "
                f"got {embed_dim}."
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize as in the paper: head h looks in compass direction h, point p at p+1 cells."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * distances[:, None]
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def init_weights(self) -> None:
        """Call ``reset_parameters``; detrex and mmcv use this name.

        Their models initialize all matrices again in their own ``init_weights``, which removes the
        compass directions of the offsets; this call restores them.
        """
        self.reset_parameters()

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: SpatialShapes,
        *,
        padding_mask: Tensor | None = None,
        query_order: Tensor | None = None,
        cell_sizes: Tensor | None = None,
        value_places: Tensor | None = None,
        return_sampling: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Attend from the queries to the tokens.

        Args:
            query: (B, Q, C), the position embedding already added.
            reference_points: (B, Q, L, 2) points x, y or (B, Q, L, 4) boxes cx, cy, w, h, in
                units of each level's full padded map. Offsets count cells of the level around
                a point; around a box, ``num_points`` of them reach half its size.
            value: (B, N, C), level by level, each row by row.
            spatial_shapes: (height, width) per level; their areas add up to N, unless there are
                ``value_places``. A sequence of pairs of Python ints, or an integer tensor or array;
                see :func:`ms_deform_attn`.
            padding_mask: (B, N), bool or uint8, True or 1 = padding: such tokens read as zero.
            query_order: (B, Q), the order in which the queries are processed, only for speed; see
                :func:`ms_deform_attn`.
            cell_sizes: (L, 2), the reciprocals of (width, height) of each level, for layers that
                share them; None = they are computed here.
            value_places: (B, N), int64, if ``value`` has only some cells of the levels: the cell of
                each token, see :func:`in_places`; other cells read as zero. ``padding_mask`` is not
                needed then. None = all cells, in order.
            return_sampling: Also return the sampling locations and attention weights.

        Returns:
            (B, Q, C), and with ``return_sampling`` also the locations (B, Q, M, L, P, 2) and
            the weights (B, Q, M, L, P).

        Raises:
            ValueError: If a shape does not fit; the message names the argument.
        """
        spatial_shapes = on_host(spatial_shapes)
        self._check(query, reference_points, value, spatial_shapes, padding_mask)
        if padding_mask is not None:
            padding_mask = padding_mask.bool()
        locations = self._sampling_locations(query, reference_points, spatial_shapes, cell_sizes)
        weights = self._weights(query)
        whole = partial(
            whole_maps,
            spatial_shapes=spatial_shapes,
            padding_mask=padding_mask,
            places=value_places,
        )
        heads = self.num_heads
        if value_places is not None and not (torch.is_grad_enabled() or is_compiling()):
            heads = self._heads_at_a_time(value, spatial_shapes)
        read = self._sample_first if _samples_first(query, value) else self._project_first
        sampled = read(value, whole, spatial_shapes, locations, weights, query_order, heads)
        output = self.output_proj(sampled)
        return (output, locations, weights) if return_sampling else output

    def _heads_at_a_time(self, value: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> int:
        """Heads whose maps together hold about as many numbers as the tokens."""
        cells = sum(height * width for height, width in spatial_shapes)
        return -(-self.num_heads // -(-cells // value.shape[1]))

    def _project_first(
        self, value, whole, spatial_shapes, locations, weights, query_order, heads_at_a_time
    ) -> Tensor:
        projected = self.value_proj(value)
        if value.device.type == "cpu":
            query_order = None  # with so few channels, the jumps between the queries cost more
        read = [
            ms_deform_attn(
                whole(projected[..., channels]).unflatten(-1, (-1, self._head_dim)),
                spatial_shapes,
                locations[:, :, heads],
                weights[:, :, heads],
                query_order=query_order,
            )
            for heads, channels in self._parts(heads_at_a_time)
        ]
        return read[0] if len(read) == 1 else torch.cat(read, dim=-1)

    def _sample_first(
        self, value, whole, spatial_shapes, locations, weights, query_order, heads_at_a_time
    ) -> Tensor:
        def sample(tokens: Tensor) -> Tensor:
            heads = whole(tokens)[:, :, None].expand(-1, -1, self.num_heads, -1)
            return ms_deform_attn(
                heads, spatial_shapes, locations, weights, query_order=query_order
            ).unflatten(-1, (self.num_heads, -1))

        # The bias is scaled by the share that was sampled inside the maps and outside padding.
        shown = locations.new_ones(*value.shape[:2], 1)
        weight = self.value_proj.weight.unflatten(0, (self.num_heads, -1))
        bias = self.value_proj.bias.unflatten(0, (self.num_heads, -1))
        per_head = reduce(
            torch.add,
            (
                sample(value[..., channels]).flatten(0, 1).transpose(0, 1)
                @ weight[..., channels].transpose(1, 2)
                for _, channels in self._parts(heads_at_a_time)
            ),
        )
        sampled = per_head.transpose(0, 1).unflatten(0, locations.shape[:2])
        return (sampled + sample(shown) * bias).flatten(2).to(sampled.dtype)

    @property
    def _head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def _parts(self, heads_at_a_time: int) -> list[tuple[slice, slice]]:
        """Slices of the heads, and of their channels."""
        heads = range(0, self.num_heads, heads_at_a_time)
        parts = [(first, min(first + heads_at_a_time, self.num_heads)) for first in heads]
        return [(slice(a, b), slice(a * self._head_dim, b * self._head_dim)) for a, b in parts]

    def _sampling_locations(
        self,
        query: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        cell_sizes: Tensor | None = None,
    ) -> Tensor:
        offsets = _at_least_float32(self.sampling_offsets(query))
        reference = reference_points.to(offsets.dtype)
        if reference.shape[-1] == 4:
            step = self._of_points(reference[..., 2:] * (0.5 / self.num_points))
        else:
            if cell_sizes is None:
                cell_sizes = sizes_of_cells(spatial_shapes, offsets)
            step = self._of_points(cell_sizes.to(offsets.dtype)[None, None])
        # the last axis has all samples of a head, because broadcasting over short axes is slow
        locations = torch.addcmul(
            self._of_points(reference[..., :2])[:, :, None],
            offsets.unflatten(-1, (self.num_heads, -1)),
            step[:, :, None],
        )
        return locations.unflatten(-1, (self.num_levels, self.num_points, 2))

    def _of_points(self, of_levels: Tensor) -> Tensor:
        """Repeat pairs ``[..., L, 2]`` for every point: ``[..., L * P * 2]``."""
        repeated = of_levels[..., None, :].expand(*of_levels.shape[:-1], self.num_points, 2)
        return repeated.flatten(-3)

    def _weights(self, query: Tensor) -> Tensor:
        logits = _at_least_float32(self.attention_weights(query))
        logits = logits.unflatten(-1, (self.num_heads, self.num_levels * self.num_points))
        return logits.softmax(-1).unflatten(-1, (self.num_levels, self.num_points))

    def _check(self, query, reference_points, value, spatial_shapes, padding_mask) -> None:
        name, levels = type(self).__name__, self.num_levels
        for argument, tensor in (("query", query), ("value", value)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.embed_dim:
                raise ValueError(
                    f"{name}.{argument} must be of shape (B, tokens, {self.embed_dim}), "
                    f"got {tuple(tensor.shape)}."
                )
        if len(spatial_shapes) != levels:
            raise ValueError(
                f"{name}.spatial_shapes must have {levels} levels, got {len(spatial_shapes)}. "
                "Set num_levels to the levels of the neck."
            )
        expected = (*query.shape[:2], levels)
        if reference_points.shape[:-1] != expected or reference_points.shape[-1] not in (2, 4):
            raise ValueError(
                f"{name}.reference_points must be of shape {expected} + (2,) or (4,), "
                f"got {tuple(reference_points.shape)}."
            )
        if padding_mask is not None and (
            padding_mask.dtype not in (torch.bool, torch.uint8)
            or padding_mask.shape != value.shape[:2]
        ):
            raise ValueError(
                f"{name}.padding_mask must be bool or uint8 of shape {tuple(value.shape[:2])}, "
                f"got {padding_mask.dtype} {tuple(padding_mask.shape)}."
            )

    def extra_repr(self) -> str:
        """Show the sizes that are not visible in the projections."""
        return f"heads={self.num_heads}, levels={self.num_levels}, points={self.num_points}"


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(accumulation_dtype(tensor.dtype))


def sizes_of_cells(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 2), the reciprocals of (width, height) of each level, as a tensor like ``like``."""
    sizes = [size for height, width in spatial_shapes for size in (width, height)]
    return 1 / constants(sizes, like.device, like.dtype).view(-1, 2)


def _samples_first(query: Tensor, value: Tensor) -> bool:
    """Whether to sample before the projection, which is faster on CPUs without gradients."""
    return (
        value.device.type == "cpu"
        and _HAS_KERNEL
        and not torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and query.shape[1] <= _FEW_QUERIES * value.shape[1]
    )
