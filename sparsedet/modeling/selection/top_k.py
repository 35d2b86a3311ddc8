"""Selectors that keep the best tokens, so many of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sparsedet.layers.constants import constants
from sparsedet.modeling.selection.shares import (
    ShareSelector,
    argument_error,
    best_tokens,
    cascade,
    is_share,
    new_spelling,
)
from sparsedet.modeling.stages import MultiScaleFeatures, TokenScores, TokenSelection
from sparsedet.registry import SELECTORS, retires


@SELECTORS.register()
@retires("schedule", new_spelling)
class TopKSelector(ShareSelector):
    """The best-scored share of each image's unpadded tokens (Sparse DETR, section 3.2).

    A layer with the ratio r keeps ``int(r * valid_i) + 1`` tokens of image i, at most all. Counts
    are per image: the released code takes top-k of the batch maximum and fails for a ratio near 1.

    Layers may have ratios of their own, as in the cascade of Focus-DETR, (0.5, 0.4, 0.3, 0.3, 0.2,
    0.1). The largest ratio counts as above, and another one, f times as large, keeps the best
    ``int(f * count_i)`` of these tokens, at least one. Ratios need not fall. With a ``keep_ratio``
    beside them they are a shape, scaled to that mean.

    Args:
        keep_ratio: share of the tokens that a layer updates, the mean over the encoder layers, in
            (0, 1] (rho and alpha in the papers); None = the mean of ``layer_ratios``.
        layer_ratios: one ratio in (0, 1] per encoder layer; None = ``keep_ratio`` in all of them,
            which then update the same tokens.

    Raises:
        ValueError: for numbers outside of these ranges, for none at all, or for a ``keep_ratio``
            that would take the ratio of a layer above 1.
    """

    def __init__(
        self, keep_ratio: float | None = None, *, layer_ratios: Sequence[float] | None = None
    ) -> None:
        super().__init__(keep_ratio, layer_ratios)

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers, of which there are ``layer_ratios``."""
        best = best_tokens(scores, features, self._counts(self.keep_ratio, features))
        return cascade(best, self._factors, num_layers, "TopKSelector")


@SELECTORS.register()
@retires("schedule", new_spelling)
class ElasticSelector(ShareSelector):
    """``TopKSelector`` with another ratio in every training pass: one model for any ratio.

    PnP-DETR (Wang et al., ICCV 2021) trains so that its number of tokens can be chosen afterwards;
    slimmable networks (Yu et al., ICLR 2019) do it for the width of a network, Length-Adaptive
    Transformers (Kim and Cho, ACL 2021) for the length of a text. Here the ratio is drawn from a
    list, with equal chances and torch's random numbers, for a whole batch; each process draws for
    itself.

    A compiled or exported training pass has shapes that cannot depend on what is drawn. It computes
    the largest ratio of the list and keeps what was drawn: the same result at the highest cost.
    The target of ``DecoderAttentionLoss`` counts as the largest ratio does
    (``TokenSelection.max_counts``).

    Args:
        keep_ratio: in evaluation, see ``TopKSelector``.
        train_ratios: what ``keep_ratio`` is drawn from in training: means over the encoder layers.
        layer_ratios: see ``TopKSelector``; their shape is that of every ratio.

    Raises:
        ValueError: for numbers outside of the ranges that ``TopKSelector`` has, or an empty list.
    """

    def __init__(
        self,
        keep_ratio: float | None = None,
        *,
        train_ratios: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        layer_ratios: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keep_ratio, layer_ratios)
        if isinstance(train_ratios, str) or not isinstance(train_ratios, Sequence):
            raise argument_error(
                "ElasticSelector", "train_ratios", "a list of numbers", train_ratios
            )
        if not train_ratios or not all(is_share(ratio) for ratio in train_ratios):
            raise argument_error(
                "ElasticSelector", "train_ratios", "numbers in (0, 1], at least one", train_ratios
            )
        self.train_ratios = tuple(train_ratios)
        self._check_ratio(max(self.train_ratios), "train_ratios")

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers, of which there are ``layer_ratios``."""
        ratio, limits = self.keep_ratio, None
        if self.training and torch.compiler.is_compiling():
            ratio, limits = max(self.train_ratios), self._drawn_limits(features)
        elif self.training:
            drawn = torch.randint(len(self.train_ratios), (1,), device="cpu")
            ratio = self.train_ratios[int(drawn)]
        best = best_tokens(scores, features, self._counts(ratio, features))
        return cascade(best, self._factors, num_layers, "ElasticSelector", limits)

    def _drawn_limits(self, features: MultiScaleFeatures) -> Int[Tensor, " B"]:
        """Kept tokens of each image at a ratio that the host does not learn."""
        device = features.tokens.device
        counts = [self._counts(ratio, features) for ratio in self.train_ratios]
        drawn = torch.randint(len(counts), (1,), device=device)
        numbers = constants([n for each in counts for n in each], device, torch.int64)
        return numbers.view(len(counts), -1).index_select(0, drawn)[0]
