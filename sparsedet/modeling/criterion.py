"""The training objective: one loop over the supervised stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparsedet import comm
from sparsedet.modeling.losses import SupervisedStages
from sparsedet.modeling.matcher import HungarianMatcher
from sparsedet.modeling.stages import DetectorOutput, Prediction, Targets


@runtime_checkable
class MatchedTerm(Protocol):
    """A loss on predictions whose queries are matched to objects."""

    name: str
    weight: float

    def __call__(
        self, stages: SupervisedStages, num_boxes: Float[Tensor, " S"]
    ) -> Float[Tensor, " S"]:
        """The unweighted loss of every stage.

        Args:
            stages: predictions of all supervised stages and their objects.
            num_boxes: what the sum over the objects of each stage is to be divided by.
        """
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
        names, predictions = zip(*_supervised(output), strict=True)
        matchings = self.matcher.match(predictions, targets)
        groups = [1] * len(names)
        if (denoised := output.denoising) is not None:
            layers = len(denoised.predictions)
            names += tuple(f"denoising.{layer}" for layer in range(layers))
            predictions += denoised.predictions
            matchings += (denoised.matching,) * layers
            groups += [denoised.num_groups] * layers
        stages = SupervisedStages.join(predictions, matchings)
        num_boxes = _num_boxes(targets, groups, stages.logits.device)
        values = []
        for term in self.matched:
            weighted = term.weight * term(stages, num_boxes)
            # by index: views of unbind must not be changed in place, as some trainers do
            values.append([weighted[i] for i in range(len(names))])
        losses = {
            f"{name}/{term.name}": value
            for name, own in zip(names, zip(*values, strict=True), strict=True)
            for term, value in zip(self.matched, own, strict=True)
        }
        for term in self.stage:
            losses[f"scorer/{term.name}"] = term.weight * term(output, targets)
        return losses


def _supervised(output: DetectorOutput) -> Iterator[tuple[str, Prediction]]:
    for layer, prediction in enumerate(output.decoder):
        yield f"decoder.{layer}", prediction
    if output.proposals is not None:
        yield "proposals", output.proposals
    for layer, prediction in enumerate(output.encoder):
        yield f"encoder.{layer}", prediction
    if output.scores is not None and output.scores.prediction is not None:
        yield "scorer", output.scores.prediction


def _num_boxes(
    targets: Targets, groups: Sequence[int], device: torch.device
) -> Float[Tensor, " S"]:
    """What each stage is divided by, made without waiting for the device."""
    total = torch.full((), float(sum(targets.counts)), device=device)
    count = comm.all_reduce_mean(total).clamp(min=1)
    return count * torch.tensor(groups, dtype=torch.float32).to(device, non_blocking=True)
