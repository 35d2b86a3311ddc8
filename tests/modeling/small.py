"""Small detectors from any combination of registered parts, and batches to feed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

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
    PartialMap,
    Prediction,
    Targets,
    marked_tokens,
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
from tests.modeling.combinations import (  # noqa: F401 (whoever builds small ones chooses by them)
    DAM,
    DETR,
    DUAL,
    NAMED,
    PLAIN,
    Bare,
    Combination,
    Combinations,
    arguments_of,
    pairwise_cover,
    scorers,
    some_combinations,
    token_choices,
    weighs,
)

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


def build(cls: type, **arguments):
    """Construct a part, giving it those of ``arguments`` and ``ARGUMENTS`` that it takes."""
    given = {**ARGUMENTS, **arguments}
    taken = arguments_of(cls)
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
            makes_pos=not queries.provides_pos,
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
            unmatched=[] if term is None else [term],
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


def partial_map(
    whole: Tensor, there: Tensor, counts: tuple[int, ...], *, exact: bool = True
) -> PartialMap:
    """A map of which the cells that are ``there`` have been looked at, and fillers beside them."""
    kept = marked_tokens(there.flatten(1), counts, exact=exact)
    valid = torch.ones_like(kept.indices, dtype=torch.bool) if kept.valid is None else kept.valid
    tokens = kept.gather(whole.flatten(2).transpose(1, 2))
    return PartialMap(tokens, kept.indices, valid, tuple(whole.shape[2:]), counts, exact)


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
