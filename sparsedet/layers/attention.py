"""Scaled dot-product attention of all queries to all keys, plain and conditional."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsedet.layers.precision import without_autocast


def read_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head scaled dot-product attention ("Attention is all you need", section 3.2).

    Args:
        query: projected queries ``[B Q C]``.
        key: projected keys ``[B N C]``.
        value: projected values ``[B N D]``; ``D`` may differ from ``C``.
        num_heads: heads, each of consecutive channels.
        mask: ``[B or 1, heads or 1, Q or 1, N]``; bool with True = may be attended to, or numbers
            that are added to the logits; None = no mask.
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
    """Attention that every key receives, summed over the heads and the counted queries.

    Args:
        query: as in ``read_heads``.
        key: as in ``read_heads``.
        num_heads: as in ``read_heads``.
        counted: ``[B Q]``, the weight of each query in the sum.
        mask: bool, as in ``read_heads``.

    Returns:
        ``[B N]`` in float32, without gradient. A query of weight 1 contributes 1 per head in total.
    """
    with without_autocast(query.device):
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
    """Self-attention of the queries, with a mask that heads and layers share.

    Args:
        attention: the module with the weights.
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


class PlainAttention(nn.Module):
    """Attention with positions added to queries and keys before projection (DETR, section A.3).

    Args:
        embed_dim: channels.
        num_heads: heads.
        dropout: probability on the attention weights.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        mask: Tensor | None,
        *,
        counted: Tensor | None = None,
        sine: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Let ``x`` attend to ``tokens``.

        Args:
            x: queries, ``[B Q C]``.
            pos: positions of the queries, ``[B Q C]``.
            tokens: keys and values, ``[B N C]``.
            tokens_pos: positions of the tokens, ``[B N C]``.
            mask: see ``read_heads``.
            counted: see ``received_attention``; None = received attention is not computed.
            sine: not used here.

        Returns:
            The output ``[B Q C]``, and the attention that every token received from the counted
            queries, ``[B N]``, or None.
        """
        inputs = (x + pos, tokens + tokens_pos, tokens)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = map(F.linear, inputs, weights, biases)
        return _read(self, query, key, value, mask, counted)


class SplitAttention(nn.Module):
    """Attention on the sum of separate projections of content and position.

    This is the self-attention of Conditional DETR.

    Args:
        embed_dim: channels.
        num_heads: heads.
        dropout: probability on the attention weights.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_content, self.query_pos, self.key_content, self.key_pos, self.value = (
            nn.Linear(embed_dim, embed_dim) for _ in range(5)
        )
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        mask: Tensor | None,
        *,
        counted: Tensor | None = None,
        sine: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Let ``x`` attend to ``tokens``, see ``PlainAttention.forward``."""
        query = self.query_content(x) + self.query_pos(pos)
        key = self.key_content(tokens) + self.key_pos(tokens_pos)
        return _read(self, query, key, self.value(tokens), mask, counted)


class ConditionalAttention(nn.Module):
    """Conditional cross-attention: content and position are compared separately.

    The logit is the sum of both dot products (Conditional DETR, section 3.3): in every head, the
    channels of content and position are concatenated. The position of a query is the sine embedding
    of its reference point.

    Args:
        embed_dim: channels.
        num_heads: heads.
        dropout: probability on the attention weights.
        with_pos: also add the positions to the contents, as in the first decoder layer, where the
            queries have no content yet.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, dropout: float, with_pos: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_content, self.query_sine, self.key_content, self.key_pos, self.value = (
            nn.Linear(embed_dim, embed_dim) for _ in range(5)
        )
        self.query_pos = nn.Linear(embed_dim, embed_dim) if with_pos else None
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        mask: Tensor | None,
        *,
        counted: Tensor | None = None,
        sine: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Let ``x`` attend to ``tokens``, see ``PlainAttention.forward``.

        ``sine`` ``[B Q C]`` is the sine embedding of the reference point of each query.
        """
        assert sine is not None
        query, key = self.query_content(x), self.key_content(tokens)
        key_pos = self.key_pos(tokens_pos)
        if self.query_pos is not None:
            query, key = query + self.query_pos(pos), key + key_pos
        query, key = self._beside(query, self.query_sine(sine)), self._beside(key, key_pos)
        return _read(self, query, key, self.value(tokens), mask, counted)

    def _beside(self, content: Tensor, position: Tensor) -> Tensor:
        """Concatenate the channels of content and position in every head."""
        parts = [x.unflatten(-1, (self.num_heads, -1)) for x in (content, position)]
        return torch.cat(parts, dim=-1).flatten(-2)


def _read(
    attention: PlainAttention | SplitAttention | ConditionalAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    counted: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The projected attention output, and the attention received from counted queries."""
    heads, dropout = attention.num_heads, attention.dropout
    rate = dropout.p if dropout.training else 0.0
    read = read_heads(query, key, value, heads, mask=mask, dropout=rate)
    mass = None
    if counted is not None:
        mass = received_attention(query, key, heads, counted, mask=mask)
    return attention.out_proj(read), mass


def before(x: Tensor, norm: nn.Module, *, norm_first: bool) -> Tensor:
    """The input of a block: normalized if ``norm_first``."""
    return norm(x) if norm_first else x


def after(x: Tensor, update: Tensor, norm: nn.Module, *, norm_first: bool) -> Tensor:
    """The residual sum of a block: normalized unless ``norm_first``."""
    return x + update if norm_first else norm(x + update)


def draw_matrices(module: nn.Module) -> None:
    """Initialize every matrix as the released code of the DETR family does (Xavier)."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
