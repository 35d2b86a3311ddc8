"""What ours is compared with: deformable attention by grid_sample, and a peer's model."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from sparsedet.layers import MultiScaleDeformableAttention, ms_deform_attn_reference
from sparsedet.layers.deformable_attention.module import sizes_of_cells
from sparsedet.layers.placing import whole_maps
from sparsedet.modeling.stages import Size


class GridSampleAttention(nn.Module):
    """The attention module with its sampling by ``grid_sample``, in the usual order of steps.

    It has the weights of ours: the structure of the model stays the same.

    Args:
        ours: the module whose place it takes.
    """

    def __init__(self, ours: MultiScaleDeformableAttention) -> None:
        super().__init__()
        self.num_heads, self.num_levels = ours.num_heads, ours.num_levels
        self.num_points = ours.num_points
        self.sampling_offsets = ours.sampling_offsets
        self.attention_weights = ours.attention_weights
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


def locate(path: str) -> Callable[..., Any]:
    """What a path such as ``package.module:attribute`` names.

    Raises:
        ValueError: it cannot be found.
    """
    module_name, colon, attributes = path.partition(":")
    if not colon or not attributes:
        raise ValueError(f"--peer must be dotted.module:name, got {path!r}.")
    try:
        return operator.attrgetter(attributes)(importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--peer {path} cannot be imported: {error}") from error
