"""Selectors: they decide how many tokens an encoder layer updates, and which."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsedet.modeling.stages import MultiScaleFeatures, TokenScores, TokenSelection, filler_mask
from sparsedet.registry import SELECTORS


@SELECTORS.register()
class DenseSelector(nn.Module):
    """Every layer updates every token."""

    needs_scorer = False

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection of all tokens for each of ``num_layers`` layers."""
        return (TokenSelection(features.num_valid),) * num_layers


@SELECTORS.register()
class TopKSelector(nn.Module):
    """The best-scored share of each image's unpadded tokens (Sparse DETR, section 3.2).

    Image i keeps ``int(keep_ratio * valid_i) + 1`` tokens, at most all. Counts are per image: the
    released code takes top-k of the batch maximum and fails for a ratio near 1.

    Args:
        keep_ratio: share of the tokens, in (0, 1] (rho and alpha in the papers).
        schedule: one factor in (0, 1] per encoder layer, multiplied with the image's count (the
            cascade of Focus-DETR); None = all layers update the same tokens.

    Raises:
        ValueError: for numbers outside of these ranges.
    """

    needs_scorer = True

    def __init__(self, keep_ratio: float, *, schedule: Sequence[float] | None = None) -> None:
        super().__init__()
        if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, int | float):
            raise ValueError(
                f"TopKSelector.keep_ratio must be a number, got {keep_ratio!r}. "
                "Set model.selector.keep_ratio."
            )
        if not 0 < keep_ratio <= 1:
            raise ValueError(
                f"TopKSelector.keep_ratio must be in (0, 1], got {keep_ratio}. Set "
                "model.selector.keep_ratio."
            )
        if schedule is not None and not isinstance(schedule, Sequence):
            raise ValueError(
                f"TopKSelector.schedule must be a list of numbers or null, got {schedule!r}. "
                "Set model.selector.schedule."
            )
        if schedule is not None and not all(0 < factor <= 1 for factor in schedule):
            raise ValueError(
                f"TopKSelector.schedule must hold numbers in (0, 1], got {list(schedule)}. "
                "Set model.selector.schedule."
            )
        self.keep_ratio = keep_ratio
        self.schedule = None if schedule is None else tuple(schedule)

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers.

        Raises:
            ValueError: if the schedule does not have ``num_layers`` factors.
        """
        assert scores is not None
        counts = tuple(min(int(self.keep_ratio * valid) + 1, valid) for valid in features.num_valid)
        width = max(counts)
        masked = scores.logits.masked_fill(features.padding_mask, float("-inf"))
        indices = masked.topk(width, dim=1).indices
        best = TokenSelection(counts, indices, filler_mask(counts, width, indices.device))
        if self.schedule is None:
            return (best,) * num_layers
        if len(self.schedule) != num_layers:
            raise ValueError(
                f"TopKSelector.schedule must have one factor for each of the {num_layers} encoder "
                f"layers, got {len(self.schedule)}. Set model.selector.schedule."
            )
        return tuple(
            best.prefix([max(int(factor * n), 1) for n in counts]) for factor in self.schedule
        )
