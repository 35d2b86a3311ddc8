"""Selectors: they decide how many tokens an encoder layer updates, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import fsum, prod
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparsedet.layers.constants import constants
from sparsedet.modeling.calibration import ScoreCurve
from sparsedet.modeling.parts import Assembly, Selector
from sparsedet.modeling.stages import MultiScaleFeatures, TokenScores, TokenSelection, filler_mask
from sparsedet.registry import SELECTORS, retires

_UNCALIBRATED = (
    "AdaptiveSelector must know how the scores of some images lie before it can take its threshold "
    "from keep_ratio, and these weights come without that. Calibrate them with "
    "tools/calibrate_selector.py or sparsedet.analysis.calibrate_selector(model, batches)."
)


@SELECTORS.register()
class DenseSelector(nn.Module):
    """Every layer updates every token."""

    needs_scorer = False

    def check(self, assembly: Assembly) -> None:
        """Refuse a scorer, whose scores nobody would read.

        Raises:
            ValueError: if there is one.
        """
        _check_scorer(self, assembly)

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection of all tokens for each of ``num_layers`` layers."""
        return (TokenSelection(features.num_valid),) * num_layers


def _new_spelling(name: str, arguments: Mapping[str, Any]) -> str:
    """What to write for a schedule: factors of the layers on a ``keep_ratio`` of the factor 1."""
    schedule, keep_ratio = arguments["schedule"], arguments.get("keep_ratio")
    listed = schedule if isinstance(schedule, list | tuple) else ()
    factors = [each for each in listed if _is_share(each)] or [1.0]
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


class _ShareSelector(nn.Module):
    """What selectors of a share of the tokens have in common: the shares of the layers."""

    needs_scorer = True

    def __init__(self, keep_ratio: float | None, layer_ratios: Sequence[float] | None) -> None:
        super().__init__()
        ratios = _checked_ratios(layer_ratios, type(self).__name__)
        self._factors: tuple[float, ...] | None = None  # of the layers, the largest being 1
        self._peak = 1.0  # the largest layer's share / the mean
        if ratios is not None:
            mean = fsum(ratios) / len(ratios)
            self._factors = tuple(ratio / max(ratios) for ratio in ratios)
            self._peak = max(ratios) / mean
            keep_ratio = round(mean, 12) if keep_ratio is None else keep_ratio
        if keep_ratio is None:
            raise _error(type(self).__name__, "keep_ratio", "given unless layer_ratios are", None)
        self.keep_ratio = keep_ratio

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that a layer updates, the mean over the encoder layers."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, keep_ratio: float) -> None:
        self._check_ratio(keep_ratio, "keep_ratio")
        self._keep_ratio = keep_ratio

    @property
    def layer_ratios(self) -> tuple[float, ...] | None:
        """Share of each encoder layer, with ``keep_ratio`` as their mean; None = all alike."""
        largest, factors = self.keep_ratio * self._peak, self._factors
        return factors and tuple(round(largest * each, 12) for each in factors)

    def check(self, assembly: Assembly) -> None:
        """Refuse ratios of another number of layers, and a detector without a scorer.

        Raises:
            ValueError: the message says what to change.
        """
        _check_scorer(self, assembly)
        _check_length(self._factors, assembly.encoder.num_layers, type(self).__name__)

    def _check_ratio(self, keep_ratio: float, argument: str) -> None:
        name = type(self).__name__
        _check_share(keep_ratio, name, argument)
        if keep_ratio * self._peak > 1 + _ROUNDING:
            what = f"at most {1 / self._peak:.4g}, where the largest of layer_ratios is 1"
            raise _error(name, argument, what, keep_ratio)

    def _counts(self, keep_ratio: float, features: MultiScaleFeatures) -> tuple[int, ...]:
        """Tokens of each image in the layer that keeps most, where the mean is ``keep_ratio``."""
        ratio = keep_ratio * self._peak
        return tuple(min(int(ratio * valid + _ROUNDING) + 1, valid) for valid in features.num_valid)


@SELECTORS.register()
@retires("schedule", _new_spelling)
class TopKSelector(_ShareSelector):
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
        best = _best_tokens(scores, features, self._counts(self.keep_ratio, features))
        return _cascade(best, self._factors, num_layers, "TopKSelector")


