"""Let models of transformers compute deformable attention with this library's op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsedet.compat import multi_scale_deformable_attn_pytorch

__all__ = ["KernelSwap", "restore_kernel", "use_sparsedet_kernel"]


@dataclass
class KernelSwap:
    """The changes of :func:`use_sparsedet_kernel`; a context manager that undoes them at the end.

    Attributes:
        model: the model.
        changed: names of the modules that now sample with this library's op.
        left: names of the modules with deformable attention that stay unchanged, and why.
    """

    model: nn.Module
    changed: tuple[str, ...]
    left: dict[str, str] = field(default_factory=dict)

    def undo(self) -> None:
        """Restore the sampling of transformers in the changed modules."""
        for name in self.changed:
            _restore(self.model.get_submodule(name))

    def __enter__(self) -> KernelSwap:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} modules use sparsedet's op: {', '.join(self.changed)}"]
        lines += [f"unchanged: {name}, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def use_sparsedet_kernel(model: nn.Module) -> KernelSwap:
    """Make the deformable attention of a transformers model use this library's op, in place.

    Only the sampling changes: parameters, state dict, configuration, masks and hooks stay as they
    are, and copying, pickling and ``save_pretrained`` work as before. A changed module is an
    instance of a subclass of its class. A model that already uses the op stays as it is.

    Args:
        model: a model of transformers, or a module that holds one.

    Returns:
        The names of the changed modules, of those that stay unchanged and why, and ``undo``.

    Raises:
        TypeError: If the model is not a module.
        ValueError: If the model has no deformable attention that the op can compute.
    """
    _check_module(model, "use_sparsedet_kernel")
    changed, left, there_already = [], {}, False
    for name, module in model.named_modules():
        if _is_swapped(module):
            there_already = True
            continue
        seam = where_it_samples(type(module))
        reason = _reason_to_leave(module, seam)
        if reason:
            left[name] = reason
        elif seam:
            module.__class__ = _with_kernel(type(module))
            changed.append(name)
    swap = KernelSwap(model, tuple(changed), left)
    if not changed and not there_already:
        found = f"only modules that it cannot: {left}" if left else "no deformable attention"
        raise ValueError(
            "use_sparsedet_kernel.model must have deformable attention that the op can compute, "
            f"but {type(model).__name__} has {found}. Use the model as it is."
        )
    return swap


def restore_kernel(model: nn.Module) -> tuple[str, ...]:
    """Restore the sampling of transformers in a model or a copy of it, in place.

    Args:
        model: a model that :func:`use_sparsedet_kernel` changed.

    Returns:
        The names of the modules that were changed back.

    Raises:
        TypeError: If the model is no module.
    """
    _check_module(model, "restore_kernel")
    return tuple(name for name, module in model.named_modules() if _restore(module))


def _check_module(model: Any, function: str) -> None:
    if not isinstance(model, nn.Module):
        got = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{function}.model must be a torch module, got {got}. Build the model.")


# Where a class samples: in its own forward, or in a function that it finds in an attribute or in
# its Python module.
_ARGUMENTS = (
    "self", "value", "value_spatial_shapes", "value_spatial_shapes_list", "level_start_index",
    "sampling_locations", "attention_weights", "im2col_step",
)  # fmt: skip
_ATTRIBUTE = "ms_deformable_attn_core"
_ONE_NUMBER, _BY_LEVEL = "multi_scale_deformable_attention", "multi_scale_deformable_attention_v2"
_REPLACES = "_sparsedet_replaces"


def _sample_module(
    self: nn.Module,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes_list, sampling_locations, attention_weights
    )


def _sample_by_level(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> Tensor:
    """Sample with a different number of points for each level, all in one axis."""
    assert method == "default"
    most, counts = max(num_points_list), list(num_points_list)
    locations = [
        # padding points lie outside of the map, where nothing is read
        F.pad(part, (0, 0, 0, most - part.shape[3]), value=-1.0)
        for part in sampling_locations.split(counts, dim=3)
    ]
    weights = [
        F.pad(part, (0, most - part.shape[3])) for part in attention_weights.split(counts, 3)
    ]
    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes, torch.stack(locations, 3), torch.stack(weights, 3)
    )


_FUNCTIONS = {_ONE_NUMBER: multi_scale_deformable_attn_pytorch, _BY_LEVEL: _sample_by_level}


def where_it_samples(kind: type[nn.Module]) -> str | None:
    """Where modules of a class sample: "forward", or the name of the function that they call.

    Args:
        kind: the class.

    Returns:
        None if they do not sample, or sample in an unknown way.
    """
    forward = kind.forward
    if not isinstance(forward, FunctionType):
        return None
    if tuple(signature(forward).parameters) == _ARGUMENTS:
        return "forward"
    names = set(forward.__code__.co_names)
    if _ATTRIBUTE in names:
        return _ATTRIBUTE
    return next((name for name in _FUNCTIONS if name in names), None)


def _reason_to_leave(module: nn.Module, seam: str | None) -> str | None:
    method = getattr(module, "method", getattr(module, "decoder_method", "default"))
    if seam in (_ATTRIBUTE, _BY_LEVEL) and method != "default":
        return f"its method {method!r} does not interpolate"
    named = "scaledeformableattention" in type(module).__name__.lower()
    if (
        named
        and seam is None
        and not any(where_it_samples(type(child)) for child in module.children())
    ):
        return f"{type(module).__name__} samples in an unknown way"
    return None


@cache
def _with_kernel(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of ``kind`` with the same name that samples with the op."""
    seam = where_it_samples(kind)
    members: dict[str, Any] = {_REPLACES: kind, "__module__": __name__, "__doc__": kind.__doc__}
    members["__reduce_ex__"] = _reduce
    if seam == "forward":
        members["forward"] = _sample_module
    elif seam == _ATTRIBUTE:
        members[_ATTRIBUTE] = property(lambda self: _sample_by_level)
    else:
        assert seam is not None
        members["forward"] = _with_function(kind.forward, seam)
    return type(kind.__name__, (kind,), members)


def _with_function(forward: Callable[..., Any], name: str) -> FunctionType:
    """A copy of a function in which one of our functions replaces a global name."""
    assert isinstance(forward, FunctionType)
    names = {**forward.__globals__, name: _FUNCTIONS[name]}
    made = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    made.__kwdefaults__, made.__annotations__ = forward.__kwdefaults__, forward.__annotations__
    return made


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Support copying and pickling, since such a class cannot be imported by its name."""
    kind = getattr(type(self), _REPLACES)
    _, _, *state = super(_with_kernel(kind), self).__reduce_ex__(protocol)
    return _empty, (kind,), *state


def _empty(kind: type[nn.Module]) -> nn.Module:
    """An uninitialized instance of ``kind`` with the op."""
    made = _with_kernel(kind)
    return made.__new__(made)


def _is_swapped(module: nn.Module) -> bool:
    return _REPLACES in type(module).__dict__


def _restore(module: nn.Module) -> bool:
    if not _is_swapped(module):
        return False
    module.__class__ = getattr(type(module), _REPLACES)
    return True
