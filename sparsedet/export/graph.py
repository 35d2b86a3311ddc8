"""Trace a detector as one tensor program, from pixels to detections."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sparsedet.export.contract import AnySize, ExportError
from sparsedet.export.sampling import gathered_attention
from sparsedet.layers.constants import constants
from sparsedet.layers.deformable_attention.operator import FORWARD
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.detector import top_detections
from sparsedet.modeling.stages import DetectorOutput, Size
from sparsedet.structures import cxcywh_to_xyxy

_MOST_PIXELS = 100_000_000


class DeployedDetector(nn.Module):
    """The computation of an exported file.

    Args:
        detector: a detector in eval mode, with the weight type of the file.
    """

    def __init__(self, detector: TokenSparseDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, ...]:
        """Detect objects in pictures that fill the whole input.

        Args:
            images: RGB in 0..255.

        Returns:
            Scores ``[B n]`` in descending order, -1 for unused entries; labels ``[B n]``; boxes
            ``[B n 4]``, xyxy in pixels of the input; and, if the encoder updates only some cells,
            the cells ``[B k]`` that its first layer updates, best first, padded with -1.
        """
        model, (height, width) = self.detector, images.shape[-2:]
        normalized = (images - model.pixel_mean) / model.pixel_std
        output = model.detect(normalized, ((height, width),))
        scores, labels, boxes = top_detections(output.decoder[-1], model.max_detections)
        sides = constants((width, height, width, height), boxes.device)
        answer = (scores.float(), labels, cxcywh_to_xyxy(boxes).clamp(0.0, 1.0) * sides)
        kept = _kept_cells(output)
        return answer if kept is None else (*answer, kept)


def _kept_cells(output: DetectorOutput) -> Tensor | None:
    """Cells of all levels that the first encoder layer updates; None if it updates all cells."""
    features = output.features
    first = output.selections[0] if output.selections else features.all_tokens
    kept = first.indices
    if features.in_parts:
        cells = torch.arange(features.num_cells, device=features.tokens.device)
        cells = features.of_cells(cells.expand(features.batch_size, -1))
        cells = cells.masked_fill(features.padding_mask, -1)
        kept = cells if kept is None else cells.gather(1, kept)
    if kept is None or first.valid is None:
        return kept
    return kept.where(first.valid, -1)


def require_exportable(model: nn.Module) -> TokenSparseDetector:
    """Refuse models with parts that cannot be exported.

    Raises:
        ExportError: the model, or a part of it, cannot be exported.
    """
    if not isinstance(model, TokenSparseDetector):
        raise ExportError(
            f"{type(model).__name__} cannot be exported, only a TokenSparseDetector. torchvision's "
            "detectors have their own exporters."
        )
    for name, part in model.named_modules():
        reason = getattr(part, "not_exportable", None)
        if reason is not None:
            raise ExportError(f"model.{name} cannot be exported: {type(part).__name__} {reason}")
    return model


def require_size(model: TokenSparseDetector, size: Size) -> None:
    """Refuse sizes that the backbone would have to pad, and sizes that are not positive.

    Raises:
        ExportError: names the nearest size that fits.
    """
    if size[0] * size[1] > _MOST_PIXELS and min(size) > 0:
        raise ExportError(
            f"--size {size[0]} {size[1]} has more than {_MOST_PIXELS} pixels. Set a smaller one, "
            "and use --tiles for larger pictures."
        )
    step = model.size_divisibility
    fitting = tuple(max(1, -(-side // step)) * step for side in size)
    if fitting != tuple(size):
        what = f"multiples of {step} for this backbone" if min(size) > 0 else "positive"
        raise ExportError(
            f"--size must be {what}, got {size[0]} {size[1]}. Set --size {fitting[0]} {fitting[1]}."
        )


def any_size(model: TokenSparseDetector, short_side: int, max_size: int) -> AnySize:
    """The input sizes of a program that takes pictures of any size.

    Sides are multiples of the coarsest stride, so that all levels cover the same area without
    padding. They are large enough to have a token for every query, more than one row and column
    in every level, and the ``least_side`` of the backbone. Then one program is valid for all of
    these sizes.

    Args:
        model: the detector.
        short_side: pixels that the short side is resized to.
        max_size: upper limit of the long side in pixels.

    Raises:
        ExportError: a part of the model works only with one size.
    """
    for name, reason in _fixed_to_one_size(model):
        raise ExportError(
            f"model.{name} cannot be exported for any size: {type(getattr(model, name)).__name__} "
            f"{reason}. Leave --dynamic size out and export a file for each --size."
        )
    multiple = math.lcm(model.size_divisibility, *model.strides)
    cells = sum((multiple // stride) ** 2 for stride in model.strides)
    blocks = math.isqrt(getattr(model.query_initializer, "num_queries", 0) // cells) + 1
    blocks = max(2, blocks, math.ceil(getattr(model.backbone, "least_side", 1) / multiple))
    return AnySize(short_side, max_size, multiple, blocks * multiple)


def _fixed_to_one_size(model: TokenSparseDetector) -> Iterator[tuple[str, str]]:
    """The parts that work with one size only, and why."""
    if model.regions is not None:
        yield "regions", "cuts pictures into tiles, whose number is fixed in a program"
    if not getattr(model.selector, "one_more", True):
        yield (
            "selector",
            "with one_more=False rounds numbers of tokens in single precision, which programs "
            "cannot do with sizes",
        )
    if getattr(model.backbone, "pads_windows", False):
        yield (
            "backbone",
            "pads the maps of timm's Swin to whole windows, whose sizes torch.export does not work "
            "out in reasonable time",
        )


def trace(
    model: TokenSparseDetector,
    size: Size,
    *,
    custom_op: bool,
    dynamic_batch: bool = False,
    sizes: AnySize | None = None,
) -> ExportedProgram:
    """Trace the program of a detector.

    Args:
        model: a detector in eval mode.
        size: (h, w) in pixels of the pictures; an example if the program takes other sizes too.
        custom_op: keep ``torch.ops.sparsedet.ms_deform_attn``; otherwise gathers replace it, and
            the program runs without sparsedet.
        dynamic_batch: the program takes any number of pictures.
        sizes: the program takes pictures of these sizes; None = only of ``size``.

    Raises:
        ExportError: a part cannot be traced; the message names it.
    """
    images = torch.zeros(2 if dynamic_batch else 1, 3, *size, device=model.device)
    dynamic: dict[int, Any] = {0: Dim("batch", min=1)} if dynamic_batch else {}
    if sizes is not None:
        for axis, name in ((2, "rows"), (3, "columns")):
            dynamic[axis] = sizes.multiple * Dim(name, min=sizes.least // sizes.multiple)
    with torch.no_grad():
        try:
            program = torch.export.export(
                DeployedDetector(model).eval(), (images,), dynamic_shapes=(dynamic,)
            )
        except Exception as error:  # a custom part may raise any class of error
            raise _untraceable(model, error) from error
        if not custom_op:
            program = program.run_decompositions({FORWARD: gathered_attention})
    for node in program.graph.nodes:  # source lines are larger than the graph
        node.meta.pop("stack_trace", None)
    return program


def _untraceable(model: nn.Module, error: Exception) -> ExportError:
    """An error that names the innermost module that was running when tracing failed, and why."""
    names, culprit, place = {id(part): name for name, part in model.named_modules()}, "", ""
    for frame, line in walk_tb(error.__traceback__):
        name = names.get(id(frame.f_locals.get("self")))
        if name is not None:
            culprit, place = name, f"{Path(frame.f_code.co_filename).name}:{line}"
    part = model.get_submodule(culprit)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ExportError(
        f"{'.'.join(('model', culprit)).rstrip('.')} cannot be exported: {type(part).__name__} "
        f"({place}) cannot be traced ({reason}). A program has the same steps and sizes for every "
        "picture: do not read tensor values on the host in this part, or use another part."
    )
