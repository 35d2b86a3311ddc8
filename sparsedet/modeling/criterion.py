"""The training objective: one loop over the supervised stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sparsedet import comm
from sparsedet.modeling.matcher import HungarianMatcher
from sparsedet.modeling.stages import DetectorOutput, Matching, Prediction, Targets


@runtime_checkable
class MatchedTerm(Protocol):
    """A loss on a prediction whose queries are matched to objects."""

    name: str
    weight: float

    def __call__(
        self, prediction: Prediction, matching: Matching, num_boxes: Tensor | float
    ) -> Tensor:
        """The unweighted loss."""
        ...


@runtime_checkable
class StageTerm(Protocol):
    """A loss on anything else that the detector produced."""

    name: str
    weight: float
    requires: frozenset[str]
    trains: str

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted loss."""
        ...


class SetCriterion:
    """Sum of weighted terms over decoder layers, proposals, encoder heads, denoising and scorer.

    Args:
        matcher: matches predictions and objects, anew for every stage.
        matched: terms for every supervised prediction.
        stage: terms that look at the whole output, such as ``DecoderAttentionLoss``.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        matched: Sequence[MatchedTerm],
        *,
        stage: Sequence[StageTerm] = (),
    ) -> None:
        self.matcher = matcher
        self.matched = tuple(matched)
        self.stage = tuple(stage)
        for family, terms in (("matched", self.matched), ("stage", self.stage)):
            names = [getattr(term, "name", term) for term in terms]
            if any(not isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise ValueError(
                    f"SetCriterion.{family} must be terms of different names, got {names}. "
                    f"Set model.criterion.{family}."
                )
        if not self.matched:
            raise ValueError(
                "SetCriterion.matched must hold at least one term, got none. "
                "Set model.criterion.matched."
            )

    @property
    def requires(self) -> frozenset[str]:
        """What the detector must record for the stage terms."""
        return frozenset().union(*(term.requires for term in self.stage))

    def __call__(self, output: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses; their sum is the objective.

        Keys read ``"<stage>/<term>"``, for instance ``"decoder.5/box_l1"`` or
        ``"scorer/decoder_attention"``. The box terms are divided by the number of objects, averaged
        over the processes, at least 1; those of denoising also by the number of groups.
        """
        num_boxes = _num_boxes(targets, output.decoder[-1].boxes.device)
        losses: dict[str, Tensor] = {}
        for stage, prediction in _supervised(output):
            matching = self.matcher(prediction, targets)
            losses.update(self._matched(stage, prediction, matching, num_boxes))
        if (denoised := output.denoising) is not None:
            count = num_boxes * denoised.num_groups
            for layer, prediction in enumerate(denoised.predictions):
                stage = f"denoising.{layer}"
                losses.update(self._matched(stage, prediction, denoised.matching, count))
        for term in self.stage:
            losses[f"scorer/{term.name}"] = term.weight * term(output, targets)
        return losses

    def _matched(
        self, stage: str, prediction: Prediction, matching: Matching, num_boxes: Tensor | float
    ) -> dict[str, Tensor]:
        return {
            f"{stage}/{term.name}": term.weight * term(prediction, matching, num_boxes)
            for term in self.matched
        }


def _supervised(output: DetectorOutput) -> Iterator[tuple[str, Prediction]]:
    for layer, prediction in enumerate(output.decoder):
        yield f"decoder.{layer}", prediction
    if output.proposals is not None:
        yield "proposals", output.proposals
    for layer, prediction in enumerate(output.encoder):
        yield f"encoder.{layer}", prediction
    if output.scores is not None and output.scores.prediction is not None:
        yield "scorer", output.scores.prediction


def _num_boxes(targets: Targets, device: torch.device) -> Tensor | float:
    total = sum(targets.counts)
    if comm.get_world_size() == 1:
        return float(max(total, 1))
    return comm.all_reduce_mean(torch.tensor(float(total), device=device)).clamp(min=1)
