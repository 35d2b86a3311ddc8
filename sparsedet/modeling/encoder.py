"""Encoders. Dense and sparse are the same loop: a selection says which tokens a layer updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.deformable_attention import MultiScaleDeformableAttention
from sparsedet.layers.mlp import FeedForward
from sparsedet.modeling.heads import Heads
from sparsedet.modeling.stages import (
    EncoderOutput,
    MultiScaleFeatures,
    Prediction,
    Size,
    TokenScores,
    TokenSelection,
)
from sparsedet.registry import ENCODERS


class DeformableEncoderLayer(nn.Module):
    """Deformable attention and feed-forward block, each followed by LayerNorm.

    Deformable DETR, section 4.1.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        num_levels: feature levels.
        num_points: sampled points per head and level.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability, in the two residual branches and after the activation.
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
        self.attention = MultiScaleDeformableAttention(
            embed_dim, num_heads, num_levels=num_levels, num_points=num_points
        )
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.feedforward = FeedForward(embed_dim, feedforward_dim, dropout=dropout)
        self.feedforward_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B K C"],
        pos: Float[Tensor, "B K C"],
        reference_points: Float[Tensor, "B K L 2"],
        value: Float[Tensor, "B N C"],
        spatial_shapes: Sequence[Size],
        padding_mask: Bool[Tensor, "B N"],
    ) -> Float[Tensor, "B K C"]:
        """Update ``tokens``, which read from the whole map ``value``."""
        attended = self.attention(
            tokens + pos, reference_points, value, spatial_shapes, padding_mask=padding_mask
        )
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feedforward_norm(tokens + self.dropout(self.feedforward(tokens)))


@ENCODERS.register()
class DeformableEncoder(nn.Module):
    """Deformable encoder whose layers update the selected tokens of the map.

    Deformable DETR, section 4.1; Sparse DETR, section 3.1 and equation 2: kept tokens are the
    queries, the value is the whole map in its current state, tokens that no layer keeps stay as
    they came in.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        num_levels: feature levels.
        num_points: sampled points per head and level.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability.
        num_layers: layers.
        value_source: "updated" = each layer reads the map as the previous one left it; "input" =
            each layer reads the encoder's input (as the released Focus-DETR code does).

    Raises:
        ValueError: for another ``value_source``.
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
        value_source: Literal["updated", "input"] = "updated",
    ) -> None:
        super().__init__()
        require_positive(num_layers, "DeformableEncoder.num_layers", key="model.encoder.num_layers")
        if value_source not in ("updated", "input"):
            raise ValueError(
                "DeformableEncoder.value_source must be 'updated' or 'input', got "
                f"{value_source!r}. "
                "Set model.encoder.value_source."
            )
        self.embed_dim, self.num_levels, self.num_layers = embed_dim, num_levels, num_layers
        self.value_source = value_source
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
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
        features: MultiScaleFeatures,
        selections: Sequence[TokenSelection],
        scores: TokenScores | None,
        heads: Heads,
        *,
        aux: bool = False,
    ) -> EncoderOutput:
        """Encode.

        Args:
            features: the encoder's input.
            selections: tokens to update, one selection per layer. A layer whose selection is the
                same object as the previous layer's goes on with its rows.
            scores: token scores (not used here).
            heads: auxiliary heads.
            aux: evaluate the auxiliary heads that exist.
        """
        reference_points = features.to_levels(features.reference_points())
        proposals = heads.proposals(features) if aux and heads.num_encoder else None
        memory, predictions = features.tokens, []
        rows = pos = points = previous = None
        for index, (layer, selection) in enumerate(zip(self.layers, selections, strict=True)):
            if selection is not previous:
                rows, pos = selection.gather(memory), selection.gather(features.pos)
                points, previous = selection.gather(reference_points), selection
            value = memory if self.value_source == "updated" else features.tokens
            rows = layer(rows, pos, points, value, features.spatial_shapes, features.padding_mask)
            memory = selection.scatter(memory, rows)
            if proposals is not None and index < heads.num_encoder:
                predictions.append(_auxiliary(heads, index, rows, selection, proposals))
        return EncoderOutput(features.with_tokens(memory), tuple(predictions))


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
