"""Layers: torch modules and operators that know nothing of detection."""

from sparsedet.layers.deformable_attention import (
    MissingKernelWarning,
    MultiScaleDeformableAttention,
    has_compiled_kernel,
    ms_deform_attn,
    ms_deform_attn_reference,
    tile_order,
    tile_places,
)

__all__ = [
    "MissingKernelWarning",
    "MultiScaleDeformableAttention",
    "has_compiled_kernel",
    "ms_deform_attn",
    "ms_deform_attn_reference",
    "tile_order",
    "tile_places",
]
