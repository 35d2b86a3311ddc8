"""Encoders; dense and sparse ones share a loop, in which a selection says what a layer updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparsedet.layers.arguments import require_layers, require_positive
from sparsedet.layers.attention import attend
from sparsedet.layers.deformable_attention import MultiScaleDeformableAttention, tile_places
from sparsedet.layers.mlp import FeedForward
from sparsedet.modeling.encoding import Along, encode
from sparsedet.modeling.heads import Heads, require_heads
from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.scoring import MultiCategoryScorer
from sparsedet.modeling.stages import (
    EncoderOutput,
    MultiScaleFeatures,
    ObjectTokens,
    Size,
    TokenScores,
    TokenSelection,
    filler_mask,
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
        padding_mask: Bool[Tensor, "B N"] | None,
        query_order: Int[Tensor, "B K"] | None = None,
        cell_sizes: Float[Tensor, "L 2"] | None = None,
        value_places: Int[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B K C"]:
        """Update ``tokens``, which attend to the whole map ``value``."""
        attended = self.attention(
            tokens + pos,
            reference_points,
            value,
            spatial_shapes,
            padding_mask=padding_mask,
            query_order=query_order,
            cell_sizes=cell_sizes,
            value_places=value_places,
        )
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feedforward_norm(tokens + self.dropout(self.feedforward(tokens)))


ValueSource = Literal["updated", "input"]
CategoryHead = Literal["decoder", "proposal"]


class ObjectAttention(nn.Module):
    """Self-attention of the object tokens, followed by LayerNorm (Focus-DETR, algorithm 1).

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        dropout: probability, in the residual branch and on the attention weights.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            embed_dim, num_heads, dropout=dropout, batch_first=True
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B O C"],
        pos: Float[Tensor, "B O C"],
        valid: Bool[Tensor, "B O"] | None,
    ) -> Float[Tensor, "B O C"]:
        """Update ``tokens``; no token attends to those that are not ``valid``."""
        q = tokens + pos
        seen = None if valid is None else valid[:, None, None]
        attended = attend(self.attention, q, tokens, seen)
        return self.norm(tokens + self.dropout(attended))


