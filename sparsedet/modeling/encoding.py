"""The loop of all encoders: which rows a layer updates, and where they go afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsedet.modeling.heads import Heads
from sparsedet.modeling.stages import (
    EncoderOutput,
    MultiScaleFeatures,
    Prediction,
    TokenSelection,
)

Along = tuple[Tensor, ...]
"""What goes with the rows of the kept tokens, such as their positions."""
Inputs = Callable[[int, Tensor, Along, TokenSelection, Tensor], tuple[Any, ...]]


def encode(
    layers: Iterable[Callable[..., Tensor]],
    inputs: Inputs,
    features: MultiScaleFeatures,
    selections: Sequence[TokenSelection],
    heads: Heads | None,
    *,
    along: Along,
    aux: bool,
    recompute: bool,
) -> EncoderOutput:
    """Let every layer update the tokens of its selection.

    A layer whose tokens are the first of the previous layer's goes on with their rows; another one
    gathers its rows from the map, multiplied by the weights of the selection if it has any. The
    updated rows are written into the map. Pooled tokens of the features follow these rows in every
    layer and are updated as they are.

    Args:
        layers: each maps its inputs to updated rows ``[B K C]``, pooled ones last.
        inputs: maps (layer, rows and pooled ones, what goes along with the rows, selection, map) to
            those inputs.
        features: the encoder's input.
        selections: one per layer.
        heads: auxiliary heads; None = there are none.
        along: tensors ``[B N ...]`` of all tokens that are gathered as the rows are.
        aux: evaluate the auxiliary heads that exist.
        recompute: keep only the inputs of the layers for the backward.
    """
    supervised = heads.num_encoder if aux and heads is not None else 0
    proposals = heads.proposals(features) if heads is not None and supervised else None
    memory, predictions, pooled = features.tokens, [], features.pooled
    without_cell = memory[:, :0] if pooled is None else pooled.tokens
    rows, gathered, previous = memory, along, None
    for index, (layer, selection) in enumerate(zip(layers, selections, strict=True)):
        if previous is not None and selection.weight is None and selection.begins(previous):
            rows, *gathered = (selection.first_rows(x) for x in (rows, *gathered))
        elif selection is not previous:
            rows = _weighted_rows(selection, memory)
            gathered = [selection.gather(x) for x in along]
        previous = selection
        num_rows, rows = rows.shape[1], _joined(rows, without_cell)
        given = inputs(index, rows, tuple(gathered), selection, memory)
        rows = checkpoint(layer, *given, use_reentrant=False) if recompute else layer(*given)
        rows, without_cell = rows[:, :num_rows], rows[:, num_rows:]
        memory = _written(selection, memory, rows, features.tokens)
        if heads is not None and proposals is not None and index < supervised:
            predictions.append(_auxiliary(heads, index, rows, selection, proposals))
    if pooled is not None:
        features = replace(features, pooled=replace(pooled, tokens=without_cell))
    return EncoderOutput(features.with_tokens(memory), tuple(predictions))


def _joined(rows: Tensor, without_cell: Tensor) -> Float[Tensor, "B S C"]:
    return torch.cat((rows, without_cell), dim=1) if without_cell.shape[1] else rows


def _written(
    selection: TokenSelection, memory: Tensor, rows: Tensor, given: Tensor
) -> Float[Tensor, "B N C"]:
    """``memory`` with the updated rows: a copy of the caller's map, or when autograd records."""
    if selection.indices is None or memory is given or torch.is_grad_enabled():
        return selection.scatter(memory, rows)
    return selection.scatter_(memory, rows)


def _weighted_rows(selection: TokenSelection, memory: Tensor) -> Tensor:
    rows = selection.gather(memory)
    if selection.weight is None:
        return rows
    return rows * selection.weight[..., None].to(rows.dtype)


def _auxiliary(
    heads: Heads,
    index: int,
    rows: Tensor,
    selection: TokenSelection,
    proposals: tuple[Tensor, Tensor],
) -> Prediction:
    boxes, valid = (selection.gather(x) for x in proposals)
    if selection.valid is not None:
        valid = valid & selection.valid
    return heads.encoder(index)(rows, boxes, valid)
