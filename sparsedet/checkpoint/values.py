"""Check the tensors of a checkpoint: plain, of the model's number type, finite."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["conversions", "describe", "has_nan", "non_finite", "oddity", "other_kinds"]

_SHOWN = 3


def oddity(tensor: torch.Tensor, size: int) -> str:
    """Why a tensor cannot be weights; empty for a plain tensor.

    Args:
        tensor: A tensor of a file.
        size: Bytes of the file.
    """
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_meta:
        return "a tensor without values (on the meta device)"
    if tensor.is_quantized:
        return f"a quantized tensor ({_type(tensor)})"
    if tensor.numel() * tensor.element_size() > size:
        return f"a tensor of shape {tuple(tensor.shape)}, larger than the whole file"
    return ""


def other_kinds(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> dict[str, tuple[str, str]]:
    """Incompatible types in a state dict (`given`) and in a model's (`own`).

    Floating-point types are compatible with each other, and so are integers and booleans.
    """
    return {
        name: (_type(given[name]), _type(tensor))
        for name, tensor in own.items()
        if name in given and _kind(given[name]) != _kind(tensor)
    }


def conversions(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> dict[str, int]:
    """Number of tensors in a state dict (`given`) whose type differs from the model's, by type."""
    return dict(
        Counter(
            _type(given[name])
            for name, tensor in own.items()
            if name in given and given[name].dtype != tensor.dtype
        )
    )


def non_finite(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Number of NaN or infinite values of each tensor; tensors without any are left out.

    Args:
        tensors: Tensors by name; nested dicts and lists get dotted names, other values are ignored.
    """
    floats = {
        name: tensor.detach()
        for name, tensor in _leaves(tensors, "")
        if tensor.is_floating_point() or tensor.is_complex()
    }
    suspects = [name for name, finite in _sums_are_finite(floats).items() if not finite]
    counts = {name: int((~torch.isfinite(floats[name])).sum()) for name in suspects}
    return {name: count for name, count in counts.items() if count}  # a sum may just be large


def has_nan(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a value is NaN; unlike infinity (in masks), NaN is never intended in a model."""
    return any(bool(tensor.isnan().any()) for tensor in weights.values())


def describe(counts: Mapping[str, int]) -> str:
    """The first entries that `non_finite` found, as part of a sentence."""
    shown = [f"{count} of {name}" for name, count in list(counts.items())[:_SHOWN]]
    more = len(counts) - len(shown)
    total, plural = sum(counts.values()), "s" * (len(counts) > 1)
    values = f"{total} value{'s' * (total > 1)} in {len(counts)} tensor{plural}"
    return f"{values} ({', '.join(shown)}{f', and {more} more tensors' if more else ''})"


def _sums_are_finite(tensors: Mapping[str, torch.Tensor]) -> dict[str, bool]:
    """Whether the sum of each tensor is finite; one device synchronization for all sums."""
    sums: dict[torch.device, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        values = tensor.abs() if tensor.is_complex() else tensor
        sums[tensor.device][name] = values.sum(dtype=torch.float32)
    found: dict[str, bool] = {}
    for group in sums.values():
        finite = torch.stack(list(group.values())).isfinite().tolist()
        found |= dict(zip(group, finite, strict=True))
    return found


def _leaves(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{name}.{index}")


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "whole"


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
