"""The distribution of token scores over the images of a set, on the device."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

_HIGHEST = 32.0  # a sigmoid is 0 or 1 in fp32 before that
_STEP = 1 / 32
_LEAST_WEIGHT = 0.02  # of a batch, where old ones fade
_NUM_EDGES = int(2 * _HIGHEST / _STEP) + 1


class ScoreCurve(nn.Module):
    """The share of an image's unpadded tokens that score above a logit, the mean over images.

    It is stored at fixed logits, so images can be added one by one, and the logit that a given
    share exceeds can be read at any time. Every image has the same weight, whatever its size.

    Attributes:
        shares: mean share above each of the logits, from -32 to 32; decreasing.
        num_images: number of images that were added.
    """

    shares: Float[Tensor, " edges"]
    num_images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shares", torch.zeros(_NUM_EDGES))
        self.register_buffer("num_images", torch.zeros((), dtype=torch.int64))

    def forget(self) -> None:
        """Remove all images."""
        self.num_images.zero_()

    @torch.no_grad()
    def add(
        self,
        logits: Float[Tensor, "B N"],
        padding_mask: Bool[Tensor, "B N"],
        *,
        fading: bool = False,
    ) -> None:
        """Add the images of a batch.

        Args:
            logits: score of every token.
            padding_mask: True = padding.
            fading: only about the last fifty batches count, for scores that are still being
                trained; False = every image has the same weight.
        """
        ordered = logits.float().masked_fill(padding_mask, float("-inf")).sort(dim=1).values
        edges = torch.arange(_NUM_EDGES, device=logits.device) * _STEP - _HIGHEST
        edges = edges.expand(len(ordered), -1).contiguous()
        not_above = torch.searchsorted(ordered, edges, right=True)
        valid = (~padding_mask).sum(1, keepdim=True)
        shares = ((ordered.shape[1] - not_above) / valid).mean(0)
        weight = len(ordered) / (self.num_images + len(ordered))
        weight = weight.clamp(min=_LEAST_WEIGHT if fading else 0.0)
        self.shares.lerp_(shares.to(self.shares.dtype), weight.to(self.shares.dtype))
        self.num_images.add_(len(ordered))

    def threshold(self, share: float) -> Float[Tensor, "1"]:
        """The logit that this share of the tokens exceeds, interpolated linearly.

        It stays within the stored logits: scores beyond them cannot be distinguished.
        """
        shares = self.shares.float()
        place = (shares > share).sum(0, keepdim=True).clamp(1, _NUM_EDGES - 1)
        above, below = shares.index_select(0, place - 1), shares.index_select(0, place)
        tiny = torch.finfo(shares.dtype).tiny
        within = ((above - share) / (above - below).clamp(min=tiny)).clamp(0, 1)
        return (place - 1 + within) * _STEP - _HIGHEST
