"""Decoders: queries read from the encoded map and become predictions."""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.constants import constants
from sparsedet.layers.deformable_attention import MultiScaleDeformableAttention
from sparsedet.layers.mlp import MLP, FeedForward
from sparsedet.layers.positional import inverse_sigmoid, sine_embedding
from sparsedet.modeling.heads import Head, Heads, require_heads
from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.stages import DecoderOutput, MultiScaleFeatures, Prediction, Queries
from sparsedet.registry import DECODERS


class DeformableDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward block, each normalized after.

    Deformable DETR, section 4.1.

    Args:
        embed_dim: channels.
        num_heads: heads of both attentions.
        num_levels: feature levels.
        num_points: sampled points per head and level.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability, in the residual branches, on the self-attention weights and after the
            activation.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_levels: int,
        num_points: int,
        feedforward_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(
            embed_dim, num_heads, dropout=dropout, batch_first=True
        )
        self.self_attention_norm = nn.LayerNorm(embed_dim)
        self.cross_attention = MultiScaleDeformableAttention(
            embed_dim, num_heads, num_levels=num_levels, num_points=num_points
        )
        self.cross_attention_norm = nn.LayerNorm(embed_dim)
        self.feedforward = FeedForward(embed_dim, feedforward_dim, dropout=dropout)
        self.feedforward_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B Q C"],
        pos: Float[Tensor, "B Q C"],
        mask: Float[Tensor, "_ 1 _ Q"] | None,
        reference: Float[Tensor, "B Q L D"],
        memory: MultiScaleFeatures,
    ) -> tuple[Float[Tensor, "B Q C"], Tensor, Tensor]:
        """Update ``x``; also the cross-attention's sampling locations and attention weights.

        ``mask`` is that of ``query_mask``.
        """
        attended = attend(self.self_attention, x + pos, x, mask)
        x = self.self_attention_norm(x + self.dropout(attended))
        sampled, locations, weights = self.cross_attention(
            x + pos,
            reference,
            memory.tokens,
            memory.spatial_shapes,
            padding_mask=memory.padding_if_any,
            return_sampling=True,
        )
        x = self.cross_attention_norm(x + self.dropout(sampled))
        x = self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        return x, locations, weights


