"""Decoders: queries read from the encoded map and become predictions."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.deformable_attention import MultiScaleDeformableAttention
from sparsedet.layers.mlp import FeedForward
from sparsedet.layers.positional import inverse_sigmoid
from sparsedet.modeling.heads import Heads
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
        queries: Queries,
        reference: Float[Tensor, "B Q L D"],
        memory: MultiScaleFeatures,
    ) -> tuple[Float[Tensor, "B Q C"], Tensor, Tensor]:
        """Update ``x``; also the cross-attention's sampling locations and attention weights."""
        q = x + queries.pos
        hidden = None if queries.valid is None else ~queries.valid
        attended = self.self_attention(q, q, x, key_padding_mask=hidden, need_weights=False)[0]
        x = self.self_attention_norm(x + self.dropout(attended))
        sampled, locations, weights = self.cross_attention(
            x + queries.pos,
            reference,
            memory.tokens,
            memory.spatial_shapes,
            padding_mask=memory.padding_mask,
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
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        require_positive(num_layers, "DeformableDecoder.num_layers", key="model.decoder.num_layers")
        self.embed_dim, self.num_levels, self.num_layers = embed_dim, num_levels, num_layers
        self.refine, self.eps = refine, eps
        self.makes_pos = False
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
        predictions: list[Prediction] = []
        mass = (
            memory.tokens.new_zeros(memory.tokens.shape[:2], dtype=torch.float32)
            if "token_mass" in record
            else None
        )
        for index, layer in enumerate(self.layers):
            x, locations, weights = layer(x, queries, memory.to_levels(reference), memory)
            prediction = heads.decoder(index)(
                x, inverse_sigmoid(reference, self.eps), queries.valid
            )
            predictions.append(prediction)
            if self.refine:
                reference = prediction.boxes.detach()
            if mass is not None:
                mass = mass + attention_mass(memory, queries, locations, weights)
        return DecoderOutput(tuple(predictions), mass)


@torch.no_grad()
def attention_mass(
    memory: MultiScaleFeatures,
    queries: Queries,
    locations: Float[Tensor, "B Q M L P 2"],
    weights: Float[Tensor, "B Q M L P"],
) -> Float[Tensor, "B N"]:
    """Attention that the queries pay to each token (the DAM of Sparse DETR, section 3.3).

    Every sampled point gives its weight to the four cells around it, in the shares of the bilinear
    sampling that reads them. The released code splats half a cell further to the bottom right than
    the attention reads.
    """
    batch = locations.shape[0]
    weights = weights.float()
    if queries.valid is not None:
        weights = weights * queries.valid[:, :, None, None, None]
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
