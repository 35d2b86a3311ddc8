"""The score network that Sparse DETR and Focus-DETR share."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparsedet.layers.precision import in_float32
from sparsedet.modeling.heads import TokenEmbedder, require_heads
from sparsedet.modeling.stages import MultiScaleFeatures


class MaskPredictor(nn.Module):
    """One score per token from its own features and the mean over the unpadded tokens.

    Sparse DETR, section 3.3 (the form of DynamicViT): LayerNorm, linear, GELU; the second half of
    the channels is replaced by its mean over the tokens; three more linear layers. The released
    code includes padding in the mean; here it is left out.

    Args:
        embed_dim: channels of the tokens, divisible by 4.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        half = embed_dim // 2
        self.input = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim), nn.GELU()
        )
        self.output = nn.Sequential(
            nn.Linear(embed_dim, half),
            nn.GELU(),
            nn.Linear(half, half // 2),
            nn.GELU(),
            nn.Linear(half // 2, 1),
        )

    def forward(
        self,
        tokens: Float[Tensor, "B N C"],
        padding_mask: Bool[Tensor, "B N"] | None,
        factor: Float[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N"]:
        """Score logits in fp32, also under autocast.

        Args:
            tokens: the tokens.
            padding_mask: True = padding; None = there is none.
            factor: multiplies the normalized tokens.
        """
        norm, linear, activation = self.input
        x = in_float32(norm, tokens)
        x = x if factor is None else x * factor[..., None]
        local, context = activation(in_float32(linear, x)).chunk(2, dim=-1)
        if padding_mask is None:
            mean = context.mean(1, keepdim=True)
        else:
            weight = (~padding_mask).to(context.dtype)[..., None]
            mean = (context * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return in_float32(self.output, torch.cat((local, mean.expand_as(context)), -1)).squeeze(-1)


def embedded_tokens(
    scorer: nn.Module, features: MultiScaleFeatures, heads: TokenEmbedder | None
) -> Float[Tensor, "B N C"]:
    """Tokens with positions, embedded by the scorer's own ``embedding`` or else by ``heads``.

    Raises:
        ValueError: there is neither.
    """
    own = getattr(scorer, "embedding", None)
    if own is not None:
        return own.token_embedding(features, with_pos=True)
    mend = f", or build {type(scorer).__name__}(..., own_embedding=True)"
    require_heads(heads, scorer, "token_embedding", mend=mend)
    assert heads is not None
    return heads.token_embedding(features, with_pos=True)
