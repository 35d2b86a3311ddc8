"""Combinations of registered parts: all that go together, some of them, and the named systems."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np

import sparsedet.modeling  # noqa: F401 (fills the registries)
from sparsedet.registry import (
    DECODERS,
    DENOISINGS,
    ENCODERS,
    LOSSES,
    OBJECT_SCORERS,
    POOLERS,
    QUERY_INITIALIZERS,
    SCORERS,
    SELECTORS,
)


@dataclass(frozen=True)
class Combination:
    """One choice for every interchangeable part. ``term`` is the loss that trains the scorer."""

    scorer: str | None = None
    term: str | None = None
    selector: str = "DenseSelector"
    layer_ratios: tuple[float, ...] | None = None
    encoder: str = "DeformableEncoder"
    object_scorer: str | None = None
    value_source: str = "updated"
    norm_first: bool = False
    activation: str = "relu"
    scale_tokens_pos: bool = False
    queries: str = "EfficientQueries"
    points: bool = False
    denoising: str | None = None
    decoder: str = "DeformableDecoder"
    cross: str = "plain"
    modulate_size: bool = False
    scale_pos: bool = False
    refine: bool = True
    look_forward_twice: bool = False
    output_norm: bool = False
    classes: str = "FocalLoss"
    aux: bool = False
    shared: bool = False
    pool: str | None = None

    def __str__(self) -> str:
        differing = [
            f"{field.name}={value}".replace(" ", "") if isinstance(value, bool) else str(value)
            for field, value in zip(fields(self), astuple(self), strict=True)
            if value != field.default
        ]
        return "-".join(differing).replace(" ", "") or "efficient"


@dataclass(frozen=True)
class Bare(Combination):
    """Without encoder layers before the decoder, which has its own."""


PLAIN = Combination(queries="LearnedQueries", refine=False, shared=True)
DINO = Combination(
    queries="MixedQueries",
    denoising="ContrastiveDenoising",
    look_forward_twice=True,
    output_norm=True,
)
DETR = Combination(
    encoder="GlobalEncoder",
    queries="PositionQueries",
    decoder="GlobalDecoder",
    refine=False,
    classes="CrossEntropyLoss",
    shared=True,
)
DN_DETR = Combination(
    encoder="GlobalEncoder",
    activation="prelu",
    scale_tokens_pos=True,
    queries="AnchorQueries",
    denoising="Denoising",
    decoder="GlobalDecoder",
    cross="conditional",
    modulate_size=True,
    look_forward_twice=True,
    shared=True,
)
DAM = dict(scorer="DAMPredictor", term="DecoderAttentionLoss", selector="TopKSelector")
POLL = dict(scorer="PollScorer", selector="ElasticSelector")
DUAL = dict(encoder="DualAttentionEncoder", object_scorer="MultiCategoryScorer")
FOREGROUND = dict(
    scorer="ForegroundScorer",
    term="ForegroundLoss",
    selector="TopKSelector",
    layer_ratios=(1.0, 0.5),
)
NAMED = {
    "deformable_plain": PLAIN,
    "deformable_refine": Combination(queries="LearnedQueries"),
    "deformable_two_stage": Combination(queries="TwoStageQueries"),
    "efficient": Combination(),
    "dn_deformable": Combination(queries="AnchorQueries", denoising="Denoising", scale_pos=True),
    "dino": DINO,
    "sparse": Combination(**DAM, aux=True),
    "sparse_dual": Combination(**DAM, **DUAL, aux=True),
    "sparse_dino": replace(DINO, **DAM, aux=True),
    "focus": replace(DINO, **FOREGROUND, **DUAL),
    "detr": DETR,
    "up_detr": replace(DETR, norm_first=True),
    "conditional_detr": replace(DETR, points=True, cross="conditional", classes="FocalLoss"),
    "dn_detr": DN_DETR,
    "global_sparse": replace(DETR, **DAM, layer_ratios=(1.0, 0.5), aux=True),
    "pnp_detr": replace(DETR, **POLL, pool="PoolSampler"),
    "imfa_detr": Bare(**{**vars(DETR), "decoder": "InterleavedDecoder"}),
    "imfa_dn_detr": Bare(**{**vars(DN_DETR), "decoder": "InterleavedDecoder"}),
}


def scorers() -> list[tuple[str, type]]:
    """Scorers that need features alone, each by its own name; TeacherScorer has its own tests."""
    return [
        (name, cls)
        for name, cls in sorted(SCORERS)
        if name == cls.__name__ and not getattr(cls, "needs_images", False)
    ]


def _scorer_choices() -> Iterator[tuple[str, str | None]]:
    """Scorers, each with every loss that trains it, and without one where it needs none."""
    for name, scorer in scorers():
        if "supervised" in arguments_of(scorer) or scorer.learns is None:
            yield name, None
        for term, loss in sorted(LOSSES):
            kind = getattr(loss, "teaches", None)
            if kind is not None and scorer.learns is not None and issubclass(kind, scorer.learns):
                yield name, term


def _token_choices() -> Iterator[tuple]:
    for name, selector in sorted(SELECTORS):
        scorers = _scorer_choices() if selector.needs_scorer else [(None, None)]
        ratios = [None, (1.0, 0.5)] if "layer_ratios" in arguments_of(selector) else [None]
        for scorer, listed in itertools.product(scorers, ratios):
            yield *scorer, name, listed


def _encoder_choices() -> Iterator[tuple]:
    for name, encoder in sorted(ENCODERS):
        rates = "object_scorer" in arguments_of(encoder)
        scorers = sorted(each for each, _ in OBJECT_SCORERS) if rates else [None]
        sources = ("updated", "input") if "value_source" in arguments_of(encoder) else ("updated",)
        activations = ("relu", "prelu") if "activation" in arguments_of(encoder) else ("relu",)
        switches = (_switch(encoder, each) for each in ("norm_first", "scale_pos"))
        for scorer, source, first, activation, scaled in itertools.product(
            scorers, sources, next(switches), activations, next(switches)
        ):
            yield name, scorer, source, first, activation, scaled


def _query_choices() -> Iterator[tuple]:
    for (name, queries), (decoder, decoder_class) in itertools.product(
        sorted(QUERY_INITIALIZERS), sorted(DECODERS)
    ):
        without = queries.provides_pos or queries.reference_dim != 4
        noises = [None] if without else [None, *sorted(each for each, _ in DENOISINGS)]
        scales = [False] if without else _switch(decoder_class, "scale_pos")
        points = _switch(queries, "points")
        for point, denoising, cross, scale_pos in itertools.product(
            points, noises, _crosses(decoder_class), scales
        ):
            if cross[1] and (point or getattr(queries, "reference_dim", 4) == 2):
                continue  # a point has no size
            for refine, twice, norm in itertools.product(
                (False, True),
                _switch(decoder_class, "look_forward_twice"),
                _switch(decoder_class, "output_norm"),
            ):
                if refine or not twice:
                    yield name, point, denoising, decoder, *cross, scale_pos, refine, twice, norm


def _crosses(decoder: type) -> list[tuple[str, bool]]:
    """Kinds of cross-attention, each without and with sizes that modulate it."""
    plain = [("plain", False)]
    found = [("conditional", False), ("conditional", True)]
    return plain + found if "cross" in arguments_of(decoder) else plain


def arguments_of(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)


def _switch(cls: type, name: str) -> tuple[bool, ...]:
    return (False, True) if name in arguments_of(cls) else (False,)


@functools.cache
def _groups() -> tuple[list[tuple], ...]:
    """Choices that do not depend on each other; joined they are the fields of a combination."""
    classes = sorted((name,) for name, loss in LOSSES if hasattr(loss, "softmax"))
    switch = [(False,), (True,)]
    pools = [(None,), *sorted((name,) for name, _ in POOLERS)]
    choices = (
        _token_choices(), _encoder_choices(), _query_choices(), classes, switch, switch, pools
    )  # fmt: skip
    return tuple(map(list, choices))


def _fields_of(group: int) -> list[str]:
    """Names of the fields that the choices of a group fill."""
    start = sum(len(each[0]) for each in _groups()[:group])
    return [each.name for each in fields(Combination)][start : start + len(_groups()[group][0])]


@functools.cache
def _able_to_pool(group: int) -> tuple[bool, ...]:
    """Which choices of a group go with a pool."""
    names = _fields_of(group)
    return tuple(can_pool(dict(zip(names, each, strict=True))) for each in _groups()[group])


def can_pool(chosen: dict) -> bool:
    """Whether some fields of a combination go with a pool."""
    return (
        ("selector" not in chosen or SELECTORS.get(chosen["selector"]).needs_scorer)
        and ("encoder" not in chosen or "pool" in arguments_of(ENCODERS.get(chosen["encoder"])))
        and ("decoder" not in chosen or _reads_pooled(DECODERS.get(chosen["decoder"])))
    )


def _reads_pooled(decoder: type) -> bool:
    return getattr(decoder, "reads_pooled", False)


class Combinations(Sequence):
    """Every combination that the registered parts declare to be possible; made when asked for.

    And combinations of a pool with parts that do not go with it, which are not ``possible``.
    """

    def __init__(self) -> None:
        self.shape = tuple(map(len, _groups()))

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, number: int) -> Combination:
        places = np.unravel_index(number, self.shape)
        chosen = (group[place] for group, place in zip(_groups(), places, strict=True))
        return Combination(*itertools.chain.from_iterable(chosen))

    def __contains__(self, combination: object) -> bool:
        values = iter(astuple(combination))
        parts = (tuple(itertools.islice(values, len(group[0]))) for group in _groups())
        listed = all(part in group for part, group in zip(parts, _groups(), strict=True))
        return listed and (combination.pool is None or can_pool(vars(combination)))

    def possible(self, numbers: np.ndarray) -> np.ndarray:
        """Those of the numbers whose parts go together."""
        *places, pools = np.unravel_index(numbers, self.shape)
        able = [np.array(_able_to_pool(group))[place] for group, place in enumerate(places)]
        return numbers[(pools == 0) | np.logical_and.reduce(able)]

    def pairs(self, *, dense: bool = False) -> set:
        """Every two choices, as (number of the field, value), that can meet."""
        start, groups, able, found = 0, [], [], set()
        for number, group in enumerate(_groups()):
            listed = list(zip(group, _able_to_pool(number), strict=True))
            if dense and not groups:
                listed = [each for each in listed if "DenseSelector" in each[0]]
            groups.append([list(enumerate(each, start)) for each, _ in listed])
            able.append([list(enumerate(each, start)) for each, can in listed if can])
            start += len(group[0])
            found |= {two for each in groups[-1] for two in itertools.combinations(each, 2)}
        without_pool = [*groups[:-1], groups[-1][:1]]
        with_pool = [*able[:-1], groups[-1][1:]]
        for chosen in (without_pool, with_pool) if all(with_pool) else (without_pool,):
            values = [set(itertools.chain.from_iterable(group)) for group in chosen]
            for one, other in itertools.combinations(values, 2):
                found |= set(itertools.product(one, other))
        return found


def weighs(combination: Combination) -> bool:
    """Whether the kept tokens are multiplied by their scores, because no loss trains the scorer."""
    if combination.scorer is None or combination.term is not None:
        return False
    return "supervised" in arguments_of(SCORERS.get(combination.scorer)) or (
        combination.scorer == "PollScorer"
    )


def some_combinations(count: int) -> list[Combination]:
    """So many of all combinations, always the same ones."""
    every = Combinations()
    numbers = random.Random(0).sample(range(len(every)), 4 * count)
    return [every[number] for number in every.possible(np.array(numbers))[:count]]


def token_choices() -> list[dict]:
    """Every choice of tokens, by the fields of a combination."""
    names = ("scorer", "term", "selector", "layer_ratios")
    return [dict(zip(names, each, strict=True)) for each in _groups()[0]]


@functools.cache
def pairwise_cover(*, dense: bool = False) -> tuple[Combination, ...]:
    """The named systems, and few others, so that every two choices that can meet do meet.

    Args:
        dense: only those that keep every token.
    """
    every = Combinations()
    numbers = np.arange(len(every))
    if dense:
        keeps = [each["selector"] == "DenseSelector" for each in token_choices()]
        numbers = numbers[np.array(keeps)[np.unravel_index(numbers, every.shape)[0]]]
    numbers = every.possible(numbers)
    if len(numbers) > 40_000:  # of which some make every pair
        numbers = np.random.default_rng(0).choice(numbers, 40_000, replace=False)
    named = [each for each in NAMED.values() if not dense or each.selector == "DenseSelector"]
    pairs, num_pairs = _pairs(numbers, named)
    missing = np.ones(num_pairs, dtype=bool)
    missing[pairs[len(numbers) :]] = False
    chosen = list(named)
    few = np.random.default_rng(0).permutation(len(numbers))[:2000]
    for considered in (few, np.arange(len(numbers))):
        while missing[pairs[considered]].any():
            best = considered[missing[pairs[considered]].sum(1).argmax()]
            chosen.append(every[numbers[best]])
            missing[pairs[best]] = False
    return tuple(chosen)


def _pairs(numbers: np.ndarray, named: Sequence[Combination]) -> tuple[np.ndarray, int]:
    """Which pairs of choices ``[candidates, pairs of fields]`` every candidate makes, numbered.

    The candidates are those of the ``numbers``, then the ``named`` ones.
    """
    places = np.unravel_index(numbers, Combinations().shape)
    extra = np.array([astuple(each) for each in named], dtype=object)
    columns = []
    for group, place in zip(_groups(), places, strict=True):
        for values in zip(*group, strict=True):
            code = {value: number for number, value in enumerate(dict.fromkeys(values))}
            own = np.array([code[value] for value in values], dtype=np.int32)
            last = [code[value] for value in extra[:, len(columns)]]
            columns.append(np.concatenate((own[place], np.array(last, dtype=np.int32))))
    pairs, total = [], 0
    for one, other in itertools.combinations(columns, 2):
        width = other.max() + 1
        pairs.append(total + one * width + other)
        total += (one.max() + 1) * width
    return np.stack(pairs, axis=1), int(total)
