"""Computations that run in fp32 whatever the dtype of the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context that turns autocast off, or a null context if it is off already.

    An exported program would contain the context as an operator, and could not be loaded again.

    Args:
        device: the device of the tensors.
    """
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def in_float32(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` computed in fp32, also under autocast and with weights in half precision.

    Scores and references are computed this way: half precision makes scores equal, which changes
    the selection.

    Args:
        module: a module of one input.
        x: its input.

    >>> in_float32(nn.Linear(2, 3).bfloat16(), torch.ones(1, 2)).dtype
    torch.float32
    """
    with without_autocast(x.device):
        if all(parameter.dtype == torch.float32 for parameter in module.parameters()):
            return module(x.float())
        lifted = {name: parameter.float() for name, parameter in module.named_parameters()}
        return torch.func.functional_call(module, lifted, (x.float(),))
