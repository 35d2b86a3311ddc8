"""Scaled dot-product attention of all queries to all keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def read_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What the queries read from the values ("Attention is all you need", section 3.2).

    Args:
        query: projected queries ``[B Q C]``.
        key: projected keys ``[B N C]``.
        value: projected values ``[B N D]``; ``D`` may differ from ``C``.
        num_heads: heads, each of consecutive channels.
        mask: ``[B or 1, heads or 1, Q or 1, N]``; bool with True = is seen, or numbers that are
            added to the logits; None = all is seen.
        dropout: probability on the attention weights.

    Returns:
        ``[B Q D]``.
    """
    heads = (_heads(x, num_heads) for x in (query, key, value))
    read = F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=dropout)
    return read.transpose(1, 2).flatten(2)


@torch.no_grad()
def received_attention(
    query: Tensor, key: Tensor, num_heads: int, counted: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    """Attention that every key gets, summed over the heads and the counted queries.

    Args:
        query: as in ``read_heads``.
        key: as in ``read_heads``.
        num_heads: as in ``read_heads``.
        counted: ``[B Q]``, the factor of each query.
        mask: bool, as in ``read_heads``.

    Returns:
        ``[B N]`` in float32, without gradient; of each counted query 1 per head in all.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k = (_heads(x.float(), num_heads) for x in (query, key))
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return torch.einsum("bmqn,bq->bn", logits.softmax(-1), counted.float())


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attend(
    attention: nn.MultiheadAttention, q: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """``attention`` of queries among themselves, with a mask that heads and layers share.

    Args:
        attention: whose weights are used.
        q: queries and keys ``[B Q C]``.
        value: values ``[B Q C]``.
        mask: see ``read_heads``.
    """
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    query, key = F.linear(q, weight[: 2 * width], bias[: 2 * width]).chunk(2, dim=-1)
    value = F.linear(value, weight[2 * width :], bias[2 * width :])
    dropout = attention.dropout if attention.training else 0.0
    read = read_heads(query, key, value, attention.num_heads, mask=mask, dropout=dropout)
    return attention.out_proj(read)
