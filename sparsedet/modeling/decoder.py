"""Decoders: queries attend to the encoded map and become predictions."""

from __future__ import annotations

from collections.abc import Collection
from functools import reduce
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsedet.layers.arguments import require_layers
from sparsedet.layers.attention import attend
from sparsedet.layers.constants import constants
from sparsedet.layers.deformable_attention import MultiScaleDeformableAttention
from sparsedet.layers.mlp import MLP, FeedForward
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


class DeformableDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward block, each followed by LayerNorm.

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
        """Update ``x``; also return the cross-attention's sampling locations and attention weights.

        ``mask`` is the result of ``query_mask``.
        """
        attended = attend(self.self_attention, x + pos, x, mask)
        x = self.self_attention_norm(x + self.dropout(attended))
        sampled, locations, weights = self.cross_attention(
            x + pos,
            reference,
            memory.tokens,
            memory.spatial_shapes,
            padding_mask=memory.padding_if_any,
            value_places=memory.places,
            return_sampling=True,
        )
        x = self.cross_attention_norm(x + self.dropout(sampled))
        x = self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        return x, locations, weights


@DECODERS.register()
@retires("conditional_pos", renamed("conditional_pos", "makes_pos"))
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
        output_norm: predict from the normalized output of every layer, with one LayerNorm for all
            layers; boxes that become references are predicted from the output itself (DINO's
            released code).
        look_forward_twice: a layer's boxes are relative to the previous layer's with their gradient
            (DINO, section 3.5).
        makes_pos: every layer makes the positions of the queries from their references, by a
            network of two layers on the sine embedding (DAB-DETR, section 4.2). For queries that
            come without positions.
        scale_pos: after the first layer, multiply those positions by a function of the queries
            (Conditional DETR, section 3.3).
        eps: clamp of the inverse sigmoid of references. Weights trained with detrex need 1e-3.
        activation_checkpointing: in training, store only the inputs of the layers and recompute the
            rest in the backward pass: less memory, a second forward of the layers.

    Raises:
        ValueError: for numbers that are not positive integers, heads that do not divide
            ``embed_dim``, and options that need another one which is not set.
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
        makes_pos: bool = False,
        scale_pos: bool = False,
        eps: float = 1e-5,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_layers(
            "DeformableDecoder",
            "model.decoder",
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            num_layers=num_layers,
        )
        if look_forward_twice and not refine:
            refuse_without("DeformableDecoder", "look_forward_twice", "refine")
        if scale_pos and not makes_pos:
            refuse_without("DeformableDecoder", "scale_pos", "makes_pos")
        self.embed_dim, self.num_levels, self.num_layers = embed_dim, num_levels, num_layers
        self.refine, self.look_forward_twice, self.eps = refine, look_forward_twice, eps
        self.makes_pos = makes_pos
        self.activation_checkpointing = activation_checkpointing
        self.norm = nn.LayerNorm(embed_dim) if output_norm else None
        self.pos_mlp = (
            MLP(2 * embed_dim, embed_dim, hidden_dim=embed_dim, num_layers=2) if makes_pos else None
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
        """Refuse queries without positions, or with two sources of them.

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
            queries: the input queries.
            memory: encoded features.
            heads: the heads of the decoder layers.
            record: ``{"token_mass"}`` to accumulate the cross-attention mass on the tokens.
        """
        require_heads(heads, self, "decoder")
        recompute = self.activation_checkpointing and self.training
        mask = query_mask(queries)
        masses: list[Tensor] = []

        def update(index: int, x: Tensor, reference: Tensor) -> Tensor:
            layer, pos = self.layers[index], self._position(queries, x, reference, first=index == 0)
            inputs = (x, pos, mask, memory.to_levels(reference), memory)
            x, locations, weights = (
                checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
            )
            if "token_mass" in record:
                found = attention_mass(
                    memory,
                    locations,
                    weights,
                    valid=queries.valid,
                    num_denoising=queries.num_denoising,
                )
                masses.append(found)
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
        return DecoderOutput(predictions, reduce(torch.add, masses) if masses else None)

    def _position(
        self, queries: Queries, x: Tensor, reference: Float[Tensor, "B Q D"], *, first: bool
    ) -> Float[Tensor, "B Q C"]:
        if self.pos_mlp is None:
            assert queries.pos is not None
            return queries.pos
        pos = self.pos_mlp(reference_sine(reference, self.embed_dim // 2).to(x.dtype))
        return pos if self.pos_scale is None or first else pos * self.pos_scale(x)


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

    The weight of every sampled point is distributed to the four cells around it, as in the bilinear
    sampling. The released code adds it half a cell further to the bottom right than the attention
    samples.

    ``DecoderAttentionLoss`` takes the sum over the layers of a decoder. It can also be computed for
    a decoder of another codebase: ``MultiScaleDeformableAttention`` returns locations and weights
    with ``return_sampling=True``.

    Args:
        features: the map that the queries attend to; only its sizes are used.
        locations: where the cross-attention of one layer samples, x and y in [0, 1] of the padded
            map of each level.
        weights: attention weight of each sample, after the softmax.
        valid: False = filler query, which is left out; None = no fillers.
        num_denoising: number of denoising queries, which come first and are left out.
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
    mass = weights.new_zeros(len(weights), features.num_cells)
    return features.of_cells(mass.scatter_add_(1, torch.cat(cells, dim=1), torch.cat(parts, dim=1)))
