"""Deformable attention under the names and signatures of other codebases.

The original CUDA extension of Deformable DETR (Zhu et al., ICLR 2021) and its descendants share one
signature of six arguments: Deformable DETR, DINO, Mask2Former, Mask DINO, Grounding DINO, BEVFormer
and mmcv. Code written for it needs one changed import:

    from sparsedet.compat import MSDeformAttnFunction

or no change, if :func:`stand_in_for_extension` runs before the code is imported. Everything here
works on CPUs and on GPUs, forward and backward.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from types import ModuleType

import torch
from torch import Tensor

from sparsedet.layers import ms_deform_attn
from sparsedet.layers.arguments import SpatialShapes, on_host
from sparsedet.layers.deformable_attention.functional import (
    check_arguments,
    check_spatial_shapes,
    check_value,
)
from sparsedet.layers.deformable_attention.operator import BACKWARD
from sparsedet.layers.deformable_attention.reference import accumulation_dtype

__all__ = [
    "MSDeformAttnFunction",
    "MultiScaleDeformableAttnFunction",
    "ms_deform_attn_backward",
    "ms_deform_attn_core_pytorch",
    "ms_deform_attn_forward",
    "multi_scale_deformable_attn_pytorch",
    "stand_in_for_extension",
]


def multi_scale_deformable_attn_pytorch(
    value: Tensor,
    value_spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Deformable attention as mmcv, Grounding DINO and detrex call it on CPUs.

    Args:
        value: See :func:`ms_deform_attn_forward`.
        value_spatial_shapes: See there.
        sampling_locations: See there.
        attention_weights: See there.

    Returns:
        (B, Q, M * D) in the dtype of ``value``.

    Raises:
        ValueError: If a shape, dtype or device does not fit.
    """
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


ms_deform_attn_core_pytorch = multi_scale_deformable_attn_pytorch
"""The name of it in Deformable DETR, DINO, Mask2Former and Mask DINO."""


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: SpatialShapes,
    value_level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Compute the forward of the compiled extension, with autograd.

    Args:
        value: (B, N, M, D).
        value_spatial_shapes: (L, 2), (height, width) of each level. A tensor on a GPU makes the
            host wait for it; lists and tensors on the CPU do not.
        value_level_start_index: (L,), the first token of each level.
        sampling_locations: (B, Q, M, L, P, 2), x, y in units of the level, [0, 1] inside.
        attention_weights: (B, Q, M, L, P).
        im2col_step: has no effect; all images are processed at once.

    Returns:
        (B, Q, M * D) in the dtype of ``value``.

    Raises:
        ValueError: If a shape, dtype, device or level start does not fit.
    """
    shapes = on_host(value_spatial_shapes)
    tokens = _tokens_of_levels(value, shapes, value_level_start_index)
    value = value if tokens is None else value[:, tokens]
    return ms_deform_attn(value, shapes, sampling_locations, attention_weights)


class MultiScaleDeformableAttnFunction:
    """Deformable attention as mmcv, Grounding DINO and BEVFormer call it, with ``apply``."""

    apply = staticmethod(ms_deform_attn_forward)


MSDeformAttnFunction = MultiScaleDeformableAttnFunction
"""The name of it in Deformable DETR, DINO, Mask2Former and Mask DINO."""


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: SpatialShapes,
    value_level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    *outputs_and_im2col_step: Tensor | int,
    im2col_step: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the backward of the compiled extension.

    Args:
        value: See :func:`ms_deform_attn_forward`.
        value_spatial_shapes: See there.
        value_level_start_index: See there.
        sampling_locations: See there.
        attention_weights: See there.
        grad_output: (B, Q, M * D).
        outputs_and_im2col_step: nothing or the im2col step (Deformable DETR); or the three tensors
            to which mmcv expects the gradients to be added, in the order of the result.
        im2col_step: has no effect.

    Returns:
        Gradients of ``value``, ``sampling_locations`` and ``attention_weights``.

    Raises:
        ValueError: If a shape, dtype, device or level start does not fit.
    """
    shapes = on_host(value_spatial_shapes)
    tokens = _tokens_of_levels(value, shapes, value_level_start_index)
    used = value if tokens is None else value[:, tokens]
    check_arguments(used, shapes, sampling_locations, attention_weights)
    outputs = [each for each in outputs_and_im2col_step if isinstance(each, Tensor)]
    inputs = (value, sampling_locations, attention_weights)
    _check_gradients(grad_output, outputs, inputs)
    precise = accumulation_dtype(value.dtype)
    of_value, *others = BACKWARD(
        grad_output.flatten(2),
        used,
        [size for shape in shapes for size in shape],
        sampling_locations.to(precise),
        attention_weights.to(precise),
        None,
        torch.are_deterministic_algorithms_enabled(),
    )
    if tokens is not None:
        of_value = torch.zeros_like(value).index_add_(1, tokens, of_value)
    of_locations, of_weights = others
    grads = (
        of_value,
        of_locations.to(sampling_locations.dtype),
        of_weights.to(attention_weights.dtype),
    )
    for given, grad in zip(outputs, grads, strict=False):  # three, or none
        given.add_(grad)
    return grads


