"""The decoder with global cross-attention: queries attend to all tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial, reduce
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsedet.layers.arguments import require_layers
from sparsedet.layers.attention import (
    ConditionalAttention,
    PlainAttention,
    SplitAttention,
    after,
    before,
    draw_matrices,
)
from sparsedet.layers.mlp import MLP, Activation, FeedForward
from sparsedet.modeling.decoding import (
    check_positions,
    decode,
    query_mask,
    reference_sine,
    refuse_without,
)
from sparsedet.modeling.heads import Heads, require_heads
from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.stages import DecoderOutput, MultiScaleFeatures, Queries
from sparsedet.registry import DECODERS, renamed, retires

_SMALLEST_SIDE = 1e-6  # of a box, before a division by its sides
Cross = Literal["plain", "conditional"]
Readable = tuple[
    Float[Tensor, "B S C"], Float[Tensor, "B S C"], Bool[Tensor, "B S"] | None
]  # see ``MultiScaleFeatures.readable``


class GlobalDecoderLayer(nn.Module):
    """Self-attention, cross-attention to all tokens, feed-forward block (DETR, section A.3).

    Args:
        embed_dim: channels.
        num_heads: heads of both attentions.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability, in the residual branches, on the attention weights and after the
            activation.
        activation: see ``FeedForward``.
        norm_first: normalize the inputs of the blocks instead of their outputs.
        cross: see ``GlobalDecoder``.
        is_first: whether it is the first layer of its decoder.
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
        cross: Cross,
        is_first: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        if cross == "plain":
            self.self_attention = PlainAttention(embed_dim, num_heads, dropout=dropout)
            self.cross_attention = PlainAttention(embed_dim, num_heads, dropout=dropout)
        else:
            self.self_attention = SplitAttention(embed_dim, num_heads, dropout=dropout)
            self.cross_attention = ConditionalAttention(
                embed_dim, num_heads, dropout=dropout, with_pos=is_first
            )
        self.self_attention_norm = nn.LayerNorm(embed_dim)
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
        sine: Float[Tensor, "B Q C"] | None,
        mask: Float[Tensor, "_ 1 _ Q"] | None,
        tokens: Float[Tensor, "B N C"],
        tokens_pos: Float[Tensor, "B N C"],
        seen: Bool[Tensor, "B 1 1 N"] | None,
        counted: Float[Tensor, "B Q"] | None,
    ) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B N"] | None]:
        """Update ``x``; also return the attention that tokens receive from the counted queries."""
        first = self.norm_first
        y = before(x, self.self_attention_norm, norm_first=first)
        read, _ = self.self_attention(y, pos, y, pos, mask)
        x = after(x, self.dropout(read), self.self_attention_norm, norm_first=first)
        y = before(x, self.cross_attention_norm, norm_first=first)
        read, mass = self.cross_attention(
            y, pos, tokens, tokens_pos, seen, counted=counted, sine=sine
        )
        x = after(x, self.dropout(read), self.cross_attention_norm, norm_first=first)
        y = before(x, self.feedforward_norm, norm_first=first)
        update = self.dropout(self.feedforward(y))
        return after(x, update, self.feedforward_norm, norm_first=first), mass