@ENCODERS.register()
class DeformableEncoder(nn.Module):
    """Deformable encoder whose layers update the selected tokens of the map.

    Deformable DETR, section 4.1; Sparse DETR, section 3.1 and equation 2: kept tokens are the
    queries, the value is the whole map in its current state, and tokens that no layer keeps are not
    changed.

    Weights of a selection multiply its tokens when they are gathered from the map, as in the poll
    sampler of PnP-DETR (section 3.2). A layer that continues with the rows of the previous layer
    does not multiply them again.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        num_levels: feature levels.
        num_points: sampled points per head and level.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability.
        num_layers: layers.
        value_source: "updated" = each layer attends to the map as updated by the previous layer;
            "input" = each layer attends to the encoder's input (as in the released Focus-DETR
            code).
        activation_checkpointing: in training, store only the inputs of the deformable layers and
            recompute the rest in the backward pass: less memory, a second forward of these layers.

    Raises:
        ValueError: for another ``value_source``, numbers that are not positive integers, and heads
            that do not divide ``embed_dim``.
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
        value_source: ValueSource = "updated",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check(
            "DeformableEncoder",
            value_source,
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            num_layers=num_layers,
        )
        self.embed_dim, self.num_levels, self.num_layers = embed_dim, num_levels, num_layers
        self.value_source: ValueSource = value_source
        self.activation_checkpointing = activation_checkpointing
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
        scores: TokenScores | None = None,
        heads: Heads | None = None,
        *,
        aux: bool = False,
    ) -> EncoderOutput:
        """Encode.

        Args:
            features: the encoder's input.
            selections: tokens to update, one selection per layer. A layer whose selection is the
                same object as the previous layer's continues with its rows.
            scores: token scores (not used here).
            heads: auxiliary heads; None = there are none.
            aux: evaluate the auxiliary heads that exist.
        """
        return _encode(self, features, selections, heads, aux=aux)


@ENCODERS.register()
class DualAttentionEncoder(nn.Module):
    """``DeformableEncoder`` in which the most object-like kept tokens first attend to each other.

    Focus-DETR, section 3.3 and algorithm 1. Before each deformable layer, the object scorer scores
    the kept tokens; the best ``num_objects`` of every image (all, if it keeps fewer) attend to each
    other and are written back to the kept tokens. It works with any selection, including dense
    ones, and with any token scorer or none. The released code takes the value from the encoder's
    input, reads the classes from the first stage's head, multiplies logits instead of probabilities
    and fails for images that keep fewer tokens than ``num_objects``.

    Args:
        embed_dim: channels.
        num_heads: heads of both attentions.
        num_levels: feature levels.
        num_points: sampled points per head and level.
        feedforward_dim: hidden channels of the feed-forward block.
        dropout: probability.
        num_layers: layers.
        value_source: see ``DeformableEncoder``.
        activation_checkpointing: see ``DeformableEncoder``.
        num_objects: tokens of an image that attend to each other.
        object_scorer: scores the kept tokens (``sparsedet.modeling.parts.ObjectScorer``); None =
            ``MultiCategoryScorer()``.
        category_head: the class head that the object scorer uses: "decoder" = the head of the last
            decoder layer, as in the paper; "proposal" = the head of the first stage, as in the
            released Focus-DETR weights; this first stage must distinguish classes. Object scores
            have no gradient, so the head learns only from its own predictions.

    Raises:
        ValueError: for another ``value_source`` or ``category_head``, numbers that are not positive
            integers, and heads that do not divide ``embed_dim``.
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
        value_source: ValueSource = "updated",
        activation_checkpointing: bool = False,
        num_objects: int = 300,
        object_scorer: nn.Module | None = None,
        category_head: CategoryHead = "decoder",
    ) -> None:
        super().__init__()
        _check(
            "DualAttentionEncoder",
            value_source,
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            num_layers=num_layers,
        )
        require_positive(
            num_objects, "DualAttentionEncoder.num_objects", key="model.encoder.num_objects"
        )
        if category_head not in ("decoder", "proposal"):
            raise ValueError(
                "DualAttentionEncoder.category_head must be 'decoder' or 'proposal', got "
                f"{category_head!r}. Set model.encoder.category_head."
            )
        self.embed_dim, self.num_levels, self.num_layers = embed_dim, num_levels, num_layers
        self.value_source: ValueSource = value_source
        self.activation_checkpointing = activation_checkpointing
        self.num_objects = num_objects
        self.category_head: CategoryHead = category_head
        self.object_scorer = object_scorer or MultiCategoryScorer()
        self.object_layers = nn.ModuleList(
            ObjectAttention(embed_dim, num_heads, dropout=dropout) for _ in range(num_layers)
        )
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

    def check(self, assembly: Assembly) -> None:
        """Refuse ``category_head="proposal"`` without a first stage that distinguishes classes.

        Raises:
            ValueError: the message says what to change.
        """
        queries = assembly.query_initializer
        tells = queries.needs_proposals and not getattr(queries, "class_agnostic", False)
        if self.category_head == "proposal" and not tells:
            raise ValueError(
                "DualAttentionEncoder.category_head must be 'decoder' for "
                f"{type(queries).__name__}, which has no first stage that distinguishes classes, "
                "got 'proposal'. Set model.encoder.category_head=decoder."
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
            scores: token scores for the object scorer.
            heads: auxiliary heads and the head that ``category_head`` names. Outside our detector,
                any object works whose ``decoder(-1)`` (or ``proposal``) has ``logits(tokens)``.
            aux: evaluate the auxiliary heads that exist.

        Raises:
            ValueError: the class head is missing.
        """
        require_heads(heads, self, self.category_head)
        assert heads is not None
        category = heads.decoder(-1) if self.category_head == "decoder" else heads.proposal
        found: list[ObjectTokens] = []

        def update_objects(index: int, rows: Tensor, pos: Tensor, kept: TokenSelection) -> Tensor:
            logits = None if scores is None else kept.gather(scores.logits)
            rating = self.object_scorer(rows, logits, category)
            objects = best_rows(rating, kept, features, self.num_objects)
            found.append(ObjectTokens(kept, objects))
            updated = self.object_layers[index](
                objects.gather(rows), objects.gather(pos), objects.valid
            )
            return objects.scatter(rows, updated)

        encoded = _encode(self, features, selections, heads, aux=aux, before_layer=update_objects)
        return replace(encoded, objects=tuple(found))


def best_rows(
    rating: Float[Tensor, "B K"], kept: TokenSelection, features: MultiScaleFeatures, count: int
) -> TokenSelection:
    """The ``count`` kept tokens with the highest rating, or all if an image keeps fewer.

    Args:
        rating: rating of every kept token.
        kept: the kept tokens.
        features: the map that the tokens belong to.
        count: number of tokens of every image.

    Returns:
        A selection whose indices are into the kept tokens.
    """
    fillers = features.padding_mask if kept.indices is None else None
    if kept.valid is not None:
        fillers = ~kept.valid
    if fillers is not None:
        rating = rating.masked_fill(fillers, float("-inf"))
    width = min(count, rating.shape[1])
    counts = tuple(min(width, own) for own in kept.max_counts)
    indices = rating.topk(width, dim=1).indices
    valid = filler_mask(counts, width, indices.device)
    if not kept.exact:
        assert kept.valid is not None
        valid = kept.valid.gather(1, indices)
    return TokenSelection(counts, indices, valid, exact=kept.exact)


def _check(name: str, value_source: str, **sizes: int) -> None:
    require_layers(name, "model.encoder", **sizes)
    if value_source not in ("updated", "input"):
        raise ValueError(
            f"{name}.value_source must be 'updated' or 'input', got {value_source!r}. "
            "Set model.encoder.value_source."
        )


def _encode(
    encoder: DeformableEncoder | DualAttentionEncoder,
    features: MultiScaleFeatures,
    selections: Sequence[TokenSelection],
    heads: Heads | None,
    *,
    aux: bool,
    before_layer: Callable[[int, Tensor, Tensor, TokenSelection], Tensor] | None = None,
) -> EncoderOutput:
    """The forward pass of both encoders.

    ``before_layer(layer, rows, pos, selection)`` returns the rows that a layer starts from.
    """
    padding, cell_sizes = features.padding_if_any, 1 / features.map_sizes.flip(-1)
    orders, places = _orders(selections, features), features.places

    def inputs(
        index: int, rows: Tensor, along: Along, selection: TokenSelection, memory: Tensor
    ) -> tuple[Any, ...]:
        pos, points = along
        if before_layer is not None:
            rows = before_layer(index, rows, pos, selection)
        value = memory if encoder.value_source == "updated" else features.tokens
        shapes, order = features.spatial_shapes, orders[index]
        return rows, pos, points, value, shapes, padding, order, cell_sizes, places

    return encode(
        encoder.layers,
        inputs,
        features,
        selections,
        heads,
        along=(features.pos, features.to_levels(features.reference_points)),
        aux=aux,
        recompute=encoder.activation_checkpointing and encoder.training,
    )


def _orders(
    selections: Sequence[TokenSelection], features: MultiScaleFeatures
) -> list[Int[Tensor, "B K"] | None]:
    """Spatial orders of the kept tokens: neighbors sample similar places."""
    orders: list[Tensor | None] = [None] * len(selections)
    if all(selection.indices is None for selection in selections):
        return orders
    places = tile_places(features.spatial_shapes, features.tokens.device)
    places = features.of_cells(places.expand(features.batch_size, -1))
    for index, selection in enumerate(selections):
        if index and selection is selections[index - 1]:
            orders[index] = orders[index - 1]
        elif selection.indices is not None:
            orders[index] = selection.gather(places).argsort(-1)
    return orders
