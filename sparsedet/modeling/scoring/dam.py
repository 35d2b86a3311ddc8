"""Scorer of Sparse DETR."""

from __future__ import annotations

from torch import nn

from sparsedet.modeling.heads import Heads
from sparsedet.modeling.parts import DecoderAttention
from sparsedet.modeling.scoring.mask_predictor import MaskPredictor
from sparsedet.modeling.stages import MultiScaleFeatures, Targets, TokenScores
from sparsedet.registry import SCORERS


@SCORERS.register()
class DAMPredictor(nn.Module):
    """Predicts which tokens the decoder will look at (Sparse DETR, section 3.3).

    It is trained by ``DecoderAttentionLoss``, whose target is the decoder cross-attention map
    (DAM).

    Args:
        embed_dim: channels of the tokens.
    """

    needs_token_embedding = True
    needs_head = False
    learns = DecoderAttention

    def __init__(self, embed_dim: int = 256) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.predictor = MaskPredictor(embed_dim)

    def forward(
        self, features: MultiScaleFeatures, heads: Heads, targets: Targets | None = None
    ) -> TokenScores:
        """Score every token; ``targets`` are not used."""
        tokens = heads.token_embedding(features, with_pos=True)
        return TokenScores(self.predictor(tokens, features.padding_if_any))
