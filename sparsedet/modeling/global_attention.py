"""The encoder with global attention: every token attends to all tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparsedet.layers.arguments import require_layers
from sparsedet.layers.attention import (
    PlainAttention,
    SplitAttention,
    after,
    before,
    draw_matrices,
)
from sparsedet.layers.mlp import MLP, Activation, FeedForward
from sparsedet.modeling.encoding import Along, encode
from sparsedet.modeling.heads import Heads
from sparsedet.modeling.parts import Assembly, Pooler
from sparsedet.modeling.stages import (
    EncoderOutput,
    MultiScaleFeatures,
    TokenScores,
    TokenSelection,
)
from sparsedet.registry import ENCODERS


class GlobalEncoderLayer(nn.Module):
    """Self-attention and feed-forward block, each with a residual and a LayerNorm.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability, in the residual branches, on the attention weights and after the
            activation.
        activation: see ``FeedForward``.
        norm_first: normalize the inputs of the blocks instead of their outputs.
        split_pos: see ``GlobalEncoder``.
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
        split_pos: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        attention = SplitAttention if split_pos else PlainAttention
        self.attention = attention(embed_dim, num_heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.feedforward = FeedForward(
            embed_dim, feedforward_dim, dropout=dropout, activation=activation
        )
        self.feedforward_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        rows: Float[Tensor, "B K C"],
        pos: Float[Tensor, "B K C"],
        seen: Bool[Tensor, "B 1 1 K"] | None,
    ) -> Float[Tensor, "B K C"]:
        """Update ``rows``, which attend to those that are ``seen`` (None = all)."""
        first = self.norm_first
        x = before(rows, self.attention_norm, norm_first=first)
        read = self.dropout(self.attention(x, pos, x, pos, seen)[0])
        rows = after(rows, read, self.attention_norm, norm_first=first)
        x = before(rows, self.feedforward_norm, norm_first=first)
        update = self.dropout(self.feedforward(x))
        return after(rows, update, self.feedforward_norm, norm_first=first)


