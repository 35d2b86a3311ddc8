"""Common parts of the selectors that keep a share of the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import frexp, fsum, ldexp
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsedet.modeling.parts import Assembly, Selector
from sparsedet.modeling.stages import MultiScaleFeatures, TokenScores, TokenSelection, filler_mask

ROUNDING = 1e-9  # larger than the rounding errors of ratios: 0.29 of 100 are 29
_FINEST = 10**7  # denominator of a share; its product with a number of tokens does not overflow


def new_spelling(name: str, arguments: Mapping[str, Any]) -> str:
    """Advice for the removed ``schedule``: factors of the layers on ``keep_ratio``."""
    schedule, keep_ratio = arguments["schedule"], arguments.get("keep_ratio")
    keep_ratio = keep_ratio if is_share(keep_ratio) else None
    listed = schedule if isinstance(schedule, list | tuple) else ()
    factors = [each for each in listed if is_share(each)] or [1.0]
    mean, words = fsum(factors) / len(factors), []
    if keep_ratio is not None:
        words.append(f"keep_ratio={round(keep_ratio * mean, 6)}")
    if arguments.get("train_ratios"):
        means = [round(each * mean, 6) for each in arguments["train_ratios"]]
        words.append(f"train_ratios={means}")
    ratios = [round(each * (keep_ratio or 1.0), 6) for each in factors]
    words.append(f"layer_ratios={ratios if listed else 'null'}")
    return (
        f"{name}.schedule is gone and keep_ratio is the mean over the encoder layers, whose own "
        f"ratios are layer_ratios: write {', '.join(words)} instead."
    )


class ShareSelector(nn.Module):
    """Base of the selectors that keep a share of the tokens: the shares of the layers."""

    needs_scorer = True

    def __init__(
        self,
        keep_ratio: float | None,
        layer_ratios: Sequence[float] | None,
        *,
        one_more: bool = True,
    ) -> None:
        super().__init__()
        self.one_more = one_more
        ratios = _checked_ratios(layer_ratios, type(self).__name__)
        self._factors: tuple[float, ...] | None = None  # of the layers, the largest being 1
        self._peak = 1.0  # the largest layer's share / the mean
        if ratios is not None:
            mean = fsum(ratios) / len(ratios)
            self._factors = tuple(ratio / max(ratios) for ratio in ratios)
            self._peak = max(ratios) / mean
            keep_ratio = round(mean, 12) if keep_ratio is None else keep_ratio
        if keep_ratio is None:
            raise argument_error(
                type(self).__name__, "keep_ratio", "given unless layer_ratios are", None
            )
        self.keep_ratio = keep_ratio

    @property
    def keep_ratio(self) -> float:
        """Mean share of the tokens that a layer updates, over the encoder layers."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, keep_ratio: float) -> None:
        self._check_ratio(keep_ratio, "keep_ratio")
        self._keep_ratio = keep_ratio

    @property
    def layer_ratios(self) -> tuple[float, ...] | None:
        """Share of each encoder layer, with ``keep_ratio`` as their mean; None = all equal."""
        largest, factors = self.keep_ratio * self._peak, self._factors
        return factors and tuple(round(largest * each, 12) for each in factors)

    def check(self, assembly: Assembly) -> None:
        """Refuse a wrong number of ratios, and a detector without a scorer.

        Raises:
            ValueError: the message says what to change.
        """
        check_scorer(self, assembly)
        check_length(self._factors, assembly.encoder.num_layers, type(self).__name__)

    def _check_ratio(self, keep_ratio: float, argument: str) -> None:
        name = type(self).__name__
        check_share(keep_ratio, name, argument)
        if keep_ratio * self._peak > 1 + ROUNDING:
            what = f"at most {1 / self._peak:.4g}, where the largest of layer_ratios is 1"
            raise argument_error(name, argument, what, keep_ratio)

    def _counts(self, keep_ratio: float, features: MultiScaleFeatures) -> tuple[int, ...]:
        """Tokens of each image in the layer that keeps most, if the mean is ``keep_ratio``."""
        ratio = keep_ratio * self._peak
        if self.one_more:
            counts = [part_of(valid, ratio) + 1 for valid in features.num_valid]
        else:
            single = in_single(ratio)
            counts = [max(int(in_single(single * valid)), 1) for valid in features.num_valid]
        return tuple(map(min, counts, features.num_valid))

    def _limits_of(self, keep_ratio: Float[Tensor, ""], num_valid: Int[Tensor, " B"]) -> Tensor:
        """``_counts`` for a ratio on the device, in double precision."""
        ratio = keep_ratio * self._peak
        if self.one_more:
            counts = (ratio * num_valid + ROUNDING).long() + 1
        else:
            counts = (ratio.float() * num_valid.float()).long().clamp(min=1)
        return counts.minimum(num_valid)


