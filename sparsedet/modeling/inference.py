"""Prepare a detector for inference."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Detector = TypeVar("Detector", bound=nn.Module)


class _OneDNNLinear(nn.Linear):
    """``nn.Linear`` that uses oneDNN on a CPU, as torch does for dtypes other than fp32.

    For fp32, ``F.linear`` uses the BLAS that torch was built with, usually MKL, which reaches four
    fifths of oneDNN's speed on processors that are not made by Intel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``input[... in]`` to ``[... out]``."""
        if not self._is_for_onednn(input):
            return super().forward(input)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")

    def _is_for_onednn(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() > 0
            and not torch.is_grad_enabled()  # the oneDNN operator has no gradient
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


def prepare_for_inference(model: Detector) -> Detector:
    """A faster copy of a detector, with the same outputs up to rounding.

    The batch norms of a ``TorchvisionResNet`` are folded into its convolutions, and convolution
    weights are stored channels-last, so that maps become tokens without a transpose. On CPUs, fp32
    matrix products use oneDNN if torch has it. The copy is in eval mode and its parameters require
    no gradient. It is not for training, and if norms were folded, its state dict has other keys, so
    load checkpoints first. Convert to half precision afterwards:
    ``prepare_for_inference(model).to(torch.bfloat16)``.

    Args:
        model: a detector with its weights, in any mode, on any device; it is not changed. A
            detector of another codebase may have no ``backbone``.

    Returns:
        The copy, on the device of the model.

    Raises:
        TypeError: the model is not a detector.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(f"prepare_for_inference.model must be a detector, got {kind}.")
    copy = deepcopy(model).eval()
    backbone = getattr(copy, "backbone", None)
    fold = getattr(backbone, "fold_norms_", None)  # other backbones fold nothing
    if fold is not None:
        fold()
    copy.requires_grad_(False)
    if torch.backends.mkldnn.is_available():
        for module in copy.modules():
            if type(module) is nn.Linear:
                module.__class__ = _OneDNNLinear
    return copy.to(memory_format=torch.channels_last)
