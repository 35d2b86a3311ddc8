"""The loop over the layers of an encoder: gather rows, update them, write them back."""

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
"""Tensors that are gathered with the rows of the kept tokens, such as their positions."""
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

    A layer whose tokens are a prefix of the previous layer's continues with their rows. Another
    layer gathers its rows from the map and multiplies them by the weights of the selection, if any.
    Updated rows are written back to the map. Pooled tokens of the features are appended to the rows
    in every layer and are updated with them.

    Args:
        layers: each maps its inputs to updated rows ``[B K C]``, pooled ones last.
        inputs: maps (layer, rows and pooled tokens, tensors gathered with the rows, selection, map)
            to these inputs.
        features: the encoder's input.
        selections: one per layer.
        heads: auxiliary heads; None = there are none.
        along: tensors ``[B N ...]`` of all tokens that are gathered with the rows.
        aux: evaluate the auxiliary heads that exist.
        recompute: store only the inputs of the layers, and recompute the rest in the backward pass.
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
    """``memory`` with the updated rows; copied if it is the caller's map or autograd records."""
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
