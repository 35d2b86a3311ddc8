"""Decoders: queries read from the encoded map and become predictions."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.deformable_attention import MultiScaleDeformableAttention
from sparsedet.layers.mlp import MLP, FeedForward
from sparsedet.layers.positional import inverse_sigmoid, sine_embedding
from sparsedet.modeling.heads import Head, Heads
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
        queries: Queries,
        reference: Float[Tensor, "B Q L D"],
        memory: MultiScaleFeatures,
    ) -> tuple[Float[Tensor, "B Q C"], Tensor, Tensor]:
        """Update ``x``; also the cross-attention's sampling locations and attention weights."""
        q = x + pos
        attended = self.self_attention(
            q,
            q,
            x,
            key_padding_mask=None if queries.valid is None else ~queries.valid,
            attn_mask=queries.attn_mask,
            need_weights=False,
        )[0]
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
            x, locations, weights = layer(x, pos, queries, memory.to_levels(reference), memory)
            head = heads.decoder(index)
            prediction = head(
                x if self.norm is None else self.norm(x),
                inverse_sigmoid(origin, self.eps),
                queries.valid,
            )
            predictions.append(prediction)
            if mass is not None:
                mass = mass + attention_mass(memory, queries, locations, weights)
            if self.refine and index + 1 < self.num_layers:
                origin = self._refined(head, x, reference, prediction)
                reference = origin.detach()
        return DecoderOutput(tuple(predictions), mass)

    def _position(
        self, queries: Queries, x: Tensor, reference: Float[Tensor, "B Q D"], *, first: bool
    ) -> Float[Tensor, "B Q C"]:
        if self.pos_mlp is None:
            assert queries.pos is not None
            return queries.pos
        rows_first = reference[..., [1, 0, 2, 3]]  # y, x, w, h as in DAB-DETR
        pos = self.pos_mlp(sine_embedding(rows_first, self.embed_dim // 2).to(x.dtype))
        return pos if self.pos_scale is None or first else pos * self.pos_scale(x)

    def _refined(
        self, head: Head, x: Tensor, reference: Tensor, prediction: Prediction
    ) -> Float[Tensor, "B Q 4"]:
        """Boxes that the next layer starts from."""
        boxes = prediction.boxes
        if self.norm is not None or self.look_forward_twice:
            boxes = head.box_logits(x, inverse_sigmoid(reference, self.eps)).sigmoid()
        return boxes if self.look_forward_twice else boxes.detach()


@torch.no_grad()
def attention_mass(
    memory: MultiScaleFeatures,
    queries: Queries,
    locations: Float[Tensor, "B Q M L P 2"],
    weights: Float[Tensor, "B Q M L P"],
) -> Float[Tensor, "B N"]:
    """Attention that the matching queries pay to each token (DAM of Sparse DETR, section 3.3).

    Every sampled point gives its weight to the four cells around it, in the shares of the bilinear
    sampling that reads them. The released code splats half a cell further to the bottom right than
    the attention reads.
    """
    batch, matching = locations.shape[0], slice(queries.num_denoising, None)
    locations, weights = locations[:, matching], weights[:, matching].float()
    if queries.valid is not None:
        weights = weights * queries.valid[:, matching, None, None, None]
    mass = weights.new_zeros(batch, memory.num_tokens)
    start = 0
    for level, (h, w) in enumerate(memory.spatial_shapes):
        size = locations.new_tensor((w, h), dtype=torch.float32)
        position = locations[:, :, :, level].float().reshape(batch, -1, 2) * size - 0.5
        corner = position.floor()
        share = position - corner
        point_weight = weights[:, :, :, level].reshape(batch, -1)
        for dy in (0, 1):
            for dx in (0, 1):
                x, y = corner[..., 0] + dx, corner[..., 1] + dy
                inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
                part = (share[..., 0] if dx else 1 - share[..., 0]) * (
                    share[..., 1] if dy else 1 - share[..., 1]
                )
                cell = torch.where(inside, start + y * w + x, start)  # NaN is never inside
                mass.scatter_add_(1, cell.long(), torch.where(inside, part * point_weight, 0.0))
        start += h * w
    return mass
