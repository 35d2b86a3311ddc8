"""The loop over the layers of a decoder, with the predictions and references of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.layers.positional import inverse_sigmoid, sine_embedding
from sparsedet.modeling.heads import Heads
from sparsedet.modeling.parts import Assembly, Decoder
from sparsedet.modeling.stages import Prediction, Queries


def decode(
    layer: Callable[[int, Tensor, Tensor], Tensor],
    num_layers: int,
    queries: Queries,
    heads: Heads,
    *,
    norm: nn.Module | None,
    refine: bool,
    look_forward_twice: bool,
    eps: float,
) -> tuple[Prediction, ...]:
    """Let every layer update the queries and predict.

    Args:
        layer: maps (index of the layer, queries, references) to updated queries.
        num_layers: layers.
        queries: the input queries.
        heads: the heads of the layers.
        norm: normalizes the output of a layer before its predictions; boxes that become references
            are predicted from the output itself.
        refine: boxes of a layer, without gradient, are the next one's references.
        look_forward_twice: a layer's boxes are relative to the previous layer's with their
            gradient.
        eps: clamp of the inverse sigmoid of references.
    """
    x, reference = queries.content, queries.reference
    origin = reference  # what a layer's boxes are relative to, perhaps with a gradient
    predictions: list[Prediction] = []
    for index in range(num_layers):
        x = layer(index, x, reference)
        head, logits = heads.decoder(index), inverse_sigmoid(origin, eps)
        prediction = head(x if norm is None else norm(x), logits, queries.valid)
        predictions.append(prediction)
        if refine and index + 1 < num_layers:
            given = logits if origin is reference else logits.detach()
            origin = prediction.boxes
            if norm is not None or look_forward_twice:
                origin = head.box_logits(x, given).sigmoid()
            origin = origin if look_forward_twice else origin.detach()
            reference = origin.detach()
    return tuple(predictions)


def query_mask(queries: Queries) -> Float[Tensor, "_ 1 _ Q"] | None:
    """Additive self-attention mask of the queries: -inf where one must not attend to another.

    One mask for all layers and heads, with size 1 in a dimension over which it does not vary.
    (``nn.MultiheadAttention`` would merge its two masks into one for every head, in every layer.)
    """
    blocked = queries.attn_mask
    if queries.valid is not None:
        fillers = ~queries.valid[:, None, None]
        blocked = fillers if blocked is None else fillers | blocked
    elif blocked is not None:
        blocked = blocked[None, None]
    if blocked is None:
        return None
    return queries.content.new_zeros(blocked.shape).masked_fill_(blocked, float("-inf"))


def reference_sine(reference: Float[Tensor, "B Q D"], num_features: int) -> Float[Tensor, "B Q F"]:
    """Sine embedding of points or boxes in the order y, x, w, h of DAB-DETR.

    Args:
        reference: points or boxes in [0, 1].
        num_features: features per number.
    """
    columns, rows, sizes = reference.split((1, 1, reference.shape[-1] - 2), dim=-1)
    return sine_embedding(torch.cat((rows, columns, sizes), dim=-1), num_features)


def refuse_without(owner: str, name: str, needed: str, value: str = "True") -> None:
    """Refuse an option of a decoder without another option that it needs.

    Args:
        owner: the decoder's class.
        name: the option.
        needed: the other option.
        value: the value that the other option must have.

    Raises:
        ValueError: always, saying which of the two to change.
    """
    raise ValueError(
        f"{owner}.{name} must be False without {needed}, got True. "
        f"Set model.decoder.{needed}={value} or model.decoder.{name}=False."
    )


def check_positions(decoder: Decoder, assembly: Assembly) -> None:
    """Refuse queries without positions, or with two sources of them.

    Raises:
        ValueError: the message says what to change.
    """
    queries = assembly.query_initializer
    name, provides = type(queries).__name__, queries.provides_pos
    if provides == decoder.makes_pos:
        raise ValueError(
            f"TokenSparseDetector.decoder must {'not ' if provides else ''}make positions for "
            f"{name}, whose queries {'have' if provides else 'lack'} them, got "
            f"{decoder.makes_pos}. Set model.decoder.makes_pos={not provides}."
        )
    if decoder.makes_pos and queries.reference_dim != 4:
        raise ValueError(
            "TokenSparseDetector.decoder makes positions from boxes, but the references of "
            f"{name} are points. Set model.query_initializer."
        )
