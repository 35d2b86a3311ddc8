"""Small detectors from any combination of registered parts, and batches to feed them."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

import sparsedet.modeling  # noqa: F401 (fills the registries)
from sparsedet.analysis import calibrate_selector
from sparsedet.modeling import (
    BoxL1Loss,
    ChannelMapper,
    GIoULoss,
    GlobalEncoder,
    HungarianMatcher,
    SetCriterion,
    TokenSparseDetector,
)
from sparsedet.modeling.criterion import MatchedTerm
from sparsedet.modeling.losses import SupervisedStages
from sparsedet.modeling.parts import CalibratedSelector
from sparsedet.modeling.stages import (
    Matching,
    MultiScaleFeatures,
    NoisedTargets,
    Prediction,
    Targets,
)
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
from sparsedet.structures import Boxes, Instances, cxcywh_to_xyxy

EMBED_DIM = 32
NUM_CLASSES = 3
STRIDES = (8, 16, 32, 64)
ARGUMENTS = dict(
    embed_dim=EMBED_DIM,
    num_classes=NUM_CLASSES,
    num_heads=4,
    num_levels=len(STRIDES),
    num_points=2,
    feedforward_dim=48,
    dropout=0.0,
    num_layers=2,
    num_queries=20,
    num_objects=10,
    num_tokens=5,
    num_regions=10,
    keep_ratio=0.4,
    train_ratios=(0.2, 0.4),
    max_ratio=0.8,
    levels=((1, 2, 3), (0, 1, 2, 3)),
)
# The same parts when they are told to keep every token.
KEEP_ALL = dict(keep_ratio=1.0, train_ratios=(1.0,), max_ratio=1.0, levels=((0, 1, 2, 3),) * 2)

Size = tuple[int, int]


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
    scorer="ForegroundTokenSelector",
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
    """Scorers that features are enough for; TeacherScorer has tests of its own."""
    return [each for each in sorted(SCORERS) if not getattr(each[1], "needs_images", False)]


def _scorer_choices() -> Iterator[tuple[str, str | None]]:
    """Scorers, each with every loss that trains it, and without one where it needs none."""
    for name, scorer in scorers():
        if "supervised" in _arguments(scorer) or scorer.learns is None:
            yield name, None
        for term, loss in sorted(LOSSES):
            kind = getattr(loss, "teaches", None)
            if kind is not None and scorer.learns is not None and issubclass(kind, scorer.learns):
                yield name, term


def _token_choices() -> Iterator[tuple]:
    for name, selector in sorted(SELECTORS):
        scorers = _scorer_choices() if selector.needs_scorer else [(None, None)]
        ratios = [None, (1.0, 0.5)] if "layer_ratios" in _arguments(selector) else [None]
        for scorer, listed in itertools.product(scorers, ratios):
            yield *scorer, name, listed


def _encoder_choices() -> Iterator[tuple]:
    for name, encoder in sorted(ENCODERS):
        rates = "object_scorer" in _arguments(encoder)
        scorers = sorted(each for each, _ in OBJECT_SCORERS) if rates else [None]
        sources = ("updated", "input") if "value_source" in _arguments(encoder) else ("updated",)
        activations = ("relu", "prelu") if "activation" in _arguments(encoder) else ("relu",)
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
    return plain + found if "cross" in _arguments(decoder) else plain


def _arguments(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)


def _switch(cls: type, name: str) -> tuple[bool, ...]:
    return (False, True) if name in _arguments(cls) else (False,)


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
        and ("encoder" not in chosen or "pool" in _arguments(ENCODERS.get(chosen["encoder"])))
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
    return "supervised" in _arguments(SCORERS.get(combination.scorer)) or (
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


def build(cls: type, **arguments):
    """Construct a part, giving it those of ``arguments`` and ``ARGUMENTS`` that it takes."""
    given = {**ARGUMENTS, **arguments}
    taken = _arguments(cls)
    return cls(**{name: value for name, value in given.items() if name in taken})


class Patches(nn.Module):
    """The cheapest backbone: one strided convolution per map."""

    size_divisibility = 1

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 8, 8)
        self.res4 = nn.Conv2d(4, 4, 3, 2, 1)
        self.res5 = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = (-size % 8 for size in images.shape[-2:])
        res3 = self.stem(nn.functional.pad(images, (0, width, 0, height)))
        res4 = self.res4(res3)
        return {"res3": res3, "res4": res4, "res5": self.res5(res4)}


def parts(combination: Combination, **arguments) -> dict:
    """Constructor arguments of a small detector."""

    def chosen(registry, name: str | None, **options):
        return None if name is None else build(registry.get(name), **{**options, **arguments})

    supervised = combination.term is not None
    queries = chosen(QUERY_INITIALIZERS, combination.queries, points=combination.points)
    term = chosen(LOSSES, combination.term, weight=1.0)
    made = dict(
        backbone=Patches(),
        neck=ChannelMapper(dict(res3=4, res4=4, res5=4), (8, 16, 32), embed_dim=EMBED_DIM),
        scorer=chosen(SCORERS, combination.scorer, supervised=supervised),
        selector=chosen(SELECTORS, combination.selector, layer_ratios=combination.layer_ratios),
        encoder=chosen(
            ENCODERS,
            combination.encoder,
            value_source=combination.value_source,
            norm_first=combination.norm_first,
            activation=combination.activation,
            scale_pos=combination.scale_tokens_pos,
            object_scorer=chosen(OBJECT_SCORERS, combination.object_scorer),
            pool=chosen(POOLERS, combination.pool),
            input_norm=combination.pool is not None,
        ),
        query_initializer=queries,
        denoising=chosen(DENOISINGS, combination.denoising),
        decoder=chosen(
            DECODERS,
            combination.decoder,
            refine=combination.refine,
            output_norm=combination.output_norm,
            look_forward_twice=combination.look_forward_twice,
            conditional_pos=not queries.provides_pos,
            scale_pos=combination.scale_pos,
            scale_tokens_pos=combination.scale_tokens_pos,
            norm_first=combination.norm_first,
            activation=combination.activation,
            cross=combination.cross,
            modulate_size=combination.modulate_size,
        ),
        criterion=SetCriterion(
            HungarianMatcher(),
            [
                chosen(LOSSES, combination.classes, weight=2.0),
                BoxL1Loss(weight=5.0),
                GIoULoss(weight=2.0),
            ],
            stage=[] if term is None else [term],
        ),
        embed_dim=EMBED_DIM,
        num_levels=len(STRIDES),
        num_classes=NUM_CLASSES,
        shared_heads=combination.shared,
        encoder_aux_loss=combination.aux,
    )
    if isinstance(combination, Bare):
        made["encoder"] = GlobalEncoder(EMBED_DIM, num_layers=0)
    return made


def detector(combination: Combination, *, seed: int = 0, **arguments) -> TokenSparseDetector:
    """A small detector with every parameter drawn, so that no zero of an initialization hides."""
    model = randomize(TokenSparseDetector(**parts(combination, **arguments)), seed)
    if isinstance(model.selector, CalibratedSelector):
        calibrate_selector(model, [samples(((64, 96), (96, 70), (128, 64)), (2, 1, 3))])
    return model


def fix_noise(model: TokenSparseDetector) -> TokenSparseDetector:
    """Noise that is a function of the object and of the slot's kind, instead of drawn noise.

    Groups are alike then, so that their number changes no mean.
    """
    if model.denoising is None:
        return model
    part = model.denoising
    part.label_noise = part.box_noise = 0.0
    drawn = type(part).sample

    def sample(targets: Targets) -> NoisedTargets:
        noised = drawn(part, targets)
        slots = noised.labels.shape[1] // noised.num_groups
        kinds = slots // max(1, *targets.counts)
        kind = torch.arange(noised.labels.shape[1]) % slots * kinds // slots
        waves = (40 * noised.boxes + kind[:, None]).sin()
        labels = (noised.labels + (waves[..., 0] > 0)) % NUM_CLASSES
        return replace(noised, labels=labels, boxes=noised.boxes * (1 + 0.1 * waves))

    part.sample = sample
    return model


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter: gains around 1, offsets of whole cells, all else by fan-in."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            noise /= parameter[0].numel() ** 0.5
        elif name.endswith("sampling_offsets.bias"):
            noise *= 1.0
        elif name.endswith("weight"):
            noise = 1 + 0.05 * noise
        else:
            noise *= 0.1
        parameter.copy_(noise)
    return model


def level_sizes(size: Size) -> list[Size]:
    """Cells of an image on every level."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]


