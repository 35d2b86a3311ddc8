"""Multi-scale deformable attention: the op, its PyTorch reference and the attention module.

Deformable DETR (Zhu et al., ICLR 2021), section 4.1. Axes, here and in the kernels:

``B`` images, ``N`` tokens over all levels, ``L`` levels, ``Q`` queries, ``C`` channels,
``M`` heads, ``D`` channels of a head (``C = M * D``), ``P`` points per level.
"""

from sparsedet.layers.deformable_attention.functional import (
    ms_deform_attn,
    ms_deform_attn_reference,
    tile_order,
    tile_places,
)
from sparsedet.layers.deformable_attention.module import MultiScaleDeformableAttention
from sparsedet.layers.deformable_attention.operator import (
    MissingKernelWarning,
    has_compiled_kernel,
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
