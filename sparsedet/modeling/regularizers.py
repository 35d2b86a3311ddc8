"""Unmatched terms that depend on the selected tokens instead of on objects."""

from __future__ import annotations

from torch import Tensor

from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.stages import DetectorOutput, Targets, union
from sparsedet.registry import LOSSES


@LOSSES.register()
class PollRegularizer:
    """Mean score of the kept tokens (PnP-DETR, section 3.2): it keeps the scores low.

    The released code also counts the fillers of images that keep fewer tokens than others of the
    batch: their next best tokens, and padding after these.

    Args:
        weight: factor in the objective.
        count_fillers: count these fillers, too.
    """

    name = "poll"

    def __init__(self, *, weight: float, count_fillers: bool = False) -> None:
        self.weight, self.count_fillers = weight, count_fillers

    def check(self, assembly: Assembly) -> None:
        """Refuse a detector without a scorer.

        Raises:
            ValueError: there is no scorer.
        """
        if assembly.scorer is None:
            raise ValueError(
                "TokenSparseDetector.criterion: PollRegularizer keeps the scores of a scorer low, "
                "and there is no scorer. Remove it from model.criterion.unmatched or set "
                "model.scorer."
            )

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted term: the mean over the images."""
        assert output.scores is not None
        features = output.features
        kept = union(output.selections, features.num_valid, features.num_tokens)
        scores = kept.gather(output.scores.logits.float().sigmoid())
        if self.count_fillers or kept.valid is None:
            return scores.mean()
        valid = kept.valid
        return (scores.masked_fill(~valid, 0.0).sum(1) / valid.sum(1)).mean()