def image_maps(size: Size, seed: int, channels: int = EMBED_DIM) -> list[Tensor]:
    """The maps ``[C h w]`` that a neck would give for one image alone."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(channels, *cells, generator=generator) for cells in level_sizes(size)]


def padded_maps(images: Sequence[list[Tensor]], canvas: Size, garbage: float = 7.0) -> list[Tensor]:
    """One batch of maps; what lies beyond an image is noise of this size."""
    batch = []
    for level, cells in enumerate(level_sizes(canvas)):
        maps = garbage * torch.randn(len(images), images[0][level].shape[0], *cells)
        for slot, image in zip(maps, images, strict=True):
            slot[:, : image[level].shape[1], : image[level].shape[2]] = image[level]
        batch.append(maps)
    return batch


def features(
    model: TokenSparseDetector,
    sizes: Sequence[Size],
    seeds: Sequence[int] | None = None,
    *,
    canvas: Size | None = None,
) -> MultiScaleFeatures:
    """Embedded features of a padded batch; an image depends on its size and seed only."""
    seeds = range(len(sizes)) if seeds is None else seeds
    canvas = canvas or (max(h for h, _ in sizes), max(w for _, w in sizes))
    images = [image_maps(size, seed) for size, seed in zip(sizes, seeds, strict=True)]
    return model.embed(padded_maps(images, canvas), sizes)


def targets(counts: Sequence[int], seeds: Sequence[int] | None = None) -> Targets:
    """Random objects inside of the images."""
    boxes, labels = [], []
    for count, seed in zip(counts, range(len(counts)) if seeds is None else seeds, strict=True):
        generator = torch.Generator().manual_seed(1000 + seed)
        size = 0.05 + 0.4 * torch.rand(count, 2, generator=generator)
        center = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
        boxes.append(torch.cat((center, size), dim=1))
        labels.append(torch.randint(NUM_CLASSES, (count,), generator=generator))
    return Targets(tuple(boxes), tuple(labels))


def loss_of(
    term: MatchedTerm, prediction: Prediction, matching: Matching, num_boxes: float
) -> Tensor:
    """What a matched term says of one stage."""
    stages = SupervisedStages.join([prediction], [matching])
    return term(stages, torch.tensor([num_boxes]))[0]


def select_image(given: Targets, image: int) -> Targets:
    """The targets of one image."""
    return replace(
        given, boxes=given.boxes[image : image + 1], labels=given.labels[image : image + 1]
    )


def samples(
    sizes: Sequence[Size], counts: Sequence[int], seeds: Sequence[int] | None = None
) -> list[dict]:
    """A batch as the data loader gives it; an image depends on its size and seed only."""
    batch = []
    seeds = range(len(sizes)) if seeds is None else seeds
    objects = targets(counts, seeds)
    for (height, width), seed, boxes, labels in zip(
        sizes, seeds, objects.boxes, objects.labels, strict=True
    ):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        scale = torch.tensor([width, height, width, height])
        instances = Instances(
            (height, width), gt_boxes=Boxes(cxcywh_to_xyxy(boxes) * scale), gt_classes=labels
        )
        batch.append(
            dict(
                image=image, height=2 * height, width=2 * width, image_id=seed, instances=instances
            )
        )
    return batch