@DECODERS.register()
@retires("conditional_pos", renamed("conditional_pos", "makes_pos"))
class GlobalDecoder(nn.Module):
    """Decoder whose queries attend to all unpadded tokens (DETR, section A.3).

    With ``cross="conditional"`` it is the decoder of Conditional DETR; with boxes as references,
    ``makes_pos=True`` and ``modulate_size=True`` it is also the decoder of DAB-DETR.

    If the encoder pools tokens, the queries attend only to kept and pooled tokens. The levels of
    the features form one sequence. Predictions are made from the normalized output of every layer,
    with one LayerNorm for all layers.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability.
        num_layers: layers.
        activation: see ``FeedForward``.
        norm_first: normalize the inputs of the blocks instead of their outputs.
        refine: the boxes of a layer, without gradient, are the next layer's references. Otherwise
            all layers start from the initial reference.
        look_forward_twice: a layer's boxes are relative to the previous layer's with their gradient
            (DINO, section 3.5; DAB-DETR's released code).
        makes_pos: see ``DeformableDecoder``. For queries that come without positions.
        cross: "plain" = positions are added to queries and keys. "conditional" = contents and
            positions have separate dot products; the position of a query is the sine embedding of
            its reference, multiplied after the first layer by a function of the query (Conditional
            DETR, section 3.3).
        modulate_size: divide the two halves of that embedding by the sides of the query's box, and
            multiply them by sides predicted from the query (DAB-DETR, section 4.4). Needs
            conditional cross-attention.
        eps: clamp of the inverse sigmoid of references.
        activation_checkpointing: in training, store only the inputs of the layers and recompute the
            rest in the backward pass.

    Raises:
        ValueError: for numbers that are not positive integers, and heads that do not divide
            ``embed_dim``; for another ``cross``, and options that need another one which is not
            set.
    """

    num_levels = None  # any
    reads_pooled = True

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
        makes_pos: bool = False,
        cross: Cross = "plain",
        modulate_size: bool = False,
        eps: float = 1e-5,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_layers(
            type(self).__name__,
            "model.decoder",
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            num_layers=num_layers,
        )
        if look_forward_twice and not refine:
            refuse_without("GlobalDecoder", "look_forward_twice", "refine")
        conditional = _is_conditional(cross)
        if modulate_size and not conditional:
            refuse_without("GlobalDecoder", "modulate_size", "cross", value="conditional")
        self.embed_dim, self.num_layers = embed_dim, num_layers
        self.refine, self.look_forward_twice, self.eps = refine, look_forward_twice, eps
        self.makes_pos = makes_pos
        self.activation_checkpointing = activation_checkpointing
        self.norm = nn.LayerNorm(embed_dim)
        two_layers = partial(MLP, hidden_dim=embed_dim, num_layers=2)
        self.pos_mlp = two_layers(2 * embed_dim, embed_dim) if makes_pos else None
        scales = conditional and num_layers > 1
        self.sine_scale = two_layers(embed_dim, embed_dim) if scales else None
        self.size_scale = two_layers(embed_dim, 2) if modulate_size else None
        self.is_conditional = conditional
        self.layers = nn.ModuleList(
            GlobalDecoderLayer(
                embed_dim,
                num_heads,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
                activation=activation,
                norm_first=norm_first,
                cross=cross,
                is_first=index == 0,
            )
            for index in range(num_layers)
        )
        draw_matrices(self)

    def check(self, assembly: Assembly) -> None:
        """Refuse queries without positions or with two sources, and ``modulate_size`` for points.

        Raises:
            ValueError: the message says what to change.
        """
        check_positions(self, assembly)
        queries = assembly.query_initializer
        if self.size_scale is not None and queries.reference_dim != 4:
            raise ValueError(
                "GlobalDecoder.modulate_size must be False for the references of "
                f"{type(queries).__name__}, which are points, got True. Set "
                "model.decoder.modulate_size=False."
            )

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
            queries: the input queries.
            memory: encoded features.
            heads: the heads of the decoder layers.
            record: ``{"token_mass"}`` to accumulate the cross-attention mass on the tokens.
        """
        require_heads(heads, self, "decoder")
        recompute = self.activation_checkpointing and self.training
        mask, reads = query_mask(queries), self._reads(queries, memory, heads)
        counted = counted_queries(queries) if "token_mass" in record else None
        masses: list[Tensor] = []

        def update(index: int, x: Tensor, reference: Tensor) -> Tensor:
            layer, (pos, sine) = self.layers[index], self._positions(index, queries, x, reference)
            tokens, tokens_pos, seen = reads(index, x, reference)
            seen = None if seen is None else seen[:, None, None]
            inputs = (x, pos, sine, mask, tokens, tokens_pos, seen, counted)
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
        return DecoderOutput(
            predictions, None if counted is None else self.spread_mass(masses, memory)
        )

    def _reads(
        self, queries: Queries, memory: MultiScaleFeatures, heads: Heads
    ) -> Callable[[int, Tensor, Tensor], Readable]:
        """What a layer reads, as a function of its index, input queries and references."""
        readable = memory.readable()
        return lambda index, x, reference: readable

    def spread_mass(
        self, masses: Sequence[Tensor], memory: MultiScaleFeatures
    ) -> Float[Tensor, "B N"]:
        """The attention that the tokens of the map receive, summed over layers.

        Args:
            masses: attention that the tokens read by each layer receive, ``[B S]``.
            memory: encoded features that the decoder got.
        """
        mass = reduce(torch.add, masses)
        return mass if memory.pooled is None else memory.pooled.spread(mass, memory.num_tokens)

    def _positions(
        self, index: int, queries: Queries, x: Tensor, reference: Float[Tensor, "B Q D"]
    ) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B Q C"] | None]:
        """Positions of the queries, and the sine embedding of their references."""
        if self.pos_mlp is None and not self.is_conditional:
            assert queries.pos is not None
            return queries.pos, None
        sine = reference_sine(reference, self.embed_dim // 2).to(x.dtype)
        pos = queries.pos if self.pos_mlp is None else self.pos_mlp(sine)
        assert pos is not None
        if not self.is_conditional:
            return pos, None
        sine = sine[..., : self.embed_dim]  # of the center, y first
        if self.sine_scale is not None and index > 0:
            sine = sine * self.sine_scale(x)
        if self.size_scale is not None:
            width, height = reference[..., 2:].clamp(min=_SMALLEST_SIDE).unbind(-1)
            expected = self.size_scale(x).float().sigmoid()
            factors = (expected[..., 1] / height, expected[..., 0] / width)
            halves = torch.stack(factors, dim=-1).to(x.dtype)
            sine = sine * halves.repeat_interleave(self.embed_dim // 2, dim=-1)
        return pos, sine


def counted_queries(queries: Queries) -> Float[Tensor, "B Q"]:
    """1 for queries whose attention counts: matching queries that are not fillers; 0 for others."""
    counted = torch.ones(queries.content.shape[:2], device=queries.content.device)
    if queries.valid is not None:
        counted = counted * queries.valid
    counted[:, : queries.num_denoising] = 0.0
    return counted


def _is_conditional(cross: str) -> bool:
    if cross not in ("plain", "conditional"):
        raise ValueError(
            f"GlobalDecoder.cross must be 'plain' or 'conditional', got {cross!r}. "
            "Set model.decoder.cross."
        )
    return cross == "conditional"