def part_of(number: int, share: float) -> int:
    """A share of a number, rounded down but corrected for rounding errors: 0.29 of 100 are 29.

    Computed with integers, since fractions in exported programs may have single precision.

    >>> part_of(100, 0.29)
    29
    """
    exact = Fraction(share).limit_denominator(_FINEST)
    return exact.numerator * number // exact.denominator


def in_single(number: float) -> float:
    """A positive number, rounded to single precision."""
    mantissa, exponent = frexp(number)
    return ldexp(round(ldexp(mantissa, 24)), exponent - 24)


def best_tokens(
    scores: TokenScores | None, features: MultiScaleFeatures, counts: tuple[int, ...]
) -> TokenSelection:
    """The best ``counts[i]`` valid tokens of image i."""
    assert scores is not None
    width = max(counts)
    masked = scores.logits.masked_fill(features.padding_mask, float("-inf"))
    values, indices = masked.topk(width, dim=1)
    weight = values.sigmoid() if scores.weighs else None
    valid = filler_mask(counts, width, indices.device)
    if not features.exact:
        there = ~features.padding_mask.gather(1, indices)
        valid = there if valid is None else there & valid
    return TokenSelection(counts, indices, valid, weight, ranking=0, exact=features.exact)


def cascade(
    best: TokenSelection,
    factors: tuple[float, ...] | None,
    num_layers: int,
    name: str,
    limits: Int[Tensor, " B"] | None = None,
) -> tuple[TokenSelection, ...]:
    """Prefixes of the best tokens, one per layer; equal factors share one object.

    Args:
        best: the tokens that a layer with the factor 1 updates.
        factors: ratio of each layer / the largest ratio; None = 1 everywhere.
        num_layers: encoder layers.
        name: class of the selector, for the message.
        limits: number of tokens to keep of each image, if only the device knows it; at most
            ``best.max_counts``.
    """
    factors = (1.0,) * num_layers if factors is None else factors
    check_length(factors, num_layers, name)
    if any(later > earlier for earlier, later in pairwise(factors)):
        # a layer may keep tokens that the one before did not update
        best = replace(best, ranking=None)
    selections = {1.0: best if limits is None else limited(best, limits)}
    for factor in factors:
        if factor in selections:
            continue
        nested = best.prefix([max(part_of(n, factor), 1) for n in best.max_counts])
        if limits is not None:
            nested = limited(nested, (factor * limits.double() + ROUNDING).long().clamp(min=1))
        selections[factor] = nested
    return tuple(selections[factor] for factor in factors)


def limited(selection: TokenSelection, limits: Int[Tensor, " B"]) -> TokenSelection:
    """The same rows, of which image i keeps the first ``limits[i]``; they stay on the device."""
    assert selection.indices is not None
    places = torch.arange(selection.indices.shape[1], device=limits.device)
    valid = places < limits[:, None]
    if not selection.exact:
        assert selection.valid is not None
        valid = valid & selection.valid
    return replace(selection, valid=valid, exact=False)


def check_scorer(selector: Selector, assembly: Assembly) -> None:
    """Refuse a selector that lacks its scorer, or a scorer that the selector does not use."""
    name, scorer = type(selector).__name__, assembly.scorer
    if selector.needs_scorer and scorer is None:
        raise ValueError(
            f"TokenSparseDetector.scorer must be given for {name}, got None. Set model.scorer (see "
            "list_components()['scorer']) or model.selector._target_=DenseSelector."
        )
    if scorer is not None and not selector.needs_scorer:
        raise ValueError(
            f"TokenSparseDetector.selector must use the scores of {type(scorer).__name__}, got "
            f"{name}. Set model.scorer=null or model.selector._target_=TopKSelector."
        )


def check_length(ratios: Sequence[float] | None, num_layers: int, name: str) -> None:
    """Refuse ratios that are not one per encoder layer."""
    if ratios is not None and len(ratios) != num_layers:
        raise ValueError(
            f"{name}.layer_ratios must have one ratio for each of the {num_layers} encoder "
            f"layers, got {len(ratios)}. Set model.selector.layer_ratios."
        )


def is_share(value: object) -> bool:
    """Whether a value is a number in (0, 1]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def check_share(value: object, name: str, argument: str) -> None:
    """Refuse anything but a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise argument_error(name, argument, "a number", value)
    if not is_share(value):
        raise argument_error(name, argument, "in (0, 1]", value)


def _checked_ratios(ratios: Sequence[float] | None, name: str) -> tuple[float, ...] | None:
    if ratios is None:
        return None
    if isinstance(ratios, str) or not isinstance(ratios, Sequence):
        raise argument_error(name, "layer_ratios", "a list of numbers or null", ratios)
    if not ratios or not all(map(is_share, ratios)):
        raise argument_error(name, "layer_ratios", "numbers in (0, 1], one per layer", list(ratios))
    return tuple(ratios)


def argument_error(name: str, argument: str, what: str, value: object) -> ValueError:
    """The error for an invalid argument."""
    return ValueError(
        f"{name}.{argument} must be {what}, got {value!r}. Set model.selector.{argument}."
    )
