"""Absent tokens have no influence: not by what they hold, nor on companions of their image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsedet.modeling.stages import (
    MultiScaleFeatures,
    Presence,
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


def presence(sizes, seeds, canvas: small.Size, *, exact: bool) -> list[Presence]:
    levels = []
    for level, stride in enumerate(small.STRIDES[:FINE]):
        mask = torch.ones(len(sizes), *level_size(canvas, stride), dtype=torch.bool)
        counts = []
        for image, (size, seed) in enumerate(zip(sizes, seeds, strict=True)):
            cells = looked_at(size, seed)
            for axis in (0, 1):
                cells = cells.repeat_interleave(TILE // stride, axis)
            h, w = level_size(size, stride)
            mask[image, :h, :w] = cells[:h, :w]
            count = int(cells[:h, :w].sum())
            counts.append(count if exact else min(count + 3 - level, h * w))
        levels.append(Presence(mask, tuple(counts), exact))
    return levels


def features_in_parts(model, sizes, seeds=None, *, canvas=None, exact=True) -> MultiScaleFeatures:
    """``small.features`` with absent cells that hold noise, another one in every call."""
    seeds = range(len(sizes)) if seeds is None else seeds
    canvas = canvas or (max(h for h, _ in sizes), max(w for _, w in sizes))
    images = [small.image_maps(size, seed) for size, seed in zip(sizes, seeds, strict=True)]
    maps = small.padded_maps(images, canvas)
    parts = presence(sizes, seeds, canvas, exact=exact)
    for level, own in enumerate(parts):
        noise = 7 * torch.randn(maps[level].shape, generator=NOISE)
        maps[level] = torch.where(own.mask[:, None], maps[level], noise)
    return flatten_maps(
        maps, model._positions, strides=small.STRIDES, image_sizes=sizes, presence=parts
    )


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
        kept = selection.mask(features.num_tokens)
        assert torch.equal(kept, ~features.padding_mask)
        assert selection.counts == tuple((~features.padding_mask).sum(1).tolist())


def test_absent_tokens_are_never_proposed(in_parts):
    model = small.detector(small.NAMED["efficient"])
    features = in_parts(model, padding.SIZES[:3])
    assert not (features.proposals()[1] & features.padding_mask).any()
    _, allowed = model.heads.proposals(features)
    assert not (allowed & features.padding_mask).any()


def test_present_rows_are_what_is_there(in_parts):
    features = in_parts(small.detector(small.PLAIN), padding.SIZES[:3])
    there = ~features.padding_mask
    marked = presence(padding.SIZES[:3], range(3), (128, 96), exact=True)
    for level, own in enumerate(marked):
        assert tuple(features.split_levels(there)[level].sum(1).tolist()) == own.counts
    assert (features.num_valid == tuple(there.sum(1).tolist())) == features.exact
    rows = features.present_rows
    assert len(set(rows.tolist())) == len(rows) == 3 * max(features.num_valid)
    assert set(there.flatten().nonzero()[:, 0].tolist()) <= set(rows.tolist())


@pytest.mark.parametrize("grad", [True, False])
def test_absent_cells_read_as_outside_of_the_map(grad):
    """An encoder layer gives what it gives where the value of these cells is zero."""
    model = small.detector(small.PLAIN).eval()
    features = features_in_parts(model, padding.SIZES[:2])
    attention = model.encoder.layers[0].attention
    value = features.tokens
    query = value[:, :4] if not grad else value
    points = features.to_levels(features.reference_points)[:, : query.shape[1]]
    given = (query, points, value, features.spatial_shapes)
    with torch.set_grad_enabled(grad):
        got = attention(
            *given, padding_mask=features.padding_mask, value_rows=features.present_rows
        )
        expected = attention(*given, padding_mask=features.padding_mask)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_a_map_that_is_there_entirely_is_an_ordinary_one():
    """All cells marked as present: the same result as without marks."""
    model = small.detector(small.NAMED["focus"]).eval()
    sizes = padding.SIZES[:2]
    images = [small.image_maps(size, seed) for seed, size in enumerate(sizes)]
    maps = small.padded_maps(images, (64 + 64, 96))
    given = dict(strides=small.STRIDES, image_sizes=sizes)
    whole = flatten_maps(maps, model._positions, **given)
    counts = [tuple(level) for level in zip(*whole.level_counts, strict=True)]
    masks = [
        Presence(torch.ones(2, *shape, dtype=torch.bool), count, True)
        for shape, count in zip(whole.spatial_shapes, counts, strict=True)
    ]
    marked = flatten_maps(maps, model._positions, **given, presence=masks[:FINE])
    assert torch.equal(whole.padding_mask, marked.padding_mask)
    assert whole.num_valid == marked.num_valid
    with torch.no_grad():
        first, second = (
            model.detect_features(each, small.targets((4, 3))).decoder[-1]
            for each in (whole, marked)
        )
    torch.testing.assert_close(first.boxes, second.boxes, atol=1e-5, rtol=1e-5)


def test_losses_do_not_look_at_absent_tokens():
    model = small.detector(small.NAMED["focus"])
    term = model.criterion.stage[0]
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


def test_absent_tokens_are_not_projected():
    """The value projection of an encoder layer costs as much as there are tokens."""
    model = small.detector(small.NAMED["deformable_refine"]).eval()
    rows: list[int] = []
    projection = model.encoder.layers[0].attention.value_proj
    projection.register_forward_pre_hook(lambda _, given: rows.append(given[0][..., 0].numel()))
    features = features_in_parts(model, padding.SIZES[:1])
    model.encoder(features, model.selector(None, features, 2), None, model.heads)
    assert rows == [features.num_valid[0]] and rows[0] < features.num_tokens
