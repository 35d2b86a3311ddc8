"""The stages of a detector and their modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn

from sparsedet.modeling import TokenSparseDetector, TorchvisionDetector

Detector = TokenSparseDetector | TorchvisionDetector
LOOK = "look"
"""The stage of backbone and neck on the tiles that regions chose at a glance."""

_TORCHVISION_HEADS = ("rpn", "roi_heads", "head")


def stage_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules in the order in which they run, with the stage that each belongs to.

    Raises:
        ValueError: the model is not a detector of this package.
    """
    if isinstance(model, TorchvisionDetector):
        found = {"backbone": model.backbone, "neck": getattr(model.detector.backbone, "fpn", None)}
        found |= {name: getattr(model.detector, name, None) for name in _TORCHVISION_HEADS}
        return [(name, part) for name, part in found.items() if part is not None]
    if not isinstance(model, TokenSparseDetector):
        raise ValueError(
            "The model must be a TokenSparseDetector or a TorchvisionDetector, got a "
            f"{type(model).__name__}."
        )
    regions = model.regions
    parts = [
        ("backbone", model.backbone),
        ("neck", model.neck),
        *(("scorer", getattr(regions, name, None)) for name in ("scorer", "selector")),
        (LOOK, getattr(regions, "look", None)),
        ("scorer", model.scorer),
        ("scorer", model.selector),
        ("encoder", model.encoder),
        ("query_initializer", model.query_initializer),
        ("decoder", model.decoder),
        *(("heads", module) for module in model.heads.decoder_heads.modules()),
    ]
    return [(name, cast(nn.Module, part)) for name, part in parts if part is not None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
