"""Poolers: a few tokens that summarize all those which a selection leaves out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.precision import in_float32
from sparsedet.modeling.stages import MultiScaleFeatures, PooledTokens, TokenSelection, union
from sparsedet.registry import POOLERS


@POOLERS.register()
class PoolSampler(nn.Module):
    """A fixed number of weighted means of the left-out tokens (PnP-DETR, section 3.2).

    Each pooled token has its own attention map over the unpadded cells that no layer keeps. Its
    content is a linear function of the mean of their features, weighted by this map, and its
    position is the weighted mean of their positions. If no cell is left, the released code gets NaN
    from an empty softmax; here such an image has no pooled token.

    Args:
        embed_dim: channels.
        num_tokens: pooled tokens of an image.
    """

    def __init__(self, embed_dim: int = 256, num_tokens: int = 30) -> None:
        super().__init__()
        key = "model.encoder.pool.num_tokens"
        require_positive(num_tokens, "PoolSampler.num_tokens", key=key)
        self.embed_dim = embed_dim
        self.share = nn.Linear(embed_dim, num_tokens)
        self.value = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, features: MultiScaleFeatures, selections: Sequence[TokenSelection]
    ) -> PooledTokens:
        """Pool.

        Args:
            features: the encoder's input.
            selections: tokens that each encoder layer keeps.
        """
        kept = union(selections, features.num_valid, features.num_tokens)
        left = ~features.padding_mask
        if kept.indices is None:
            left = torch.zeros_like(left)
        else:
            left = left & ~kept.mask(features.num_tokens)
        shares = self._shares(features.tokens, left[:, None])
        pool = shares.to(features.tokens.dtype)
        tokens = self.value(pool @ features.tokens)
        some_left = features.exact and all(
            n < most for n, most in zip(kept.max_counts, features.num_valid, strict=True)
        )
        valid = None if some_left else left.any(1, keepdim=True).expand(-1, tokens.shape[1])
        return PooledTokens(tokens, pool @ features.pos, shares, valid, kept)

    def _shares(self, tokens: Tensor, left: Tensor) -> Tensor:
        """Softmax over the cells that are ``left``; all zero if none is."""
        logits = in_float32(self.share, tokens).transpose(1, 2)
        lowest = torch.finfo(logits.dtype).min
        return logits.masked_fill(~left, lowest).softmax(-1).masked_fill(~left, 0.0)
