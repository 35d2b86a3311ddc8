"""Scorer of PnP-DETR."""

from __future__ import annotations

from torch import nn

from sparsedet.layers.mlp import MLP
from sparsedet.layers.precision import in_float32
from sparsedet.modeling.heads import Heads
from sparsedet.modeling.stages import MultiScaleFeatures, Targets, TokenScores
from sparsedet.registry import SCORERS


@SCORERS.register()
class PollScorer(nn.Module):
    """Scores each token separately, without positions and its own loss (PnP-DETR, section 3.2).

    The kept tokens are multiplied by their scores when they enter the encoder, so the losses of the
    detector train it. ``PollRegularizer`` keeps the scores low.

    Args:
        embed_dim: channels of the tokens.
    """

    needs_token_embedding = False
    needs_head = False
    learns = None

    def __init__(self, embed_dim: int = 256) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.predictor = MLP(embed_dim, 1, hidden_dim=embed_dim, num_layers=2)

    def forward(
        self,
        features: MultiScaleFeatures,
        heads: Heads | None = None,
        targets: Targets | None = None,
    ) -> TokenScores:
        """Score every token, in fp32; ``heads`` and ``targets`` are not used."""
        logits = in_float32(self.predictor, features.tokens).squeeze(-1)
        return TokenScores(logits, weighs=True)
