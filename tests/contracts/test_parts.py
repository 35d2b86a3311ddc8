"""Parts that do not go together are refused, with the configuration key that mends it."""

from __future__ import annotations

import itertools
from dataclasses import astuple

import pytest
import torch

from sparsedet.layers.positional import SinePositionEmbedding
from sparsedet.modeling import (
    AnchorQueries,
    ChannelMapper,
    ContrastiveDenoising,
    DAMPredictor,
    DecoderAttentionLoss,
    DeformableDecoder,
    DeformableEncoder,
    Denoising,
    DenseSelector,
    DualAttentionEncoder,
    EfficientQueries,
    FocalLoss,
    ForegroundLoss,
    ForegroundScorer,
    LearnedQueries,
    LevelScheduleSelector,
    MixedQueries,
    RandomScorer,
    SetCriterion,
    TimmBackbone,
    TokenSparseDetector,
    TopKSelector,
    TorchvisionResNet,
    TorchvisionSwin,
    TwoStageQueries,
)
from sparsedet.registry import FAMILIES, find_component, list_components
from tests.modeling import small

SPARSE = small.NAMED["sparse"]
CHANNELS = dict(res3=4, res4=4, res5=4)


def neck(**changes) -> ChannelMapper:
    return ChannelMapper(CHANNELS, **{"strides": (8, 16, 32), "embed_dim": 32, **changes})


def criterion(*unmatched) -> SetCriterion:
    return SetCriterion(small.HungarianMatcher(), [FocalLoss(weight=1.0)], unmatched=unmatched)


DAM_LOSS = DecoderAttentionLoss(weight=1.0)


def points_without_positions() -> LearnedQueries:
    part = LearnedQueries(32, 5)
    part.provides_pos = False
    return part


def of_proposals() -> DualAttentionEncoder:
    return small.build(DualAttentionEncoder, category_head="proposal")