@SELECTORS.register()
@retires("schedule", _new_spelling)
class ElasticSelector(_ShareSelector):
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
            raise _error("ElasticSelector", "train_ratios", "a list of numbers", train_ratios)
        if not train_ratios or not all(_is_share(ratio) for ratio in train_ratios):
            raise _error(
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
        best = _best_tokens(scores, features, self._counts(ratio, features))
        return _cascade(best, self._factors, num_layers, "ElasticSelector", limits)

    def _drawn_limits(self, features: MultiScaleFeatures) -> Int[Tensor, " B"]:
        """Kept tokens of each image at a ratio that the host does not learn."""
        device = features.tokens.device
        counts = [self._counts(ratio, features) for ratio in self.train_ratios]
        drawn = torch.randint(len(counts), (1,), device=device)
        numbers = constants([n for each in counts for n in each], device, torch.int64)
        return numbers.view(len(counts), -1).index_select(0, drawn)[0]


def _without_mass(name: str, arguments: Mapping[str, Any]) -> str:
    """What to write instead of a share of the summed scores, below a cap named ``keep_ratio``."""
    return (
        f"{name}.mass is gone and keep_ratio is the mean share of the tokens over layers and "
        f"images: write the share as keep_ratio, and max_ratio={arguments.get('keep_ratio')} for "
        "the cap that it was, instead."
    )


@SELECTORS.register()
@retires("mass", _without_mass)
@retires("schedule", _new_spelling)
class AdaptiveSelector(_ShareSelector):
    """The tokens that score above a threshold, one for all images, so that plain images keep fewer.

    Image i keeps its tokens whose score lies above the threshold: at least one, and at most what
    ``TopKSelector`` keeps with ``max_ratio``. More or better-scored tokens never mean that fewer
    are kept, an image without a good token keeps one, and an image's count depends on that image
    alone.

    The threshold follows from ``keep_ratio``: it is the score above which that share of the tokens
    lay, the mean over the layers and over the images that the selector was calibrated on. A
    training pass adds its batch to what it knows, old batches fading, and uses what it knew before
    (nothing in its first pass, which keeps the best ``keep_ratio`` of each image). With several
    processes the images of the first one count, whose buffers ``DistributedDataParallel``
    broadcasts. Weights that were trained with another selector, or are to be used on other images,
    are calibrated by ``sparsedet.analysis.calibrate_selector`` or ``tools/calibrate_selector.py``.

    The host has to know the largest count of a batch, for which it waits once per batch. A compiled
    or exported model does not wait, nor does one that a CUDA graph records: it computes as many
    tokens as ``max_ratio`` allows and keeps those above the threshold, the same result at the cost
    of ``max_ratio``. The target of ``DecoderAttentionLoss`` then counts as that cap does
    (``TokenSelection.max_counts``).

    Args:
        keep_ratio: share of the tokens that a layer updates, the mean over the encoder layers and
            the images; None = the mean of ``layer_ratios``. Where the largest layer's is 1, every
            image keeps ``max_ratio`` in it.
        max_ratio: cap on the share that an image keeps in the layer that keeps most, in (0, 1].
            Where it takes effect, the mean falls below ``keep_ratio``.
        layer_ratios: see ``TopKSelector``; an image's layers keep shares of this shape.

    Raises:
        ValueError: for numbers outside of these ranges.
    """

    def __init__(
        self,
        keep_ratio: float | None = None,
        *,
        max_ratio: float = 1.0,
        layer_ratios: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keep_ratio, layer_ratios)
        _check_share(max_ratio, "AdaptiveSelector", "max_ratio")
        self.max_ratio = max_ratio
        self.curve = ScoreCurve()

    @property
    def depends_on_image(self) -> bool:
        """Whether how many tokens are kept depends on what an image shows."""
        return self.keep_ratio * self._peak < 1 - _ROUNDING

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers, of which there are ``layer_ratios``.

        Raises:
            ValueError: in evaluation without calibration.
        """
        best = _best_tokens(scores, features, self._counts(self.max_ratio / self._peak, features))
        limits = None
        if self.depends_on_image:
            limits = self._limits(scores, features, best)
            if _host_may_wait():
                best, limits = best.prefix(self._on_host(limits)), None
            elif not self.training:
                torch._assert_async(self.curve.num_images > 0, _UNCALIBRATED)
        if self.training:
            self.calibrate(scores, features, fading=True)
        return _cascade(best, self._factors, num_layers, "AdaptiveSelector", limits)

    def forget(self) -> None:
        """Begin the calibration anew."""
        self.curve.forget()

    def calibrate(
        self, scores: TokenScores | None, features: MultiScaleFeatures, *, fading: bool = False
    ) -> None:
        """Add the images of a batch to those that the threshold is taken from.

        Args:
            scores: of the batch.
            features: of the batch.
            fading: see ``ScoreCurve.add``.
        """
        assert scores is not None
        self.curve.add(scores.logits.detach(), features.padding_mask, fading=fading)

    def _limits(
        self, scores: TokenScores | None, features: MultiScaleFeatures, best: TokenSelection
    ) -> Int[Tensor, " B"]:
        """Tokens of each image above the threshold, within the bounds."""
        assert scores is not None
        device = features.tokens.device
        threshold = self.curve.threshold(self.keep_ratio * self._peak)
        above = scores.logits.detach().float() > threshold
        limits = (above & ~features.padding_mask).sum(1)
        if self.training:
            same_share = constants(self._counts(self.keep_ratio, features), device, torch.int64)
            limits = torch.where(self.curve.num_images > 0, limits, same_share)
        return limits.clamp(min=1).minimum(constants(best.max_counts, device, torch.int64))

    def _on_host(self, limits: Int[Tensor, " B"]) -> list[int]:
        """The limits, once it is known that there is a threshold: both in one wait."""
        *counts, num_images = torch.cat((limits, self.curve.num_images[None])).tolist()
        if not (num_images or self.training):
            raise ValueError(_UNCALIBRATED)
        return counts


@SELECTORS.register()
class LevelScheduleSelector(nn.Module):
    """Each layer updates all tokens of some levels: coarse levels often, the finest one rarely.

    A dense schedule to compare token selection with, in the manner of Lite DETR (Li et al., CVPR
    2023, sections 3.4 and 3.5). The default is two of its blocks, of two layers for the three
    coarse levels and one that includes the finest. Of that paper it is the schedule alone: the
    attention stays the deformable one (no key-aware attention), and the feed-forward block of the
    finest level is as wide as that of the others. In the last layer of a block the paper updates
    the finest level, ``(0,)``; its released code updates all levels, which is the default here.

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
            raise _error(
                "LevelScheduleSelector", "levels", "a list of levels for every layer", levels
            )
        self.levels = tuple(tuple(sorted(entry)) for entry in levels)

    def check(self, assembly: Assembly) -> None:
        """Refuse levels or layers that the detector does not have, and a scorer.

        Raises:
            ValueError: the message says what to change.
        """
        _check_scorer(self, assembly)
        self._check_levels(assembly.encoder.num_layers, assembly.num_levels)

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers; equal ones are the same object.

        Raises:
            ValueError: if there are not ``num_layers`` entries, or not so many levels.
        """
        self._check_levels(num_layers, len(features.spatial_shapes))
        selections = {entry: _whole_levels(features, entry) for entry in self.levels}
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


# --- what the selectors share -------------------------------------------------------------------

_ROUNDING = 1e-9  # more than numbers of tokens lose to the rounding of ratios: 0.29 of 100 are 29


def _host_may_wait() -> bool:
    """Whether the device can be asked for numbers: not in a program, nor in a CUDA graph."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _best_tokens(
    scores: TokenScores | None, features: MultiScaleFeatures, counts: tuple[int, ...]
) -> TokenSelection:
    """The best ``counts[i]`` unpadded tokens of image i."""
    assert scores is not None
    width = max(counts)
    masked = scores.logits.masked_fill(features.padding_mask, float("-inf"))
    values, indices = masked.topk(width, dim=1)
    weight = values.sigmoid() if scores.weighs else None
    valid = filler_mask(counts, width, indices.device)
    return TokenSelection(counts, indices, valid, weight, ranking=0)


