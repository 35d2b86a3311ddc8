"""A detector made ready for inference."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Detector = TypeVar("Detector", bound=nn.Module)


class _OneDNNLinear(nn.Linear):
    """``nn.Linear`` that a CPU computes by oneDNN, as torch does for other formats than fp32.

    For fp32, ``F.linear`` takes the BLAS that torch was built with, MKL as a rule, which reaches
    four fifths of oneDNN's speed on processors that are not Intel's.
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
            and not torch.is_grad_enabled()  # what follows has no gradient
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


def prepare_for_inference(model: Detector) -> Detector:
    """A copy of a detector that answers the same, but for rounding, and sooner.

    The batch norms of a ``TorchvisionResNet`` become part of its convolutions, and convolutions
    keep their weights with the channels last, whereby maps become tokens without a transpose. On
    CPUs matrix products in fp32 are oneDNN's where torch has it. The copy is in eval mode and its
    parameters require no gradient. It is not for training, and where norms were folded its state
    dict has other keys: load checkpoints before. A shorter format comes after:
    ``prepare_for_inference(model).to(torch.bfloat16)``.

    Args:
        model: a detector with its weights, in any mode, on any device; it stays as it is. One of
            another codebase may have no ``backbone``.

    Returns:
        The copy, on the device of the model.

    Raises:
        TypeError: the model is no detector.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(f"prepare_for_inference.model must be a detector, got {kind}.")
    copy = deepcopy(model).eval()
    backbone = getattr(copy, "backbone", None)
    fold = getattr(backbone, "fold_norms_", None)  # other backbones have no norms to fold
    if fold is not None:
        fold()
    copy.requires_grad_(False)
    if torch.backends.mkldnn.is_available():
        for module in copy.modules():
            if type(module) is nn.Linear:
                module.__class__ = _OneDNNLinear
    return copy.to(memory_format=torch.channels_last)
