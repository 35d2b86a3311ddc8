"""Selectors that keep a number of best tokens of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsedet import comm
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

    Layers may have their own ratios, as in the cascade of Focus-DETR, (0.5, 0.4, 0.3, 0.3, 0.2,
    0.1). The layer with the largest ratio keeps as many as above; a layer whose ratio is f times as
    large keeps the best ``int(f * count_i)`` of these tokens, at least one. Ratios need not
    decrease. If ``keep_ratio`` is given too, they are scaled to this mean.

    Args:
        keep_ratio: mean share of the tokens that a layer updates, over the encoder layers, in (0,
            1] (rho and alpha in the papers); None = the mean of ``layer_ratios``.
        layer_ratios: one ratio in (0, 1] per encoder layer; None = ``keep_ratio`` in all of them,
            which then update the same tokens.
        one_more: the 1 in the count above. False = ``trunc(r * valid_i)`` in single precision, at
            least 1, as in the released code of PnP-DETR.

    Raises:
        ValueError: for numbers outside of these ranges, if neither ratio is given, or for a
            ``keep_ratio`` that would raise the ratio of a layer above 1.
    """

    def __init__(
        self,
        keep_ratio: float | None = None,
        *,
        layer_ratios: Sequence[float] | None = None,
        one_more: bool = True,
    ) -> None:
        super().__init__(keep_ratio, layer_ratios, one_more=one_more)

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers, as many as ``layer_ratios``."""
        best = best_tokens(scores, features, self._counts(self.keep_ratio, features))
        return cascade(best, self._factors, num_layers, "TopKSelector")


@SELECTORS.register()
@retires("schedule", new_spelling)
class ElasticSelector(ShareSelector):
    """``TopKSelector`` with a random ratio in every training pass: one model for any ratio.

    PnP-DETR (Wang et al., ICCV 2021) is trained in this way so that its number of tokens can be
    chosen afterwards; slimmable networks (Yu et al., ICLR 2019) do the same for the width of a
    network, Length-Adaptive Transformers (Kim and Cho, ACL 2021) for the length of a text. Here the
    ratio is drawn uniformly from a list, or from the range of its numbers, with torch's random
    numbers, once per batch. The first process draws for all processes.

    The shapes of a compiled or exported training pass cannot depend on the drawn ratio. It computes
    as many tokens as the largest ratio of the list and keeps those of the drawn one, with the same
    result at the highest cost. It cannot communicate with other processes, so each process draws
    its own ratio. The target of ``DecoderAttentionLoss`` has as many tokens as the largest ratio
    (``TokenSelection.max_counts``).

    Args:
        keep_ratio: the ratio in evaluation, see ``TopKSelector``.
        train_ratios: ratios to draw from in training, as means over the encoder layers.
        layer_ratios: see ``TopKSelector``; they are scaled to every ratio.
        continuous: draw any ratio from the smallest to the largest of ``train_ratios``, as PnP-DETR
            does from (1/3, 0.8).
        one_more: see ``TopKSelector``.

    Raises:
        ValueError: for numbers outside of the ranges that ``TopKSelector`` has, or an empty list.
    """

    def __init__(
        self,
        keep_ratio: float | None = None,
        *,
        train_ratios: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        layer_ratios: Sequence[float] | None = None,
        continuous: bool = False,
        one_more: bool = True,
    ) -> None:
        super().__init__(keep_ratio, layer_ratios, one_more=one_more)
        if isinstance(train_ratios, str) or not isinstance(train_ratios, Sequence):
            raise argument_error(
                "ElasticSelector", "train_ratios", "a list of numbers", train_ratios
            )
        if not train_ratios or not all(is_share(ratio) for ratio in train_ratios):
            raise argument_error(
                "ElasticSelector", "train_ratios", "numbers in (0, 1], at least one", train_ratios
            )
        self.train_ratios, self.continuous = tuple(train_ratios), continuous
        self._check_ratio(max(self.train_ratios), "train_ratios")

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers, as many as ``layer_ratios``."""
        ratio, limits = self.keep_ratio, None
        if self.training and torch.compiler.is_compiling():
            ratio, limits = max(self.train_ratios), self._drawn_limits(features)
        elif self.training:
            ratio = comm.of_first(float(self._draw(torch.device("cpu"))))
        best = best_tokens(scores, features, self._counts(ratio, features))
        return cascade(best, self._factors, num_layers, "ElasticSelector", limits)

    def _draw(self, device: torch.device) -> Float[Tensor, ""]:
        """A ratio, in double precision."""
        if self.continuous:
            low, high = min(self.train_ratios), max(self.train_ratios)
            return low + (high - low) * torch.rand((), dtype=torch.float64, device=device)
        ratios = constants(self.train_ratios, device, torch.float64)
        drawn = torch.randint(len(self.train_ratios), (1,), device=device)
        return ratios.index_select(0, drawn)[0]

    def _drawn_limits(self, features: MultiScaleFeatures) -> Int[Tensor, " B"]:
        """Kept tokens of each image for a ratio that is drawn on the device."""
        device = features.tokens.device
        num_valid = constants(features.num_valid, device, torch.int64)
        return self._limits_of(self._draw(device), num_valid)
