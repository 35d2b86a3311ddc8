"""A detector made ready for inference."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from sparsedet.modeling.detector import TokenSparseDetector


def prepare_for_inference(model: TokenSparseDetector) -> TokenSparseDetector:
    """A copy of a detector that answers the same, but for rounding, and sooner.

    The batch norms of a ``TorchvisionResNet`` become part of its convolutions, and convolutions
    keep their weights with the channels last, whereby maps become tokens without a transpose. The
    copy is in eval mode and its parameters require no gradient. It cannot be trained, and where
    norms were folded its state dict has other keys: load checkpoints before. A shorter format comes
    after: ``prepare_for_inference(model).to(torch.bfloat16)``.

    Args:
        model: a detector with its weights, in any mode, on any device; it stays as it is.

    Returns:
        The copy, on the device of the model.
    """
    copy = deepcopy(model).eval()
    fold = getattr(copy.backbone, "fold_norms_", None)  # other backbones have no norms to fold
    if fold is not None:
        fold()
    copy.requires_grad_(False)
    for part in (copy.backbone, copy.neck):
        assert isinstance(part, nn.Module)
        part.to(memory_format=torch.channels_last)
    return copy
