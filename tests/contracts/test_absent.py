"""Absent tokens have no influence: not by what they hold, nor on companions of their image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsedet.modeling.stages import (
    MultiScaleFeatures,
    TokenScores,
    flatten_maps,
    level_size,
)
from sparsedet.registry import SELECTORS
from tests.contracts import test_padding as padding
from tests.modeling import small

FINE = 2  # levels that are there in parts
TILE = 32
SHORT = ((1, 0), None), ((4, 2), (130, 200))


def looked_at(size: small.Size, seed: int) -> torch.Tensor:
    """Which tiles of an image are there, a function of the image; at least one."""
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.rand(level_size(size, TILE), generator=generator) < 0.5
    tiles[0, 0] = True
    return tiles


def presence(sizes, seeds, canvas: small.Size, *, exact: bool):
    """For each fine level which cells are there, padding not among them, and how many."""
    levels = []
    for level, stride in enumerate(small.STRIDES[:FINE]):
        mask = torch.zeros(len(sizes), *level_size(canvas, stride), dtype=torch.bool)
        counts = []
        for image, (size, seed) in enumerate(zip(sizes, seeds, strict=True)):
            cells = looked_at(size, seed)
            for axis in (0, 1):
                cells = cells.repeat_interleave(TILE // stride, axis)
            h, w = level_size(size, stride)
            mask[image, :h, :w] = cells[:h, :w]
            count = int(cells[:h, :w].sum())
            counts.append(count if exact else min(count + 3 - level, h * w))
        levels.append((mask, tuple(counts)))
    return levels


def features_in_parts(model, sizes, seeds=None, *, canvas=None, exact=True) -> MultiScaleFeatures:
    """``small.features`` of which some cells are absent, and fillers noise, anew in every call."""
    seeds = range(len(sizes)) if seeds is None else seeds
    canvas = canvas or (max(h for h, _ in sizes), max(w for _, w in sizes))
    images = [small.image_maps(size, seed) for size, seed in zip(sizes, seeds, strict=True)]
    maps = small.padded_maps(images, canvas)
    for level, (mask, counts) in enumerate(presence(sizes, seeds, canvas, exact=exact)):
        noise = 7 * torch.randn(maps[level].shape, generator=NOISE)
        shown = torch.where(mask[:, None], maps[level], noise)
        maps[level] = small.partial_map(shown, mask, counts, exact=exact)
    return flatten_maps(maps, model._positions, strides=small.STRIDES, image_sizes=sizes)


NOISE = torch.Generator()


@pytest.fixture(params=[True, False], ids=["exact", "at most"])
def in_parts(request, monkeypatch):
    """Features that are there in parts, with exact counts and with bounds."""
    NOISE.manual_seed(0)

    def features(*args, **kwargs) -> MultiScaleFeatures:
        return features_in_parts(*args, **kwargs, exact=request.param)

    monkeypatch.setattr(small, "features", features)
    return features


@pytest.mark.parametrize("name", small.NAMED)
def test_neither_absent_tokens_nor_companions_matter(name, in_parts):
    padding.check(small.NAMED[name], batches=SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("combination", small.pairwise_cover(), ids=str)
def test_nor_do_they_to_any_choice(combination, in_parts):
    padding.check(combination, batches=SHORT)
    padding.check(combination, training=False, batches=SHORT)


@pytest.mark.parametrize("name", [name for name, _ in sorted(SELECTORS)])
def test_absent_tokens_are_never_selected(name, in_parts):
    model = small.detector(small.PLAIN)
    features = in_parts(model, padding.SIZES[:3])
    selector = small.build(SELECTORS.get(name), **small.KEEP_ALL).train()
    logits = torch.where(features.padding_mask, 9.0, torch.randn(features.padding_mask.shape))
    for selection in selector(TokenScores(logits), features, 2):
        if selection.indices is not None:  # otherwise all tokens, padding among them
            kept = selection.mask(features.num_tokens)
            assert torch.equal(kept, ~features.padding_mask)
        assert selection.counts == tuple((~features.padding_mask).sum(1).tolist())


def test_absent_tokens_are_never_proposed(in_parts):
    model = small.detector(small.NAMED["efficient"])
    features = in_parts(model, padding.SIZES[:3])
    assert not (features.proposals()[1] & features.padding_mask).any()
    _, allowed = model.heads.proposals(features)
    assert not (allowed & features.padding_mask).any()


def test_tokens_are_those_of_the_cells_that_are_there(in_parts):
    sizes = padding.SIZES[:3]
    features = in_parts(small.detector(small.PLAIN), sizes)
    there = ~features.padding_mask
    canvas = features.spatial_shapes[0][0] * 8, features.spatial_shapes[0][1] * 8
    marked = presence(sizes, range(3), canvas, exact=True)
    shown = features.to_cells(there)
    start = 0
    for level, (mask, counts) in enumerate(marked):
        assert tuple(features.split_levels(there)[level].sum(1).tolist()) == counts
        assert torch.equal(shown[:, start : start + mask[0].numel()], mask.flatten(1))
        start += mask[0].numel()
    assert (features.num_valid == tuple(there.sum(1).tolist())) == features.exact
    assert features.num_tokens < features.num_cells
    x = torch.randn(3, features.num_tokens)
    back = features.of_cells(features.to_cells(x))
    assert torch.equal(back, x.masked_fill(features.padding_mask, 0))
    assert not features.to_cells(x)[~shown].any()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("few", [True, False])
def test_absent_cells_read_as_outside_of_the_map(grad, few):
    """An encoder layer gives what it gives on whole maps where the value of these is zero."""
    model = small.detector(small.PLAIN).eval()
    features = features_in_parts(model, padding.SIZES[:2])
    attention = model.encoder.layers[0].attention
    query = features.tokens[:, :4] if few else features.tokens
    points = features.to_levels(features.reference_points)[:, : query.shape[1]]
    given, shapes = (query, points), features.spatial_shapes
    beyond = ~features.to_cells(~features.padding_mask)
    with torch.set_grad_enabled(grad):
        got = attention(
            *given,
            features.tokens,
            shapes,
            padding_mask=features.padding_mask,
            value_places=features.places,
        )
        whole = features.to_cells(features.tokens)
        expected = attention(*given, whole, shapes, padding_mask=beyond)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["focus", "sparse", "imfa_detr"])
def test_a_map_that_is_there_entirely_is_an_ordinary_one(name):
    """All cells given one by one, in another order: the same result as without that."""
    model = small.detector(small.NAMED[name]).eval()
    sizes = padding.SIZES[:2]
    images = [small.image_maps(size, seed) for seed, size in enumerate(sizes)]
    maps = small.padded_maps(images, (64 + 64, 96))
    given = dict(strides=small.STRIDES, image_sizes=sizes)
    whole = flatten_maps(maps, model._positions, **given)
    counts = [tuple(level) for level in zip(*whole.level_counts, strict=True)]
    parts = []
    for level, padded in enumerate(whole.split_levels(whole.padding_mask)[:FINE]):
        there = ~padded.unflatten(1, whole.spatial_shapes[level])
        part = small.partial_map(maps[level], there, counts[level])
        order = torch.randperm(part.cells.shape[1])
        shuffled = {x: getattr(part, x)[:, order] for x in ("tokens", "cells", "there")}
        parts.append(replace(part, **shuffled))
    marked = flatten_maps([*parts, *maps[FINE:]], model._positions, **given)
    assert torch.equal(~whole.padding_mask, marked.to_cells(~marked.padding_mask))
    assert whole.num_valid == marked.num_valid
    with torch.no_grad():
        first, second = (
            model.detect_features(each, small.targets((4, 3))).decoder[-1]
            for each in (whole, marked)
        )
    torch.testing.assert_close(first.boxes, second.boxes, atol=1e-5, rtol=1e-5)


def test_losses_do_not_look_at_absent_tokens():
    model = small.detector(small.NAMED["focus"])
    term = model.criterion.unmatched[0]
    features = features_in_parts(model, padding.SIZES[:3])
    objects = small.targets((4, 3, 2))
    logits = torch.randn(features.padding_mask.shape)
    other = torch.where(features.padding_mask, torch.randn(logits.shape), logits)
    first, second = (
        term.of_scores(TokenScores(each), features, objects) for each in (logits, other)
    )
    assert torch.equal(first, second)
    whole = replace(features, padding_mask=torch.zeros_like(features.padding_mask))
    assert not torch.equal(first, term.of_scores(TokenScores(logits), whole, objects))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", small.NAMED)
def test_no_network_runs_over_absent_cells(name, training):
    """Whatever a layer is told of the map, it is no more rows than there are tokens."""
    model = small.detector(small.NAMED[name]).train(training)
    features = features_in_parts(model, padding.SIZES[:1])
    most, cells = features.num_tokens, features.num_cells
    assert most < 0.8 * cells
    queries = 2 * 20 + 200 + 10 * 8  # of the decoder, noised ones and points of IMFA among them
    too_many: dict[str, tuple[int, ...]] = {}

    def note(key: str):
        def hook(module, given):
            shape = tuple(given[0].shape)
            rows = given[0][..., 0].numel()
            if rows > max(most + 50, queries):
                too_many[key] = shape

        return hook

    for key, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_pre_hook(note(key))
    model.detect_features(features, small.targets((4,)))
    assert not too_many