MISFITS = {
    "classes": (
        dict(num_classes=0),
        r"num_classes must be an integer .*, got 0.*dataset\.",
    ),
    "classes unknown": (dict(num_classes=None), r"got None.*dataset\.num_classes"),
    "neck width": (
        dict(neck=neck(embed_dim=64)),
        r"neck: embed_dim.*32.*64.*model\.neck\.embed_dim",
    ),
    **{
        f"{type(part).__name__} width": (
            {family: part},
            rf"{family}: embed_dim.*64.*model\.{family}\.embed_dim",
        )
        for family, part in (
            ("encoder", small.build(DeformableEncoder, embed_dim=64)),
            ("decoder", small.build(DeformableDecoder, embed_dim=64)),
            ("position_embedding", SinePositionEmbedding(64)),
            ("scorer", DAMPredictor(64)),
            ("scorer", ForegroundScorer(64)),
            ("query_initializer", LearnedQueries(64, 5)),
            ("query_initializer", EfficientQueries(64, 5)),
            ("query_initializer", MixedQueries(64, 5)),
            ("query_initializer", AnchorQueries(64, 5)),
        )
    },
    "denoising width": (
        dict(denoising=ContrastiveDenoising(64, 3)),
        r"denoising: embed_dim.*32.*64.*model\.denoising\.embed_dim",
    ),
    "queries without positions": (
        dict(query_initializer=MixedQueries(32, 5)),
        r"decoder must make positions for MixedQueries, whose queries lack them, got False.*"
        r"model\.decoder\.makes_pos=True",
    ),
    "queries with positions": (
        dict(decoder=small.build(DeformableDecoder, makes_pos=True)),
        r"decoder must not make positions for EfficientQueries, whose queries have them, got True.*"
        r"model\.decoder\.makes_pos=False",
    ),
    "positions from points": (
        dict(
            query_initializer=points_without_positions(),
            decoder=small.build(DeformableDecoder, makes_pos=True),
        ),
        r"makes positions from boxes, but the references of LearnedQueries are points.*"
        r"model\.query_initializer",
    ),
    "classes of a first stage that is not there": (
        dict(encoder=of_proposals(), query_initializer=LearnedQueries(32, 5)),
        r"category_head must be 'decoder' for LearnedQueries.*got 'proposal'.*"
        r"model\.encoder\.category_head=decoder",
    ),
    "classes of a first stage that tells none": (
        dict(encoder=of_proposals(), query_initializer=TwoStageQueries(32, 5)),
        r"category_head must be 'decoder' for TwoStageQueries.*got 'proposal'",
    ),
    "denoising of queries with positions": (
        dict(denoising=Denoising(32, 3)),
        r"denoising must be None for EfficientQueries.*got Denoising.*"
        r"model\.denoising=null or model\.query_initializer\._target_=MixedQueries",
    ),
    "denoising of fewer classes": (
        dict(
            query_initializer=MixedQueries(32, 5),
            decoder=small.build(DeformableDecoder, makes_pos=True),
            denoising=ContrastiveDenoising(32, 2),
        ),
        r"ContrastiveDenoising\.num_classes must be 3 as in the detector, got 2\. "
        r"Set model\.denoising\.num_classes",
    ),
    "not a denoising": (
        dict(denoising=RandomScorer()),
        r"denoising must be a Denoising.*got RandomScorer.*model\.denoising",
    ),
    "neck levels": (
        dict(neck=neck(num_levels=3)),
        r"neck: num_levels must be 4.*got 3.*model\.neck",
    ),
    "strides of a backbone that is dilated": (
        dict(
            backbone=TorchvisionResNet("resnet50", dilation=True),
            neck=ChannelMapper(dict(res3=512, res4=1024, res5=2048), (8, 16, 32), embed_dim=32),
        ),
        r"strides must be \[8, 16, 16\] as in TorchvisionResNet, got \[8, 16, 32\]",
    ),
    "scorer levels": (
        dict(
            scorer=ForegroundScorer(32, 3),
            selector=TopKSelector(0.4),
            criterion=criterion(ForegroundLoss(weight=1.0)),
        ),
        r"scorer: num_levels must be 4.*got 3.*model\.scorer\.num_levels",
    ),
    "ranges of sizes": (
        dict(
            scorer=ForegroundScorer(32, 4),
            selector=TopKSelector(0.4),
            criterion=criterion(ForegroundLoss(weight=1.0, size_ranges=[(-1, 64), (64, 999)])),
        ),
        r"ForegroundLoss\.size_ranges must have one range for each of the 4 levels, got 2.*"
        r"size_ranges of the term in model\.criterion\.",
    ),
    "supervised though built without": (
        dict(
            scorer=ForegroundScorer(32, 4, supervised=False),
            selector=TopKSelector(0.4),
            criterion=criterion(ForegroundLoss(weight=1.0)),
        ),
        r"ForegroundLoss trains a ForegroundScorer, and this .* built without supervision.*"
        r"model\.criterion\.unmatched=\[\] or model\.scorer\.supervised=True",
    ),
    "levels of too few layers": (
        dict(scorer=None, criterion=criterion(), selector=LevelScheduleSelector(((0, 1),))),
        r"levels must have one entry for each of the 2 encoder layers, got 1.*"
        r"model\.selector\.levels",
    ),
    "levels that are not there": (
        dict(scorer=None, criterion=criterion(), selector=LevelScheduleSelector(((0,), (4,)))),
        r"levels must be below 4, the number of levels, got 4.*model\.selector\.levels",
    ),
    "encoder levels": (
        dict(encoder=small.build(DeformableEncoder, num_levels=3)),
        r"encoder: num_levels must be 4.*got 3.*model\.encoder\.num_levels",
    ),
    "decoder levels": (
        dict(decoder=small.build(DeformableDecoder, num_levels=3)),
        r"decoder: num_levels must be 4.*got 3.*model\.decoder\.num_levels",
    ),
    "no scorer": (dict(scorer=None), r"scorer must be given for TopKSelector.*model\.scorer"),
    "idle scorer": (
        dict(selector=DenseSelector()),
        r"must use the scores of DAMPredictor, got DenseSelector.*model\.selector\._target_",
    ),
    "layer ratios": (
        dict(selector=TopKSelector(layer_ratios=(0.5, 0.3, 0.2))),
        r"layer_ratios must have one ratio.*2 encoder layers, got 3.*model\.selector\.layer_ratios",
    ),
    "untrained scorer": (
        dict(criterion=criterion()),
        r"DAMPredictor is trained by DecoderAttentionLoss, got .*model\.criterion\.unmatched",
    ),
    "untrained foreground scorer": (
        dict(scorer=ForegroundScorer(32)),
        r"ForegroundScorer is trained by ForegroundLoss or SalienceLoss, got unmatched terms "
        r"\['DecoderAttentionLoss'\]\. Add ForegroundLoss or SalienceLoss to model\.criterion",
    ),
    "foreground loss of another scorer": (
        dict(scorer=DAMPredictor(32), criterion=criterion(ForegroundLoss(weight=1.0), DAM_LOSS)),
        r"ForegroundLoss trains a ForegroundScorer, and the scorer is DAMPredictor",
    ),
    "loss without scorer": (
        dict(scorer=None, selector=None),
        r"DecoderAttentionLoss trains a DAMPredictor, and there is no scorer\. "
        r"Set model\.criterion\.unmatched=\[\] or model\.scorer\._target_=DAMPredictor\.",
    ),
    "loss of another scorer": (
        dict(scorer=RandomScorer(), criterion=criterion(DecoderAttentionLoss(weight=1.0))),
        r"trains a DAMPredictor, and the scorer is RandomScorer.*"
        r"model\.scorer\._target_=DAMPredictor",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_are_refused(case):
    changes, message = MISFITS[case]
    with pytest.raises(ValueError, match=message):
        TokenSparseDetector(**{**small.parts(SPARSE), **changes})


BAD_ARGUMENTS = {
    "ratio 0": (lambda: TopKSelector(0.0), r"keep_ratio must be in \(0, 1\], got 0.0"),
    "ratio above 1": (lambda: TopKSelector(1.3), r"got 1.3\. Set model\.selector\.keep_ratio"),
    "ratio nan": (lambda: TopKSelector(float("nan")), r"keep_ratio must be in \(0, 1\], got nan"),
    "layer ratio": (
        lambda: TopKSelector(layer_ratios=(1.0, 0.0)),
        r"layer_ratios must be numbers in \(0, 1\], one per layer, got \[1\.0, 0\.0\]",
    ),
    "value source": (
        lambda: small.build(DeformableEncoder, value_source="other"),
        r"value_source must be 'updated' or 'input', got 'other'.*model\.encoder\.value_source",
    ),
    "category head": (
        lambda: small.build(DualAttentionEncoder, category_head="encoder"),
        r"category_head must be 'decoder' or 'proposal', got 'encoder'.*"
        r"model\.encoder\.category_head",
    ),
    "distance": (
        lambda: ForegroundLoss(weight=1.0, distance="corners"),
        r"ForegroundLoss\.distance must be one of \['sides', 'half_size', 'center'\], got "
        r"'corners'.*of the term in model\.criterion\.",
    ),
    "look forward twice": (
        lambda: small.build(DeformableDecoder, refine=False, look_forward_twice=True),
        r"look_forward_twice must be False without refine, got True\. "
        r"Set model\.decoder\.refine=True or model\.decoder\.look_forward_twice=False",
    ),
    "scaled positions": (
        lambda: small.build(DeformableDecoder, scale_pos=True),
        r"scale_pos must be False without makes_pos.*model\.decoder\.makes_pos=True",
    ),
    "queries": (
        lambda: MixedQueries(32, 0),
        r"MixedQueries\.num_queries must be an integer of at least 1, got 0.*num_queries",
    ),
    "anchors": (lambda: AnchorQueries(32, -1), r"AnchorQueries\.num_queries must be .*got -1"),
    "denoising groups": (
        lambda: Denoising(32, 3, num_groups=0),
        r"Denoising\.num_groups must be an integer .*got 0.*model\.denoising\.num_groups",
    ),
    "denoising queries": (
        lambda: ContrastiveDenoising(32, 3, num_queries=0),
        r"ContrastiveDenoising\.num_queries must be .*got 0.*model\.denoising\.num_queries",
    ),
    "label noise": (
        lambda: ContrastiveDenoising(32, 3, label_noise=1.5),
        r"ContrastiveDenoising\.label_noise must be a probability in \[0, 1\], got 1\.5.*"
        r"model\.denoising\.label_noise",
    ),
    "box noise": (
        lambda: Denoising(32, 3, box_noise=-0.1),
        r"Denoising\.box_noise must not be negative, got -0\.1.*model\.denoising\.box_noise",
    ),
    "box noise nan": (
        lambda: Denoising(32, 3, box_noise=float("nan")),
        r"Denoising\.box_noise must not be negative, got nan.*model\.denoising\.box_noise",
    ),
    "heads": (
        lambda: small.build(DeformableEncoder, num_heads=5),
        r"num_heads must divide embed_dim \(32\), got 5\. Set model\.encoder\.num_heads",
    ),
    "position": (lambda: SinePositionEmbedding(30), "divisible by 4, got 30"),
    "neck groups": (lambda: neck(embed_dim=48), r"divisible by 32.*got 48.*model\.embed_dim"),
    "neck strides": (lambda: neck(strides=(8, 16)), r"got 2 strides.*model\.neck\.strides"),
    "neck levels": (lambda: neck(num_levels=2), r"num_levels=2.*model\.num_levels"),
    "resnet name": (lambda: TorchvisionResNet("resnet51"), r"resnet51.*model\.backbone\.name"),
    "resnet swin": (lambda: TorchvisionResNet("swin_t"), r"model\.backbone\.name"),
    "resnet norm": (
        lambda: TorchvisionResNet("resnet18", norm="other"),
        r"norm must be one of \['bn', 'frozen_bn'\], got 'other'.*model\.backbone\.norm",
    ),
    "resnet weights": (
        lambda: TorchvisionResNet("resnet18", weights="OTHER"),
        r"weights 'OTHER'.*model\.backbone\.weights",
    ),
    "swin name": (lambda: TorchvisionSwin("resnet18"), r"model\.backbone\.name"),
    "timm name": (lambda: TimmBackbone("no_such_net"), r"must be a timm model, got 'no_such_net'"),
    "timm maps": (
        lambda: TimmBackbone("test_resnet", out_features=("res3", "res6")),
        r"strides \[2, 4, 8, 16, 32\].*res6",
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(case):
    construct, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        construct()


def test_maps_that_the_backbone_does_not_give():
    arguments = {**small.parts(SPARSE), "backbone": TimmBackbone("test_resnet")}
    images, sizes = torch.zeros(1, 3, 64, 64), ((64, 64),)
    with pytest.raises(ValueError, match=r"\{'res3': 48, 'res4': 192, 'res5': 96\}.*in_channels"):
        TokenSparseDetector(**arguments).detect(images, sizes)
    arguments["backbone"] = TimmBackbone("test_resnet", out_features=("res3", "res5"))
    with pytest.raises(ValueError, match=r"names \['res4'\], but the backbone has.*in_channels"):
        TokenSparseDetector(**arguments).detect(images, sizes)


def test_registries_list_what_they_find():
    listed = list_components()
    assert listed.keys() == FAMILIES.keys()
    assert all(listed.values())
    for family, names in listed.items():
        for name in names:
            assert find_component(name) is FAMILIES[family].get(name)
            assert find_component(name).__doc__
    with pytest.raises(KeyError, match=r"registered as 'Other'.*TopKSelector"):
        find_component("Other")


def test_all_choices_take_part_in_the_combinations():
    """What is registered is tested: a new part enters these tests by its registration."""
    every, cover = small.Combinations(), small.pairwise_cover()
    registered = {**list_components(), "scorer": [name for name, _ in small.scorers()]}
    families = dict(
        scorer="scorer",
        selector="selector",
        encoder="encoder",
        object_scorer="object_scorer",
        pool="pooler",
        queries="query_initializer",
        denoising="denoising",
        decoder="decoder",
    )
    for field, family in families.items():
        found = {getattr(each, field) for each in cover} - {None}
        assert found == set(registered[family])
    losses = FAMILIES["loss"]
    assert {each.term for each in cover} - {None} == {n for n, x in losses if hasattr(x, "teaches")}
    assert {each.classes for each in cover} == {n for n, x in losses if hasattr(x, "softmax")}
    assert all(each in every for each in small.NAMED.values())
    assert set(small.NAMED.values()) <= set(cover)


def test_the_cover_has_every_pair_of_choices():
    def pairs(chosen) -> set:
        return {
            pair for each in chosen for pair in itertools.combinations(enumerate(astuple(each)), 2)
        }

    for dense in (False, True):
        assert pairs(small.pairwise_cover(dense=dense)) == small.Combinations().pairs(dense=dense)