@ENCODERS.register()
class GlobalEncoder(nn.Module):
    """Encoder whose layers let the selected tokens attend to each other (DETR, section A.3).

    Without a selection it is DETR's encoder. With a selection, kept tokens attend only to each
    other and are written back to the map; other tokens are unchanged, and the decoder reads them
    too. With a ``pool``, pooled tokens replace the others: they pass through all layers with the
    kept tokens, and the decoder reads only kept and pooled tokens (PnP-DETR). The levels of the
    features form one sequence.

    Weights of a selection multiply its tokens as in ``DeformableEncoder``.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability.
        num_layers: layers; 0 = the map is not changed.
        activation: see ``FeedForward``.
        norm_first: normalize the inputs of the blocks instead of their outputs, and the whole map
            at the end (DETR's ``pre_norm``, with which UP-DETR was trained).
        scale_pos: multiply the positions in every layer by a function of the tokens, which all
            layers share (DAB-DETR's released code).
        split_pos: project contents and positions of queries and keys separately, then add them.
        input_norm: normalize every token of the map first, without gain and bias (PnP-DETR's
            released code).
        pool: makes tokens that summarize the left-out ones, such as ``PoolSampler``; None = no
            pooled tokens.
        activation_checkpointing: in training, store only the inputs of the layers and recompute the
            rest in the backward pass.

    Raises:
        ValueError: for numbers that are not positive integers, and heads that do not divide
            ``embed_dim``.
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
        scale_pos: bool = False,
        split_pos: bool = False,
        input_norm: bool = False,
        pool: Pooler | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_layers(
            "GlobalEncoder",
            "model.encoder",
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            num_layers=num_layers,
            fewest=0,
        )
        self.embed_dim, self.num_layers, self.input_norm = embed_dim, num_layers, input_norm
        self.activation_checkpointing = activation_checkpointing
        self.layers = nn.ModuleList(
            GlobalEncoderLayer(
                embed_dim,
                num_heads,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
                activation=activation,
                norm_first=norm_first,
                split_pos=split_pos,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim) if norm_first else None
        self.pos_scale = (
            MLP(embed_dim, embed_dim, hidden_dim=embed_dim, num_layers=2)
            if scale_pos and num_layers
            else None
        )
        draw_matrices(self)
        self.pool = pool

    def check(self, assembly: Assembly) -> None:
        """Refuse a pool without left-out tokens or without a decoder that reads it.

        Scores that no layer uses are refused, too.

        Raises:
            ValueError: the message says what to change.
        """
        if not self.num_layers and assembly.selector.needs_scorer:
            raise ValueError(
                "GlobalEncoder.num_layers must be positive if "
                f"{type(assembly.selector).__name__} chooses the tokens of the layers, got 0. Set "
                "model.encoder.num_layers, or model.selector=null and model.scorer=null."
            )
        if self.pool is None:
            return
        pool, decoder = type(self.pool).__name__, type(assembly.decoder).__name__
        width = getattr(self.pool, "embed_dim", self.embed_dim)
        if width != self.embed_dim:
            raise ValueError(
                f"GlobalEncoder.pool: embed_dim must be {self.embed_dim} as in the encoder, got "
                f"{width}. Set model.encoder.pool.embed_dim to '${{..embed_dim}}'."
            )
        if not getattr(assembly.decoder, "reads_pooled", False):
            raise ValueError(
                f"TokenSparseDetector.decoder must read the tokens of {pool}, which have no cell, "
                f"got {decoder}. Set model.decoder._target_=GlobalDecoder or "
                "model.encoder.pool=null."
            )
        if not assembly.selector.needs_scorer:
            raise ValueError(
                f"TokenSparseDetector.selector must leave tokens out by their scores for {pool}, "
                f"got {type(assembly.selector).__name__}. Set model.encoder.pool=null, or "
                "model.scorer and model.selector."
            )

    def forward(
        self,
        features: MultiScaleFeatures,
        selections: Sequence[TokenSelection],
        scores: TokenScores | None = None,
        heads: Heads | None = None,
        *,
        aux: bool = False,
    ) -> EncoderOutput:
        """Encode.

        Args:
            features: the encoder's input.
            selections: tokens to update, see ``DeformableEncoder.forward``.
            scores: token scores (not used here).
            heads: auxiliary heads; None = there are none.
            aux: evaluate the auxiliary heads that exist.
        """
        if self.input_norm:
            tokens = F.layer_norm(features.tokens, features.tokens.shape[-1:])
            features = features.with_tokens(tokens)
        if self.pool is not None:
            features = replace(features, pooled=self.pool(features, selections))
        encoded = self.run(self.layers, features, selections, heads, aux=aux)
        if self.norm is None:
            return encoded
        memory, pooled = encoded.memory, encoded.memory.pooled
        if pooled is not None:
            pooled = replace(pooled, tokens=self.norm(pooled.tokens))
        memory = replace(memory, tokens=self.norm(memory.tokens), pooled=pooled)
        return EncoderOutput(memory, encoded.aux)

    def run(
        self,
        layers: Iterable[nn.Module],
        features: MultiScaleFeatures,
        selections: Sequence[TokenSelection],
        heads: Heads | None = None,
        *,
        aux: bool = False,
    ) -> EncoderOutput:
        """Run some of the layers on the selected tokens, and on pooled tokens if there are any.

        Args:
            layers: some of ``self.layers``.
            features: the input of these layers.
            selections: one for each of these layers.
            heads: see ``forward``.
            aux: see ``forward``.
        """
        padding, pooled = features.padding_if_any, features.pooled

        def inputs(
            index: int, rows: Tensor, along: Along, selection: TokenSelection, memory: Tensor
        ) -> tuple[Any, ...]:
            (pos,) = along
            seen = selection.valid
            if selection.indices is None and padding is not None:
                seen = ~padding
            if pooled is not None:
                seen = pooled.seen(seen, pos.shape[1])
                pos = torch.cat((pos, pooled.pos), dim=1)
            pos = pos if self.pos_scale is None else pos * self.pos_scale(rows)
            return rows, pos, None if seen is None else seen[:, None, None]

        return encode(
            layers,
            inputs,
            features,
            selections,
            heads,
            along=(features.pos,),
            aux=aux,
            recompute=self.activation_checkpointing and self.training,
        )