def _cascade(
    best: TokenSelection,
    factors: tuple[float, ...] | None,
    num_layers: int,
    name: str,
    limits: Int[Tensor, " B"] | None = None,
) -> tuple[TokenSelection, ...]:
    """Prefixes of the best tokens, one per layer; equal factors share one object.

    Args:
        best: the tokens that a layer with the factor 1 updates.
        factors: ratio of each layer by the largest one; None = 1 everywhere.
        num_layers: encoder layers.
        name: class of the selector, for the message.
        limits: tokens to keep of each image where the host does not know them; at most
            ``best.max_counts``.
    """
    factors = (1.0,) * num_layers if factors is None else factors
    _check_length(factors, num_layers, name)
    if any(later > earlier for earlier, later in pairwise(factors)):
        best = replace(best, ranking=None)  # a layer may keep what the one before did not update
    selections = {1.0: best if limits is None else _limited(best, limits)}
    for factor in factors:
        if factor in selections:
            continue
        nested = best.prefix([max(int(factor * n + _ROUNDING), 1) for n in best.max_counts])
        if limits is not None:
            nested = _limited(nested, (factor * limits.double() + _ROUNDING).long().clamp(min=1))
        selections[factor] = nested
    return tuple(selections[factor] for factor in factors)


def _limited(selection: TokenSelection, limits: Int[Tensor, " B"]) -> TokenSelection:
    """The same rows, of which image i keeps the first ``limits[i]``, unknown to the host."""
    assert selection.indices is not None
    places = torch.arange(selection.indices.shape[1], device=limits.device)
    return replace(selection, valid=places < limits[:, None], exact=False)


