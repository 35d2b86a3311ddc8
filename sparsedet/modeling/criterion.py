"""The training objective: one loop over the supervised stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparsedet import comm
from sparsedet.modeling.losses import SupervisedStages
from sparsedet.modeling.matcher import HungarianMatcher
from sparsedet.modeling.parts import Assembly, TokenTarget, UnmatchedTerm, check_part
from sparsedet.modeling.stages import DenoisingOutput, DetectorOutput, Prediction, Targets
from sparsedet.registry import LOSSES, SCORERS, renamed, retires


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
            num_boxes: the divisor of each stage's sum over objects.
        """
        ...


@retires("stage", renamed("stage", "unmatched"))
class SetCriterion:
    """Sum of weighted terms over decoder layers, proposals, encoder heads, denoising and scorer.

    The classification loss determines the activation of the class logits: with ``CrossEntropyLoss``
    a softmax with a "no object" class, otherwise a sigmoid for each class. Heads, matching costs
    and the scores of detections follow it.

    Args:
        matcher: matches predictions to objects, separately for every stage.
        matched: terms for every supervised prediction.
        unmatched: terms on the whole output, whose predictions need no matching, such as
            ``DecoderAttentionLoss``. See ``sparsedet.modeling.parts.UnmatchedTerm``.
        regions: unmatched terms for the scorer of the glance (``model.regions``). They get
            ``DetectorOutput.at_glance``, and objects smaller than the cells of the glance are
            enlarged to the size of a cell.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        matched: Sequence[MatchedTerm],
        *,
        unmatched: Sequence[UnmatchedTerm] = (),
        regions: Sequence[UnmatchedTerm] = (),
    ) -> None:
        self.matcher = matcher
        self.matched = tuple(matched)
        self.unmatched, self.regions = tuple(unmatched), tuple(regions)
        for family in ("matched", "unmatched", "regions"):
            terms = getattr(self, family)
            names = [getattr(term, "name", term) for term in terms]
            if any(not isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise ValueError(
                    f"SetCriterion.{family} must be terms of different names, got {names}. "
                    f"Set model.criterion.{family}."
                )
        for term in (*self.matched, *self.unmatched, *self.regions):
            weight = getattr(term, "weight", None)
            if isinstance(weight, bool) or not isinstance(weight, Real):
                raise ValueError(
                    f"{type(term).__name__}.weight must be a number, got {weight!r}. Set it."
                )
            if isinstance(requires := getattr(term, "requires", ()), str):
                raise ValueError(
                    f"{type(term).__name__}.requires must be a set of texts, got {requires!r}. "
                    f"Write {{{requires!r}}}."
                )
        if not self.matched:
            raise ValueError(
                "SetCriterion.matched must hold at least one term, got none. "
                "Set model.criterion.matched."
            )

        kinds = {getattr(term, "softmax", None): type(term).__name__ for term in self.matched}
        kinds.pop(None, None)
        if len(kinds) > 1:
            raise ValueError(
                "SetCriterion.matched must hold one kind of classification loss, got "
                f"{' and '.join(sorted(kinds.values()))}. Remove one from model.criterion.matched."
            )
        self.softmax = any(kinds)

    @property
    def requires(self) -> frozenset[str]:
        """What the detector must record for the unmatched terms."""
        terms = (*self.unmatched, *self.regions)
        return frozenset().union(*(getattr(term, "requires", ()) for term in terms))

    def check(self, assembly: Assembly) -> None:
        """Refuse a scorer that no unmatched term trains, and terms that train another scorer.

        Raises:
            ValueError: the message says what to change.
        """
        _check_terms(self.unmatched, assembly, "unmatched")
        if self.regions and assembly.regions is None:
            raise ValueError(
                "TokenSparseDetector.criterion: the terms in regions train the scorer of "
                "model.regions, which is None. Set model.criterion.regions=[] or model.regions."
            )
        _check_terms(self.regions, assembly.at_glance, "regions")

    def __call__(self, output: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses; their sum is the objective.

        Keys read ``"<stage>/<term>"``, for instance ``"decoder.5/box_l1"`` or
        ``"scorer/decoder_attention"``. The key of an unmatched term that teaches no scorer is its
        name, and keys of terms in ``regions`` read ``"regions/<term>"``. The box terms are divided
        by the number of objects, averaged over the processes, at least 1; for denoising queries
        also by the number of groups.
        """
        losses = self.matched_losses(dict(_supervised(output)), targets, output.denoising)
        for term in self.unmatched:
            key = term.name if _taught(term) is None else f"scorer/{term.name}"
            losses[key] = term.weight * term(output, targets)
        if self.regions and output.glance is not None:
            sizes, side = output.features.image_sizes, output.glance.features.least_side
            seen, objects = output.at_glance, targets.at_least(side, sizes)
            for term in self.regions:
                losses[f"regions/{term.name}"] = term.weight * term(seen, objects)
        return losses

    def matched_losses(
        self,
        stages: Mapping[str, Prediction],
        targets: Targets,
        denoising: DenoisingOutput | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of only the matched terms, for a detector of another codebase.

        Args:
            stages: predictions to match, by name such as "decoder.5".
            targets: the objects.
            denoising: predictions for noised objects, if there are any.

        Returns:
            See ``__call__``.
        """
        names, predictions = tuple(stages), tuple(stages.values())
        matchings = self.matcher.match(predictions, targets)
        groups = [1] * len(names)
        if denoising is not None:
            layers = len(denoising.predictions)
            names += tuple(f"denoising.{layer}" for layer in range(layers))
            predictions += denoising.predictions
            matchings += (denoising.matching,) * layers
            groups += [denoising.num_groups] * layers
        supervised = SupervisedStages.join(predictions, matchings)
        num_boxes = _num_boxes(targets, groups, supervised.logits.device)
        values = []
        for term in self.matched:
            weighted = term.weight * term(supervised, num_boxes)
            # by index: views of unbind must not be changed in place, as some trainers do
            values.append([weighted[i] for i in range(len(names))])
        return {
            f"{name}/{term.name}": value
            for name, own in zip(names, zip(*values, strict=True), strict=True)
            for term, value in zip(self.matched, own, strict=True)
        }


def _check_terms(terms: Sequence[UnmatchedTerm], assembly: Assembly, family: str) -> None:
    """Refuse a scorer that no term trains, and terms that train another scorer."""
    scorer = assembly.scorer
    learns = None if scorer is None else _kind(scorer, "learns")
    taught = {term: _taught(term) for term in terms}
    if learns is not None and not any(_fits(kind, learns) for kind in taught.values()):
        raise ValueError(_untrained(scorer, learns, terms, family))
    for term, kind in taught.items():
        if kind is not None and not _fits(kind, learns):
            raise ValueError(_idle(term, kind, scorer, family))
        check_part(term, assembly)


def _taught(term: UnmatchedTerm) -> type[TokenTarget] | None:
    """The kind of target that a term teaches to the scorer."""
    return _kind(term, "teaches")


def _kind(part: Any, attribute: str) -> type[TokenTarget] | None:
    kind = getattr(part, attribute, None)
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, TokenTarget)):
        raise ValueError(
            f"{type(part).__name__}.{attribute} must be a subclass of "
            f"sparsedet.modeling.parts.TokenTarget or None, got {kind!r}. Set it in the class."
        )
    return kind


def _fits(kind: type[TokenTarget] | None, learns: type[TokenTarget] | None) -> bool:
    return kind is not None and learns is not None and issubclass(kind, learns)


def _untrained(
    scorer: Any, learns: type[TokenTarget], terms: Sequence[UnmatchedTerm], family: str
) -> str:
    """The message for a scorer that none of ``terms`` trains."""
    fitting = [name for name, term in LOSSES if _fits(getattr(term, "teaches", None), learns)]
    wanted = " or ".join(sorted(fitting)) or f"a term whose teaches is {learns.__name__}"
    given = sorted(type(term).__name__ for term in terms)
    return (
        f"TokenSparseDetector.criterion: {type(scorer).__name__} is trained by {wanted}, got "
        f"{family} terms {given}. Add {wanted} to model.criterion.{family}."
    )


def _idle(term: UnmatchedTerm, kind: type[TokenTarget], scorer: Any, family: str) -> str:
    """The message for a term whose target the scorer does not learn."""
    fitting = {each.__name__ for _, each in SCORERS if _fits(kind, getattr(each, "learns", None))}
    known = " or ".join(sorted(fitting)) or f"scorer whose learns is {kind.__name__}"
    owner = "model.scorer" if family == "unmatched" else "model.regions.scorer"
    there, mend = f"the scorer is {type(scorer).__name__}", f" or {owner}._target_={known}"
    if scorer is None:
        there = "there is no scorer"
    elif _fits(kind, getattr(type(scorer), "learns", None)):
        there = f"this {type(scorer).__name__} is built without supervision"
        mend = f" or {owner}.supervised=True"
    return (
        f"TokenSparseDetector.criterion: {type(term).__name__} trains a {known}, and {there}. "
        f"Set model.criterion.{family}=[]{mend if fitting else ''}."
    )


def _supervised(output: DetectorOutput) -> Iterator[tuple[str, Prediction]]:
    for layer, prediction in enumerate(output.decoder):
        yield f"decoder.{layer}", prediction
    if output.proposals is not None:
        yield "proposals", output.proposals
    for layer, prediction in enumerate(output.encoder):
        yield f"encoder.{layer}", prediction
    if output.scores is not None and output.scores.prediction is not None:
        yield "scorer", output.scores.prediction
    glance = output.glance
    if glance is not None and glance.scores is not None and glance.scores.prediction is not None:
        yield "regions", glance.scores.prediction


def _num_boxes(
    targets: Targets, groups: Sequence[int], device: torch.device
) -> Float[Tensor, " S"]:
    """The divisor of each stage, made without synchronizing with the device."""
    total = torch.full((), float(sum(targets.counts)), device=device)
    count = comm.all_reduce_mean(total).clamp(min=1)
    return count * torch.tensor(groups, dtype=torch.float32).to(device, non_blocking=True)
