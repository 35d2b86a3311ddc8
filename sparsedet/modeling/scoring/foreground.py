"""Scorer of Focus-DETR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.precision import without_autocast
from sparsedet.modeling.heads import TokenEmbedder, TokenEmbedding
from sparsedet.modeling.parts import Foreground
from sparsedet.modeling.scoring.mask_predictor import MaskPredictor, embedded_tokens
from sparsedet.modeling.stages import MultiScaleFeatures, Targets, TokenScores
from sparsedet.registry import SCORERS, register_alias

DIRECTIONS = ("top_down", "bottom_up", "none")


@SCORERS.register()
class ForegroundScorer(nn.Module):
    """Predicts which tokens lie in objects of the size of their level (Focus-DETR, section 3.2).

    One network scores the levels in turn. The scores of a level, resized to the next one, modulate
    its tokens before they are scored (equation 2): ``tokens * (1 + resize(alpha * scores))``. The
    mean over the tokens in the network is taken level by level. Scores are resized between the
    valid parts of the maps, so padding has no effect.

    The paper calls it a foreground token selector, and ``ForegroundTokenSelector`` is another name
    of this class. It only scores tokens; which ones are kept is up to the selector.

    The network starts with a LayerNorm, which cancels a positive factor of its input. So the factor
    is applied to the normalized tokens. The released code applies it before the LayerNorm, where
    only the sign of the factor matters, and alpha gets almost no gradient.

    Args:
        embed_dim: channels of the tokens.
        num_levels: feature levels.
        direction: "top_down" = from the coarsest level to the finest (the paper's choice),
            "bottom_up" = the reverse, "none" = levels do not modulate each other (table 5).
        align_corners: resize so that the centers of the corner cells meet, as the released code
            does; otherwise their outer corners meet.
        modulate_before_norm: apply the factor to the tokens before they are normalized, as the
            released code does.
        supervised: a loss on the boxes trains it (``ForegroundLoss`` or ``SalienceLoss``).
            Otherwise the kept tokens are weighted by their scores, and training the detector trains
            it (table 4).
        own_embedding: embed the tokens with its own ``TokenEmbedding``, so that it needs no
            ``heads`` outside of our detector. Otherwise the embedding of ``heads`` is used.

    Raises:
        ValueError: for another ``direction``, or levels that are not a positive integer.
    """

    needs_token_embedding = True
    needs_head = False
    learns: type[Foreground] | None = Foreground

    def __init__(
        self,
        embed_dim: int = 256,
        num_levels: int = 4,
        *,
        direction: Literal["top_down", "bottom_up", "none"] = "top_down",
        align_corners: bool = False,
        modulate_before_norm: bool = False,
        supervised: bool = True,
        own_embedding: bool = False,
    ) -> None:
        super().__init__()
        require_positive(num_levels, "ForegroundScorer.num_levels", key="model.scorer.num_levels")
        if direction not in DIRECTIONS:
            raise ValueError(
                f"ForegroundScorer.direction must be one of {list(DIRECTIONS)}, got "
                f"{direction!r}. Set model.scorer.direction."
            )
        self.embed_dim, self.num_levels = embed_dim, num_levels
        self.direction, self.align_corners = direction, align_corners
        self.modulate_before_norm, self.supervised = modulate_before_norm, supervised
        self.learns = Foreground if supervised else None
        self.needs_token_embedding = not own_embedding
        self.embedding = TokenEmbedding(embed_dim) if own_embedding else None
        self.predictor = MaskPredictor(embed_dim)
        modulates = direction != "none" and num_levels > 1
        self.alpha = nn.Parameter(torch.empty(num_levels - 1)) if modulates else None
        if self.alpha is not None:
            nn.init.uniform_(self.alpha, -0.3, 0.3)

    def forward(
        self,
        features: MultiScaleFeatures,
        heads: TokenEmbedder | None = None,
        targets: Targets | None = None,
    ) -> TokenScores:
        """Score every token, in fp32 also under autocast; ``targets`` are not used.

        Raises:
            ValueError: if the features do not have ``num_levels`` levels.
        """
        if len(features.spatial_shapes) != self.num_levels:
            raise ValueError(
                f"ForegroundScorer.num_levels must be {len(features.spatial_shapes)} as in "
                f"the features, got {self.num_levels}. Set model.scorer.num_levels to "
                "'${..num_levels}'."
            )
        tokens = embedded_tokens(self, features, heads)
        with without_autocast(tokens.device):
            return TokenScores(self._score(features, tokens.float()), weighs=not self.supervised)

    def _score(
        self, features: MultiScaleFeatures, tokens: Float[Tensor, "B N C"]
    ) -> Float[Tensor, "B N"]:
        levels = features.split_levels(tokens)
        padding = features.padding_if_any
        padding = None if padding is None else features.split_levels(padding)
        scores: dict[int, Tensor] = {}
        matrices = None if self.alpha is None else self._matrices(features)
        previous = None
        for step, level in enumerate(self._order()):
            x, factor = levels[level], None
            if self.alpha is not None and matrices is not None and previous is not None:
                near = self._resize(scores[previous], features, previous, level, matrices)
                factor = 1 + self.alpha[step - 1] * near
                if self.modulate_before_norm:
                    x, factor = x * factor[..., None], None
            mask = None if padding is None else padding[level]
            scores[level], previous = self.predictor(x, mask, factor), level
        return torch.cat([scores[level] for level in range(self.num_levels)], dim=1)

    def _order(self) -> list[int]:
        levels = list(range(self.num_levels))
        return levels[::-1] if self.direction == "top_down" else levels

    def _matrices(self, features: MultiScaleFeatures) -> list[Float[Tensor, "B pairs _ _"]]:
        """Interpolation matrices of rows and columns, for each level and the next coarser one."""
        matrices = []
        for lengths, valid in zip(
            zip(*features.spatial_shapes, strict=True), features.valid_sizes.unbind(2), strict=True
        ):
            finer, coarser = (valid[:, :-1], max(lengths[:-1])), (valid[:, 1:], max(lengths[1:]))
            up = self.direction == "bottom_up"
            (source, most), (target, fewer) = (finer, coarser) if up else (coarser, finer)
            matrices.append(
                interpolation(source, target, (most, fewer), align_corners=self.align_corners)
            )
        return matrices

    def _resize(
        self,
        scores: Float[Tensor, "B n"],
        features: MultiScaleFeatures,
        source: int,
        target: int,
        matrices: Sequence[Float[Tensor, "B pairs _ _"]],
    ) -> Float[Tensor, "B m"]:
        """Bilinear resize of one level's scores to the map of another, image by image."""
        pair, shapes = min(source, target), features.spatial_shapes
        rows, columns = (
            own[:, pair, : shapes[target][axis], : shapes[source][axis]]
            for axis, own in enumerate(matrices)
        )

        def resize(own: Tensor) -> Tensor:
            return rows @ features.map_of(own, source) @ columns.transpose(1, 2)

        resized = resize(scores)
        if features.cells[source] is not None:  # average only the present cells, as at the border
            share = resize(torch.ones_like(scores))
            resized = resized / share.clamp(min=torch.finfo(share.dtype).tiny)
        return features.of_map(resized, target)


ForegroundTokenSelector = register_alias(SCORERS, "ForegroundTokenSelector", ForegroundScorer)
"""The paper's name of ``ForegroundScorer``."""


def interpolation(
    source: Float[Tensor, "*rows"],
    target: Float[Tensor, "*rows"],
    padded: tuple[int, int],
    *,
    align_corners: bool,
) -> Float[Tensor, "*rows target source"]:
    """Matrices that resize rows of cells linearly, each row within its valid part.

    The gradient of a matrix product is deterministic, while that of a gather on a GPU depends on
    the order of additions. The matrices are small.

    Args:
        source: valid cells of each row.
        target: valid cells of each resized row.
        padded: numbers of cells of both, with padding.
        align_corners: the centers of the first and last cells meet; otherwise their outer ends.
    """
    old, new = source[..., None], target[..., None]
    place = torch.arange(padded[1], device=source.device)
    if align_corners:
        position = place * ((old - 1) / (new - 1).clamp(min=1))
    else:
        position = (place + 0.5) * (old / new) - 0.5
    position = torch.minimum(position.clamp(min=0), old - 1)
    distance = position[..., None] - torch.arange(padded[0], device=source.device)
    return (1 - distance.abs()).clamp(min=0)
