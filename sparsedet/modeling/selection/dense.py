"""Selectors without scores: all tokens, or all of some levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.selection.shares import argument_error, check_scorer
from sparsedet.modeling.stages import MultiScaleFeatures, TokenScores, TokenSelection
from sparsedet.registry import SELECTORS


@SELECTORS.register()
class DenseSelector(nn.Module):
    """Every layer updates every token."""

    needs_scorer = False

    def check(self, assembly: Assembly) -> None:
        """Refuse a scorer, whose scores would not be used.

        Raises:
            ValueError: there is a scorer.
        """
        check_scorer(self, assembly)

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection of all tokens for each of ``num_layers`` layers."""
        return (features.all_tokens,) * num_layers


@SELECTORS.register()
class LevelScheduleSelector(nn.Module):
    """Each layer updates all tokens of some levels: coarse levels often, the finest one rarely.

    A dense schedule for comparison with token selection, in the manner of Lite DETR (Li et al.,
    CVPR 2023, sections 3.4 and 3.5). The default is two of its blocks, each with two layers for the
    three coarse levels and one that includes the finest. Only the schedule is from that paper:
    attention is deformable (not key-aware), and the feed-forward block of the finest level is as
    wide as that of the others. In the last layer of a block the paper updates the finest level,
    ``(0,)``; its released code updates all levels, which is the default here.

    Args:
        levels: for every encoder layer the levels that it updates, 0 being the finest.

    Raises:
        ValueError: unless each entry is a list of different levels.
    """

    needs_scorer = False

    def __init__(
        self,
        levels: Sequence[Sequence[int]] = (
            (1, 2, 3),
            (1, 2, 3),
            (0, 1, 2, 3),
            (1, 2, 3),
            (1, 2, 3),
            (0, 1, 2, 3),
        ),
    ) -> None:
        super().__init__()
        if not isinstance(levels, Sequence) or not all(_are_levels(entry) for entry in levels):
            raise argument_error(
                "LevelScheduleSelector", "levels", "a list of levels for every layer", levels
            )
        self.levels = tuple(tuple(sorted(entry)) for entry in levels)

    def check(self, assembly: Assembly) -> None:
        """Refuse levels or layers that the detector does not have, and a scorer.

        Raises:
            ValueError: the message says what to change.
        """
        check_scorer(self, assembly)
        self._check_levels(assembly.encoder.num_layers, assembly.num_levels)

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers; equal ones are the same object.

        Raises:
            ValueError: if there are not ``num_layers`` entries, or a level does not exist.
        """
        self._check_levels(num_layers, len(features.spatial_shapes))
        selections = {entry: features.whole_levels(entry) for entry in self.levels}
        return tuple(selections[entry] for entry in self.levels)

    def _check_levels(self, num_layers: int, num_levels: int) -> None:
        if len(self.levels) != num_layers:
            raise ValueError(
                "LevelScheduleSelector.levels must have one entry for each of the "
                f"{num_layers} encoder layers, got {len(self.levels)}. Set model.selector.levels."
            )
        highest = max(entry[-1] for entry in self.levels)
        if highest >= num_levels:
            raise ValueError(
                f"LevelScheduleSelector.levels must be below {num_levels}, the number of levels, "
                f"got {highest}. Set model.selector.levels."
            )


def _are_levels(entry: object) -> bool:
    return (
        isinstance(entry, Sequence)
        and len(entry) > 0
        and len(set(entry)) == len(entry)
        and all(type(level) is int and level >= 0 for level in entry)
    )