def _whole_levels(features: MultiScaleFeatures, levels: tuple[int, ...]) -> TokenSelection:
    """All unpadded tokens of some levels, in the order of the map."""
    if len(levels) == len(features.spatial_shapes):
        return TokenSelection(features.num_valid)
    counts = tuple(sum(prod(sizes[level]) for level in levels) for sizes in features.level_sizes)
    masks = [
        ~padding if level in levels else torch.zeros_like(padding)
        for level, padding in enumerate(features.split_levels(features.padding_mask))
    ]
    chosen = torch.cat(masks, dim=1).to(torch.uint8)
    width = max(counts)
    # chosen tokens come first; those after them are distinct from them, as fillers have to be
    indices = chosen.sort(dim=1, descending=True, stable=True).indices[:, :width]
    return TokenSelection(counts, indices, filler_mask(counts, width, indices.device))


# --- what goes together ---------------------------------------------------------------------------


def _check_scorer(selector: Selector, assembly: Assembly) -> None:
    """A selector that reads scores needs a scorer, another one must not have any."""
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


def _check_length(ratios: Sequence[float] | None, num_layers: int, name: str) -> None:
    if ratios is not None and len(ratios) != num_layers:
        raise ValueError(
            f"{name}.layer_ratios must have one ratio for each of the {num_layers} encoder "
            f"layers, got {len(ratios)}. Set model.selector.layer_ratios."
        )


# --- arguments ----------------------------------------------------------------------------------


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _check_share(value: object, name: str, argument: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _error(name, argument, "a number", value)
    if not _is_share(value):
        raise _error(name, argument, "in (0, 1]", value)


def _checked_ratios(ratios: Sequence[float] | None, name: str) -> tuple[float, ...] | None:
    if ratios is None:
        return None
    if isinstance(ratios, str) or not isinstance(ratios, Sequence):
        raise _error(name, "layer_ratios", "a list of numbers or null", ratios)
    if not ratios or not all(map(_is_share, ratios)):
        raise _error(name, "layer_ratios", "numbers in (0, 1], one per layer", list(ratios))
    return tuple(ratios)


def _are_levels(entry: object) -> bool:
    return (
        isinstance(entry, Sequence)
        and len(entry) > 0
        and len(set(entry)) == len(entry)
        and all(type(level) is int and level >= 0 for level in entry)
    )


def _error(name: str, argument: str, what: str, value: object) -> ValueError:
    return ValueError(
        f"{name}.{argument} must be {what}, got {value!r}. Set model.selector.{argument}."
    )