def query_mask(queries: Queries) -> Float[Tensor, "_ 1 _ Q"] | None:
    """What to add to the attention logits of the queries: -inf where one must not see another.

    One mask for all layers and heads, of size 1 where images or queries do not differ. (The mask
    that ``nn.MultiheadAttention`` makes of its two has every head's own, in every layer.)
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


def attend(
    attention: nn.MultiheadAttention,
    q: Float[Tensor, "B Q C"],
    value: Float[Tensor, "B Q C"],
    mask: Float[Tensor, "_ 1 _ Q"] | None,
) -> Float[Tensor, "B Q C"]:
    """``attention`` of queries ``q`` among themselves, with a mask that heads and layers share."""
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    query, key = F.linear(q, weight[: 2 * width], bias[: 2 * width]).chunk(2, dim=-1)
    value = F.linear(value, weight[2 * width :], bias[2 * width :])
    heads = (
        x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    dropout = attention.dropout if attention.training else 0.0
    read = F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=dropout)
    return attention.out_proj(read.transpose(1, 2).flatten(2))


@DECODERS.register()
class DeformableDecoder(nn.Module):
    """Deformable decoder, with or without iterative box refinement (Deformable DETR, appendix A.4).

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        num_levels: feature levels.
        num_points: sampled points per head and level.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability.
        num_layers: layers.
        refine: the boxes of a layer, without gradient, are the next layer's references. Otherwise
            all layers start from the initial reference.
        output_norm: predict from a LayerNorm of every layer's output, which all layers share; boxes
            that become references are made from the output itself (DINO's released code).
        look_forward_twice: a layer's boxes are relative to the previous layer's with their gradient
            (DINO, section 3.5).
        conditional_pos: positions of the queries are made in every layer from their references, by
            a network of two layers on the sine embedding (DAB-DETR, section 4.2). For queries that
            come without positions.
        scale_pos: after the first layer, multiply those positions by a function of the queries
            (Conditional DETR, section 3.3).
        eps: clamp of the inverse sigmoid of references. Weights trained with detrex need 1e-3.
        activation_checkpointing: in training, keep only the inputs of the layers and compute what
            the backward needs anew: less memory, a second forward of the layers.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        *,
        num_levels: int = 4,
        num_points: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        num_layers: int = 6,
        refine: bool = True,
        output_norm: bool = False,
        look_forward_twice: bool = False,
        conditional_pos: bool = False,
        scale_pos: bool = False,
        eps: float = 1e-5,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_positive(num_layers, "DeformableDecoder.num_layers", key="model.decoder.num_layers")
        for name, wanted, needed in (
            ("look_forward_twice", look_forward_twice and not refine, "refine"),
            ("scale_pos", scale_pos and not conditional_pos, "conditional_pos"),
        ):
            if wanted:
                raise ValueError(
                    f"DeformableDecoder.{name} must be False without {needed}, got True. "
                    f"Set model.decoder.{needed}=True or model.decoder.{name}=False."
                )
        self.embed_dim, self.num_levels, self.num_layers = embed_dim, num_levels, num_layers
        self.refine, self.look_forward_twice, self.eps = refine, look_forward_twice, eps
        self.makes_pos = conditional_pos
        self.activation_checkpointing = activation_checkpointing
        self.norm = nn.LayerNorm(embed_dim) if output_norm else None
        self.pos_mlp = (
            MLP(2 * embed_dim, embed_dim, hidden_dim=embed_dim, num_layers=2)
            if conditional_pos
            else None
        )
        self.pos_scale = (
            MLP(embed_dim, embed_dim, hidden_dim=embed_dim, num_layers=2) if scale_pos else None
        )
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(
                embed_dim,
                num_heads,
                num_levels=num_levels,
                num_points=num_points,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def check(self, assembly: Assembly) -> None:
        """Refuse queries whose positions nobody makes, or two do.

        Raises:
            ValueError: the message says what to change.
        """
        queries = assembly.query_initializer
        name, provides = type(queries).__name__, queries.provides_pos
        if provides == self.makes_pos:
            raise ValueError(
                f"TokenSparseDetector.decoder must {'not ' if provides else ''}make positions for "
                f"{name}, whose queries {'have' if provides else 'lack'} them, got "
                f"{self.makes_pos}. Set model.decoder.conditional_pos={not provides}."
            )
        if self.makes_pos and queries.reference_dim != 4:
            raise ValueError(
                "TokenSparseDetector.decoder makes positions from boxes, the references of "
                f"{name} are points. Set model.query_initializer."
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
            queries: what to start from.
            memory: encoded features.
            heads: the heads of the decoder layers.
            record: ``{"token_mass"}`` to accumulate the cross-attention mass on the tokens.
        """
        require_heads(heads, self, "decoder")
        recompute = self.activation_checkpointing and self.training
        mask = query_mask(queries)
        x, reference = queries.content, queries.reference
        origin = reference  # what a layer's boxes are relative to, perhaps with a gradient
        predictions: list[Prediction] = []
        mass = (
            memory.tokens.new_zeros(memory.tokens.shape[:2], dtype=torch.float32)
            if "token_mass" in record
            else None
        )
        for index, layer in enumerate(self.layers):
            pos = self._position(queries, x, reference, first=index == 0)
            inputs = (x, pos, mask, memory.to_levels(reference), memory)
            x, locations, weights = (
                checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
            )
            head, logits = heads.decoder(index), inverse_sigmoid(origin, self.eps)
            prediction = head(x if self.norm is None else self.norm(x), logits, queries.valid)
            predictions.append(prediction)
            if mass is not None:
                mass = mass + attention_mass(
                    memory,
                    locations,
                    weights,
                    valid=queries.valid,
                    num_denoising=queries.num_denoising,
                )
            if self.refine and index + 1 < self.num_layers:
                given = logits if origin is reference else logits.detach()
                origin = self._refined(head, x, given, prediction)
                reference = origin.detach()
        return DecoderOutput(tuple(predictions), mass)

    def _position(
        self, queries: Queries, x: Tensor, reference: Float[Tensor, "B Q D"], *, first: bool
    ) -> Float[Tensor, "B Q C"]:
        if self.pos_mlp is None:
            assert queries.pos is not None
            return queries.pos
        columns, rows, sizes = reference.split((1, 1, 2), dim=-1)
        rows_first = torch.cat((rows, columns, sizes), dim=-1)  # y, x, w, h as in DAB-DETR
        pos = self.pos_mlp(sine_embedding(rows_first, self.embed_dim // 2).to(x.dtype))
        return pos if self.pos_scale is None or first else pos * self.pos_scale(x)

    def _refined(
        self, head: Head, x: Tensor, logits: Tensor, prediction: Prediction
    ) -> Float[Tensor, "B Q 4"]:
        """Boxes that the next layer starts from, relative to those of which ``logits`` are."""
        boxes = prediction.boxes
        if self.norm is not None or self.look_forward_twice:
            boxes = head.box_logits(x, logits).sigmoid()
        return boxes if self.look_forward_twice else boxes.detach()


@torch.no_grad()
def attention_mass(
    features: MultiScaleFeatures,
    locations: Float[Tensor, "B Q M L P 2"],
    weights: Float[Tensor, "B Q M L P"],
    *,
    valid: Bool[Tensor, "B Q"] | None = None,
    num_denoising: int = 0,
) -> Float[Tensor, "B N"]:
    """Attention that the matching queries pay to each token (DAM of Sparse DETR, section 3.3).

    Every sampled point gives its weight to the four cells around it, in the shares of the bilinear
    sampling that reads them. The released code splats half a cell further to the bottom right than
    the attention reads.

    The sum over the layers of a decoder is what ``DecoderAttentionLoss`` takes. A decoder of
    another codebase gives it, too: ``MultiScaleDeformableAttention`` returns locations and weights
    with ``return_sampling=True``.

    Args:
        features: the map that the queries read from; its sizes alone count.
        locations: where the cross-attention of one layer samples, x and y in [0, 1] of the padded
            map of each level.
        weights: how much each sample counts, after the softmax.
        valid: False = a query that fills up an image with fewer of them; None = all count.
        num_denoising: that many queries come first which stand for noised objects; they are left
            out.
    """
    matching = slice(num_denoising, None)
    locations, weights = locations[:, matching].float(), weights[:, matching].float()
    if valid is not None:
        weights = weights * valid[:, matching, None, None, None]
    height, width = features.map_sizes[..., None].unbind(1)
    areas = [h * w for h, w in features.spatial_shapes]
    start = constants([0, *accumulate(areas[:-1])], weights.device)[:, None]
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    cells, parts = [], []
    for column, in_columns in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, in_rows in ((top, 1 - (y - top)), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            cell = torch.where(inside, start + row * width + column, start)  # NaN is never inside
            cells.append(cell.long().flatten(1))
            parts.append(torch.where(inside, in_columns * in_rows * weights, 0.0).flatten(1))
    mass = weights.new_zeros(len(weights), features.num_tokens)
    return mass.scatter_add_(1, torch.cat(cells, dim=1), torch.cat(parts, dim=1))