def stand_in_for_extension(name: str = "MultiScaleDeformableAttention") -> ModuleType:
    """Let ``import MultiScaleDeformableAttention`` find this module's functions.

    For code that imports the compiled extension by name and that you do not want to change. Call
    this before that code is imported.

    Args:
        name: the extension: "MultiScaleDeformableAttention" for Deformable DETR, DINO,
            Mask2Former and Mask DINO, "groundingdino._C" for Grounding DINO.

    Returns:
        The module that now goes by the name.

    Raises:
        ValueError: If another module of that name is imported already.
    """
    module = sys.modules.get(name)
    if module is None:
        module = ModuleType(name, "Deformable attention of sparsedet.")
        for function in (ms_deform_attn_forward, ms_deform_attn_backward):
            setattr(module, function.__name__, function)
        sys.modules[name] = module
    elif getattr(module, "ms_deform_attn_forward", None) is not ms_deform_attn_forward:
        raise ValueError(
            "stand_in_for_extension.name must be a module that is not imported yet, got "
            f"{name}. Call it before the code that imports the extension."
        )
    return module


def _check_gradients(
    grad_output: Tensor, outputs: Sequence[Tensor], inputs: Sequence[Tensor]
) -> None:
    value, locations, _ = inputs
    form = (*locations.shape[:2], value.shape[2] * value.shape[3])
    fits = isinstance(grad_output, Tensor) and grad_output.dim() >= 3
    if not fits or grad_output.flatten(2).shape != form or grad_output.dtype != value.dtype:
        got = (tuple(grad_output.shape), grad_output.dtype) if fits else grad_output
        raise ValueError(
            "ms_deform_attn_backward.grad_output must be of the shape and dtype of the output, "
            f"{form} and {value.dtype}, got {got}."
        )
    shapes = [tuple(each.shape) for each in outputs]
    if outputs and shapes != [tuple(each.shape) for each in inputs]:
        raise ValueError(
            "ms_deform_attn_backward.outputs_and_im2col_step must be three tensors of the shapes "
            f"of value, sampling_locations and attention_weights, or none, got {shapes}."
        )


def _tokens_of_levels(
    value: Tensor, shapes: Sequence[Sequence[int]], starts: Tensor | Sequence[int]
) -> Tensor | None:
    """Indices of the tokens of the levels; None if the levels are all tokens in order."""
    check_spatial_shapes(shapes)
    check_value(value)
    firsts = starts.tolist() if isinstance(starts, Tensor) else starts
    firsts = list(firsts) if isinstance(firsts, Sequence) else [firsts]
    sizes = [height * width for height, width in shapes]
    ends = list(accumulate(sizes))
    if firsts == [0, *ends[:-1]] and ends[-1:] == [value.shape[1]]:
        return None
    if len(firsts) != len(sizes) or not all(
        isinstance(first, int | float) and 0 <= first <= value.shape[1] - size
        for first, size in zip(firsts, sizes, strict=True)
    ):
        raise ValueError(
            "MultiScaleDeformableAttnFunction.value_level_start_index must be the index of the "
            f"first token of each of the levels {list(shapes)} in a value of {value.shape[1]} "
            f"tokens, got {firsts}. Pass the cumulative sums of height * width, starting at 0."
        )
    index = torch.arange(value.shape[1], device=value.device)
    return torch.cat([index[first:][:size] for first, size in zip(firsts, sizes, strict=True)])
