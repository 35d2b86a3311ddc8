"""Small detectors from any combination of registered parts, and batches to feed them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace

import torch
from torch import Tensor, nn

import sparsedet.modeling  # noqa: F401 (fills the registries)
from sparsedet.modeling import (
    BoxL1Loss,
    ChannelMapper,
    FocalLoss,
    GIoULoss,
    HungarianMatcher,
    SetCriterion,
    TokenSparseDetector,
)
from sparsedet.modeling.stages import MultiScaleFeatures, Targets
from sparsedet.registry import (
    DECODERS,
    ENCODERS,
    LOSSES,
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
    num_heads=4,
    num_levels=len(STRIDES),
    num_points=2,
    feedforward_dim=48,
    dropout=0.0,
    num_layers=2,
    num_queries=20,
    keep_ratio=0.4,
)

Size = tuple[int, int]


@dataclass(frozen=True)
class Combination:
    """One choice for every interchangeable part."""

    scorer: str | None = None
    selector: str = "DenseSelector"
    schedule: tuple[float, ...] | None = None
    encoder: str = "DeformableEncoder"
    value_source: str = "updated"
    queries: str = "EfficientQueries"
    decoder: str = "DeformableDecoder"
    refine: bool = True
    aux: bool = False
    shared: bool = False

    def __str__(self) -> str:
        differing = [
            f"{field.name}={value}".replace(" ", "") if isinstance(value, bool) else str(value)
            for field, value in zip(fields(self), astuple(self), strict=True)
            if value != field.default
        ]
        return "-".join(differing).replace(" ", "") or "efficient"


PLAIN = Combination(queries="LearnedQueries", refine=False, shared=True)
NAMED = {
    "deformable_plain": PLAIN,
    "deformable_refine": Combination(queries="LearnedQueries"),
    "deformable_two_stage": Combination(queries="TwoStageQueries"),
    "efficient": Combination(),
    "sparse": Combination("DAMPredictor", "TopKSelector", aux=True),
}


def _token_choices() -> Iterator[tuple[str | None, str, tuple[float, ...] | None]]:
    for name, selector in sorted(SELECTORS):
        scorers = sorted(scorer for scorer, _ in SCORERS) if selector.needs_scorer else [None]
        takes_schedule = "schedule" in inspect.signature(selector).parameters
        schedules = [None, (1.0, 0.5)] if takes_schedule else [None]
        for scorer, schedule in itertools.product(scorers, schedules):
            yield scorer, name, schedule


def combinations() -> list[Combination]:
    """Every combination that the registered parts declare to be possible."""
    encoders = [(name, source) for name, _ in sorted(ENCODERS) for source in ("updated", "input")]
    return [
        Combination(*tokens, *encoder, queries, decoder, refine, aux, shared)
        for tokens, encoder, queries, decoder, refine, aux, shared in itertools.product(
            _token_choices(),
            encoders,
            sorted(name for name, _ in QUERY_INITIALIZERS),
            sorted(name for name, _ in DECODERS),
            (False, True),
            (False, True),
            (False, True),
        )
    ]


def pairwise_cover() -> list[Combination]:
    """Few combinations in which every two choices that can meet do meet."""

    def pairs(combination: Combination) -> set:
        return set(itertools.combinations(enumerate(astuple(combination)), 2))

    candidates = {combination: pairs(combination) for combination in combinations()}
    missing = set().union(*candidates.values())
    chosen = []
    while missing:
        best = max(candidates, key=lambda each: len(candidates[each] & missing))
        chosen.append(best)
        missing -= candidates[best]
    return chosen


def build(cls: type, **arguments):
    """Construct a part, giving it those of ``arguments`` and ``ARGUMENTS`` that it takes."""
    given = {**ARGUMENTS, **arguments}
    taken = inspect.signature(cls).parameters
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
    scorer = None
    stage = []
    if combination.scorer is not None:
        scorer = build(SCORERS.get(combination.scorer), **arguments)
        if scorer.trained_by is not None:
            stage = [build(LOSSES.get(scorer.trained_by), weight=1.0)]
    return dict(
        backbone=Patches(),
        neck=ChannelMapper(dict(res3=4, res4=4, res5=4), (8, 16, 32), embed_dim=EMBED_DIM),
        scorer=scorer,
        selector=build(
            SELECTORS.get(combination.selector), **{"schedule": combination.schedule, **arguments}
        ),
        encoder=build(
            ENCODERS.get(combination.encoder),
            **{"value_source": combination.value_source, **arguments},
        ),
        query_initializer=build(QUERY_INITIALIZERS.get(combination.queries), **arguments),
        decoder=build(
            DECODERS.get(combination.decoder), **{"refine": combination.refine, **arguments}
        ),
        criterion=SetCriterion(
            HungarianMatcher(),
            [FocalLoss(weight=2.0), BoxL1Loss(weight=5.0), GIoULoss(weight=2.0)],
            stage=stage,
        ),
        embed_dim=EMBED_DIM,
        num_levels=len(STRIDES),
        num_classes=NUM_CLASSES,
        shared_heads=combination.shared,
        encoder_aux_loss=combination.aux,
    )


def detector(combination: Combination, *, seed: int = 0, **arguments) -> TokenSparseDetector:
    """A small detector with every parameter drawn, so that no zero of an initialization hides."""
    return randomize(TokenSparseDetector(**parts(combination, **arguments)), seed)


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
