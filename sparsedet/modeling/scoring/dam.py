"""Scorer of Sparse DETR."""

from __future__ import annotations

from torch import nn

from sparsedet.modeling.heads import TokenEmbedder, TokenEmbedding
from sparsedet.modeling.parts import DecoderAttention
from sparsedet.modeling.scoring.mask_predictor import MaskPredictor, embedded_tokens
from sparsedet.modeling.stages import MultiScaleFeatures, Targets, TokenScores
from sparsedet.registry import SCORERS


@SCORERS.register()
class DAMPredictor(nn.Module):
    """Predicts which tokens the decoder will look at (Sparse DETR, section 3.3).

    It is trained by ``DecoderAttentionLoss``, whose target is the decoder cross-attention map
    (DAM).

    Args:
        embed_dim: channels of the tokens.
        own_embedding: embed the tokens with its own ``TokenEmbedding``, so that it needs no
            ``heads`` outside of our detector. Otherwise the embedding of ``heads`` is used.
    """

    needs_token_embedding = True
    needs_head = False
    learns = DecoderAttention

    def __init__(self, embed_dim: int = 256, *, own_embedding: bool = False) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.needs_token_embedding = not own_embedding
        self.embedding = TokenEmbedding(embed_dim) if own_embedding else None
        self.predictor = MaskPredictor(embed_dim)

    def forward(
        self,
        features: MultiScaleFeatures,
        heads: TokenEmbedder | None = None,
        targets: Targets | None = None,
    ) -> TokenScores:
        """Score every token; ``targets`` are not used."""
        tokens = embedded_tokens(self, features, heads)
        return TokenScores(self.predictor(tokens, features.padding_if_any))
