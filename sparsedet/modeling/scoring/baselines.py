"""Baseline scorers: objectness (the paper's ablation), oracle and random (diagnostics)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.modeling.heads import Heads, require_heads
from sparsedet.modeling.stages import MultiScaleFeatures, Targets, TokenScores, class_logits
from sparsedet.registry import SCORERS


@SCORERS.register()
class ObjectnessScorer(nn.Module):
    """Highest class logit of a detection head on the encoder's input (Sparse DETR, section 3.2).

    The head is trained as a detector by the terms of ``criterion.matched``.
    """

    needs_token_embedding = True
    needs_head = True
    learns = None

    def forward(
        self,
        features: MultiScaleFeatures,
        heads: Heads | None = None,
        targets: Targets | None = None,
    ) -> TokenScores:
        """Score every token; ``targets`` are not used."""
        require_heads(heads, self, "token_embedding", "proposals", "scorer")
        assert heads is not None
        tokens = heads.token_embedding(features, with_pos=True)
        boxes, valid = heads.proposals(features)
        prediction = heads.scorer(tokens, boxes, valid)
        logits = class_logits(prediction.logits.detach(), softmax=prediction.softmax)
        return TokenScores(logits.amax(-1), prediction)


@SCORERS.register()
class OracleScorer(nn.Module):
    """Scores from the ground truth: minus the distance to the nearest object, in its half sizes.

    Tokens inside a box score above -1. It is an upper bound for scorers, not a method: it needs
    targets in evaluation too. The distance is the larger of those along the two axes, with a small
    share of the other one; otherwise whole rows of tokens would have equal scores.
    """

    needs_token_embedding = False
    needs_head = False
    learns = None
    not_exportable = "needs the ground truth. Set another scorer."

    def forward(
        self,
        features: MultiScaleFeatures,
        heads: Heads | None = None,
        targets: Targets | None = None,
    ) -> TokenScores:
        """Score every token.

        Raises:
            ValueError: there are no targets.
        """
        if targets is None:
            raise ValueError(
                "OracleScorer needs targets, got None. Give samples with instances (gt_boxes, "
                "gt_classes) or choose another scorer."
            )
        points = features.reference_points
        return TokenScores(
            torch.stack([self._score(p, b) for p, b in zip(points, targets.boxes, strict=True)])
        )

    @staticmethod
    def _score(points: Float[Tensor, "N 2"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "N"]:
        if not len(boxes):
            return points.new_zeros(len(points))
        half = boxes[:, 2:].clamp(min=1e-6) / 2
        distance = (points[:, None] - boxes[:, :2]).abs() / half
        return -(0.99 * distance.amax(-1) + 0.01 * distance.mean(-1)).amin(-1)


@SCORERS.register()
class RandomScorer(nn.Module):
    """A fixed pseudo-random score for every cell, independent of padding and batch.

    Args:
        seed: changes the pattern.
    """

    needs_token_embedding = False
    needs_head = False
    learns = None

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def forward(
        self,
        features: MultiScaleFeatures,
        heads: Heads | None = None,
        targets: Targets | None = None,
    ) -> TokenScores:
        """Score every token by a hash of (level, row, column); ``targets`` are not used."""
        device = features.tokens.device
        per_level = []
        for level, (h, w) in enumerate(features.spatial_shapes):
            row = torch.arange(h, device=device)[:, None]
            column = torch.arange(w, device=device)
            key = (row * 73856093) ^ (column * 19349663) ^ (level * 83492791 + self.seed * 15485863)
            for shift in (13, 7, 17):  # a few rounds of mixing; the product of 32 bits by 31 fits
                key = ((key & 0xFFFFFFFF) ^ (key >> shift & 0xFFFFFFFF)) * 0x5BD1E995
            key = key & 0xFFFFFFFF
            per_level.append(key.flatten())
        scores = torch.cat(per_level).to(torch.float64) / 2**32
        scores = scores.float().expand(features.batch_size, -1)
        return TokenScores(features.of_cells(scores))
