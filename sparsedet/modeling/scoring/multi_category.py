"""Object scorer of Focus-DETR."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.modeling.heads import Head
from sparsedet.modeling.stages import class_logits
from sparsedet.registry import OBJECT_SCORERS


@OBJECT_SCORERS.register()
class MultiCategoryScorer(nn.Module):
    """Token score times the best class score of the token (Focus-DETR, equation 3).

    It has no parameters: the class head is an argument, see ``DualAttentionEncoder``. Without token
    scores, the result is the class score alone.

    Args:
        product: "probability" = product of the two probabilities, as in the paper; "logit" =
            product of the two logits, as in the released code, where two very negative logits give
            a high score.

    Raises:
        ValueError: for another ``product``.
    """

    def __init__(self, *, product: Literal["probability", "logit"] = "probability") -> None:
        super().__init__()
        if product not in ("probability", "logit"):
            raise ValueError(
                "MultiCategoryScorer.product must be 'probability' or 'logit', got "
                f"{product!r}. Set model.encoder.object_scorer.product."
            )
        self.product = product

    @torch.no_grad()
    def forward(
        self,
        tokens: Float[Tensor, "B K C"],
        logits: Float[Tensor, "B K"] | None,
        category: Head,
    ) -> Float[Tensor, "B K"]:
        """Scores of the kept tokens, in fp32 and without gradient."""
        softmax = getattr(category, "softmax", False)
        scores = class_logits(category.logits(tokens), softmax=softmax).amax(-1)
        if self.product == "probability":
            scores = scores.sigmoid()
        if logits is None:
            return scores
        own = logits.float()
        return scores * (own.sigmoid() if self.product == "probability" else own)
