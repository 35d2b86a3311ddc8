"""The operator ``torch.ops.sparsedet.ms_deform_attn`` and its backward.

This module defines schema, default kernel (the PyTorch reference), fake kernel, gradient and
autocast rule. The compiled libraries of ``csrc/`` only add CPU and CUDA kernels; whatever they do
not cover runs the default kernel.
"""

import warnings
from collections.abc import Sequence

import torch

from sparsedet.layers.deformable_attention.libraries import (
    MissingKernelWarning,
    load_libraries,
    why_missing,
)
from sparsedet.layers.deformable_attention.reference import (
    accumulation_dtype,
    reference_backward,
    reference_forward,
)

_OP_NAME = "sparsedet::ms_deform_attn"


def has_compiled_kernel(device: torch.device | str = "cpu") -> bool:
    """Tell whether deformable attention has a compiled kernel for a device.

    Args:
        device: A device or device type such as ``"cpu"`` or ``"cuda"``.
    """
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(torch.device(device).type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(_OP_NAME, key)


_LIBRARY = torch.library.Library("sparsedet", "DEF")
_LIBRARY.define(
    "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights, Tensor? query_order=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor sampling_locations, Tensor attention_weights, Tensor? query_order=None, "
    "bool deterministic=False) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
FORWARD = torch.ops.sparsedet.ms_deform_attn.default
BACKWARD = torch.ops.sparsedet.ms_deform_attn_backward.default
_warned_devices: set[str] = set()


def _warn_of_missing_kernel(device: torch.device) -> None:
    if device.type in _warned_devices:
        return
    _warned_devices.add(device.type)
    warnings.warn(
        f"sparsedet: no compiled deformable attention for {device.type}; plain PyTorch runs "
        f"instead (slower, more memory). {why_missing(device.type)}",
        MissingKernelWarning,
        stacklevel=2,
    )


def _to_pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


# The reference ignores query_order and deterministic, which are for compiled kernels.


def _default_forward(
    value, spatial_shapes, sampling_locations, attention_weights, query_order=None
):
    _warn_of_missing_kernel(value.device)
    shapes = _to_pairs(spatial_shapes)
    return reference_forward(value, shapes, sampling_locations, attention_weights)


def _default_backward(
    grad_output,
    value,
    spatial_shapes,
    sampling_locations,
    attention_weights,
    query_order=None,
    deterministic=False,
):
    shapes = _to_pairs(spatial_shapes)
    return reference_backward(grad_output, value, shapes, sampling_locations, attention_weights)


def _fake_forward(value, spatial_shapes, sampling_locations, attention_weights, query_order=None):
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


def _fake_backward(
    grad_output,
    value,
    spatial_shapes,
    sampling_locations,
    attention_weights,
    query_order=None,
    deterministic=False,
):
    return (
        torch.empty_like(value),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _save_for_backward(ctx, inputs, output) -> None:
    value, ctx.spatial_shapes, *others = inputs
    ctx.save_for_backward(value, *others)


def _backward(ctx, grad_output):
    value, *others = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = BACKWARD(grad_output, value, ctx.spatial_shapes, *others, deterministic)
    return grads[0], None, grads[1], grads[2], None


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "ms_deform_attn has no second derivative. Use ms_deform_attn_reference where the "
        "gradient of a gradient is needed."
    )


def _register_autocast(device_type: str) -> None:
    """Under autocast ``value`` keeps its dtype; locations and weights get the dtype of the sums."""
    key = "Autocast" + torch._C._dispatch_key_for_device(device_type)
    key_set = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast_and_call(
        value, spatial_shapes, sampling_locations, attention_weights, query_order=None
    ):
        precise = accumulation_dtype(value.dtype)
        with torch._C._ExcludeDispatchKeyGuard(key_set):
            return FORWARD(
                value,
                spatial_shapes,
                sampling_locations.to(precise),
                attention_weights.to(precise),
                query_order,
            )

    FORWARD.py_impl(getattr(torch._C.DispatchKey, key))(cast_and_call)
    _LIBRARY.impl("ms_deform_attn", lambda _, *args: cast_and_call(*args), key, with_keyset=True)


def _register() -> None:
    backward_name = _OP_NAME + "_backward"
    _LIBRARY.impl("ms_deform_attn", _default_forward, "CompositeExplicitAutograd")
    _LIBRARY.impl("ms_deform_attn_backward", _default_backward, "CompositeExplicitAutograd")
    torch.library.register_fake(_OP_NAME, _fake_forward, lib=_LIBRARY)
    torch.library.register_fake(backward_name, _fake_backward, lib=_LIBRARY)
    torch.library.register_autograd(
        _OP_NAME, _backward, setup_context=_save_for_backward, lib=_LIBRARY
    )
    torch.library.register_autograd(backward_name, _no_double_backward, lib=_LIBRARY)
    for device_type in ("cpu", "cuda"):
        _register_autocast(device_type)


_register()
_warned_devices |= load_libraries()
