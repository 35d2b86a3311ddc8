"""The decoder whose queries attend to all tokens."""

from __future__ import annotations

from collections.abc import Collection
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.mlp import MLP, Activation, FeedForward
from sparsedet.modeling.decoding import (
    check_positions,
    decode,
    query_mask,
    reference_sine,
    require_option,
)
from sparsedet.modeling.global_attention import PlainAttention, after, before, draw_matrices
from sparsedet.modeling.heads import Heads, require_heads
from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.stages import DecoderOutput, MultiScaleFeatures, Queries
from sparsedet.registry import DECODERS


class GlobalDecoderLayer(nn.Module):
    """Self-attention, cross-attention to all tokens, feed-forward block (DETR, section A.3).

    Args:
        embed_dim: channels.
        num_heads: heads of both attentions.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability, in the residual branches, on the attention weights and after the
            activation.
        activation: see ``FeedForward``.
        norm_first: normalize what enters the blocks instead of what leaves them.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        feedforward_dim: int,
        dropout: float,
        activation: Activation,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attention = PlainAttention(embed_dim, num_heads, dropout=dropout)
        self.self_attention_norm = nn.LayerNorm(embed_dim)
        self.cross_attention = PlainAttention(embed_dim, num_heads, dropout=dropout)
        self.cross_attention_norm = nn.LayerNorm(embed_dim)
        self.feedforward = FeedForward(
            embed_dim, feedforward_dim, dropout=dropout, activation=activation
        )
        self.feedforward_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B Q C"],
        pos: Float[Tensor, "B Q C"],
        mask: Float[Tensor, "_ 1 _ Q"] | None,
        tokens: Float[Tensor, "B N C"],
        tokens_pos: Float[Tensor, "B N C"],
        seen: Bool[Tensor, "B 1 1 N"] | None,
        counted: Float[Tensor, "B Q"] | None,
    ) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B N"] | None]:
        """Update ``x``; also the attention that the tokens get from the counted queries."""
        first = self.norm_first
        y = before(x, self.self_attention_norm, norm_first=first)
        read, _ = self.self_attention(y, pos, y, pos, mask)
        x = after(x, self.dropout(read), self.self_attention_norm, norm_first=first)
        y = before(x, self.cross_attention_norm, norm_first=first)
        read, mass = self.cross_attention(y, pos, tokens, tokens_pos, seen, counted)
        x = after(x, self.dropout(read), self.cross_attention_norm, norm_first=first)
        y = before(x, self.feedforward_norm, norm_first=first)
        update = self.dropout(self.feedforward(y))
        return after(x, update, self.feedforward_norm, norm_first=first), mass


@DECODERS.register()
class GlobalDecoder(nn.Module):
    """Decoder whose queries attend to all unpadded tokens (DETR, section A.3).

    It takes features of any number of levels as one sequence. Predictions are made from a LayerNorm
    of every layer's output, which all layers share.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability.
        num_layers: layers.
        activation: see ``FeedForward``.
        norm_first: normalize what enters the blocks instead of what leaves them.
        refine: the boxes of a layer, without gradient, are the next layer's references. Otherwise
            all layers start from the initial reference.
        look_forward_twice: a layer's boxes are relative to the previous layer's with their gradient
            (DINO, section 3.5; DAB-DETR's released code).
        conditional_pos: see ``DeformableDecoder``. For queries that come without positions.
        eps: clamp of the inverse sigmoid of references.
        activation_checkpointing: in training, keep only the inputs of the layers and compute what
            the backward needs anew.
    """

    num_levels = None  # any

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        *,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        num_layers: int = 6,
        activation: Activation = "relu",
        norm_first: bool = False,
        refine: bool = False,
        look_forward_twice: bool = False,
        conditional_pos: bool = False,
        eps: float = 1e-5,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_positive(num_layers, "GlobalDecoder.num_layers", key="model.decoder.num_layers")
        require_option("GlobalDecoder", "look_forward_twice", look_forward_twice, refine=refine)
        self.embed_dim, self.num_layers = embed_dim, num_layers
        self.refine, self.look_forward_twice, self.eps = refine, look_forward_twice, eps
        self.makes_pos = conditional_pos
        self.activation_checkpointing = activation_checkpointing
        self.norm = nn.LayerNorm(embed_dim)
        self.pos_mlp = (
            MLP(2 * embed_dim, embed_dim, hidden_dim=embed_dim, num_layers=2)
            if conditional_pos
            else None
        )
        self.layers = nn.ModuleList(
            GlobalDecoderLayer(
                embed_dim,
                num_heads,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
                activation=activation,
                norm_first=norm_first,
            )
            for _ in range(num_layers)
        )
        draw_matrices(self)

    def check(self, assembly: Assembly) -> None:
        """Refuse queries whose positions nobody makes, or two do.

        Raises:
            ValueError: the message says what to change.
        """
        check_positions(self, assembly)

    def forward(
        self,
        queries: Queries,
        memory: MultiScaleFeatures,
        heads: Heads,
        *,
        record: Collection[str] = (),
    ) -> DecoderOutput:
        """Decode.

        Args:
            queries: what to start from.
            memory: encoded features.
            heads: the heads of the decoder layers.
            record: ``{"token_mass"}`` to accumulate the cross-attention mass on the tokens.
        """
        require_heads(heads, self, "decoder")
        recompute = self.activation_checkpointing and self.training
        mask, padding = query_mask(queries), memory.padding_if_any
        seen = None if padding is None else ~padding[:, None, None]
        counted = counted_queries(queries) if "token_mass" in record else None
        masses: list[Tensor] = []

        def update(index: int, x: Tensor, reference: Tensor) -> Tensor:
            layer, pos = self.layers[index], queries.pos
            if self.pos_mlp is not None:
                sine = reference_sine(reference, self.embed_dim // 2)
                pos = self.pos_mlp(sine.to(x.dtype))
            inputs = (x, pos, mask, memory.tokens, memory.pos, seen, counted)
            x, mass = (
                checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
            )
            masses.append(mass)
            return x

        predictions = decode(
            update,
            self.num_layers,
            queries,
            heads,
            norm=self.norm,
            refine=self.refine,
            look_forward_twice=self.look_forward_twice,
            eps=self.eps,
        )
        return DecoderOutput(predictions, None if counted is None else reduce(torch.add, masses))


def counted_queries(queries: Queries) -> Float[Tensor, "B Q"]:
    """1 for the queries whose attention counts: those that are matched and stand for something."""
    counted = torch.ones(queries.content.shape[:2], device=queries.content.device)
    if queries.valid is not None:
        counted = counted * queries.valid
    counted[:, : queries.num_denoising] = 0.0
    return counted
