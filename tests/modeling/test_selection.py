"""Which tokens the selectors keep, and how many. Simple counts are in test_scoring.py."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from fractions import Fraction
from unittest import mock

import pytest
import torch

from sparsedet.config import ConfigError, LazyConfig, instantiate
from sparsedet.modeling import (
    AdaptiveSelector,
    DenseSelector,
    ElasticSelector,
    LevelScheduleSelector,
    TopKSelector,
)
from sparsedet.modeling.stages import MultiScaleFeatures, TokenScores, TokenSelection
from tests.modeling import small

SIZES = ((128, 96), (64, 150), (40, 24))
LEVELS = ((1, 2, 3), (0,), (0,), (0, 1, 2, 3))
CASCADE = (0.5, 0.4, 0.3, 0.3, 0.2, 0.1)
PUBLISHED = (
    *((ratio,) * 6 for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)),
    (0.3, 0.3, 0.2, 0.2, 0.1, 0.1),
    CASCADE,
    (0.65, 0.55, 0.45, 0.35, 0.25, 0.15),
    (0.75, 0.65, 0.55, 0.45, 0.35, 0.25),
    (0.39, 0.195),
)


@pytest.fixture(scope="module")
def model():
    return small.detector(small.PLAIN)


@pytest.fixture(scope="module")
def features(model) -> MultiScaleFeatures:
    return small.features(model, SIZES)


@pytest.fixture
def scores(features) -> TokenScores:
    """Scores of each image by its own seed; those of padding are the best, were they allowed."""
    logits = torch.full(features.padding_mask.shape, 50.0)
    for image, count in enumerate(features.num_valid):
        generator = torch.Generator().manual_seed(image)
        logits[image, ~features.padding_mask[image]] = 2 * torch.randn(count, generator=generator)
    return TokenScores(logits)


def masks(selections, features) -> list[torch.Tensor]:
    """True at the tokens that each layer updates."""
    return [
        ~features.padding_mask if each.indices is None else each.mask(features.num_tokens)
        for each in selections
    ]


def kept_sets(selection: TokenSelection) -> list[list[int]]:
    """Kept tokens of each image, best first, without fillers."""
    rows = selection.indices.tolist()
    valid = [[True] * len(row) for row in rows] if selection.valid is None else selection.valid
    return [
        [token for token, kept in zip(row, shown, strict=True) if kept]
        for row, shown in zip(rows, valid, strict=True)
    ]


def same(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.counts == other.counts
        assert kept_sets(one) == kept_sets(other)


# --- one ratio


def num_kept(selector, valid: int) -> list[int]:
    """Tokens that each layer keeps of an image with so many."""
    features = mock.Mock(num_valid=(valid,))
    features.padding_mask = torch.zeros(1, valid, dtype=torch.bool)
    scores = TokenScores(torch.zeros(1, valid))
    layers = 6 if selector.layer_ratios is None else len(selector.layer_ratios)
    return [each.counts[0] for each in selector(scores, features, layers)]


@pytest.mark.parametrize("ratios", PUBLISHED, ids=str)
def test_published_ratios_count_as_the_released_code_does(ratios):
    """In exact arithmetic; from the list, from the list and its mean, and from another mean."""
    exact = [Fraction(str(ratio)) for ratio in ratios]
    mean = sum(exact) / len(exact)
    scaled = TopKSelector(0.01, layer_ratios=ratios)
    scaled.keep_ratio = float(mean)
    shape = [0.9 * ratio for ratio in ratios]
    selectors = [
        TopKSelector(layer_ratios=ratios),
        TopKSelector(float(mean), layer_ratios=ratios),
        TopKSelector(float(mean), layer_ratios=shape),
        scaled,
        *([TopKSelector(ratios[0])] if len(set(ratios)) == 1 else []),
    ]
    for selector in selectors:
        assert selector.keep_ratio == pytest.approx(float(mean), rel=1e-15)
        assert (selector.layer_ratios or ratios) == ratios
    sizes = [*range(1, 700), *range(700, 26_000, 97), 17_821, 22_223]
    for valid in sizes:
        most = min(int(max(exact) * valid) + 1, valid)
        expected = [max(int(ratio / max(exact) * most), 1) for ratio in exact]
        for selector in selectors if valid < 700 else selectors[1:2]:
            assert num_kept(selector, valid) == expected, valid


@pytest.mark.parametrize(
    ("ratios", "factors"),
    [
        (CASCADE, (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)),
        ((0.39, 0.195), (1.0, 0.5)),
        *(((ratio,) * 6, (1.0,) * 6) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)),
    ],
)
def test_published_ratios_count_as_floats_do(ratios, factors):
    """These lose no token where the formula is computed in floats, as released code does."""
    selector = TopKSelector(layer_ratios=ratios)
    for valid in (*range(1, 3000), *range(3000, 26_000, 61)):
        most = min(int(ratios[0] * valid) + 1, valid)
        assert num_kept(selector, valid) == [max(int(each * most), 1) for each in factors], valid


def test_rounding_loses_no_token():
    """In floats 0.29 * 100 is below 29, and a third of 3 may be below 1."""
    assert num_kept(TopKSelector(0.29), 100) == [30] * 6
    assert num_kept(TopKSelector(layer_ratios=(0.3, 0.1)), 29) == [9, 3]
    assert num_kept(TopKSelector(0.8, layer_ratios=(0.3, 0.18)), 100) == [100, 60]


def test_keep_ratio_is_the_mean_over_the_layers(features, scores):
    selector = TopKSelector(layer_ratios=CASCADE)
    assert selector.keep_ratio == 0.3
    selector.keep_ratio = 0.15
    assert selector.layer_ratios == (0.25, 0.2, 0.15, 0.15, 0.1, 0.05)
    for most in (0.6, 0.3, 0.05):
        selector.keep_ratio = most
        selections = selector(scores, features, 6)
        for image, valid in enumerate(features.num_valid):
            kept = sum(each.counts[image] for each in selections) / 6
            assert abs(kept - most * valid) <= 1
    with pytest.raises(ValueError, match=r"keep_ratio must be at most 0\.6, where the largest"):
        selector.keep_ratio = 0.61
    with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\], got 1\.2"):
        selector.keep_ratio = 1.2
    assert selector.keep_ratio == 0.05, "what is refused changes nothing"


def test_layers_are_nested_and_equal_ratios_are_one_object(features, scores):
    selections = TopKSelector(layer_ratios=CASCADE)(scores, features, 6)
    kept = masks(selections, features)
    for wide, narrow, selection in zip(kept[:-1], kept[1:], selections[1:], strict=True):
        assert not (narrow & ~wide).any()
        assert tuple(narrow.sum(1).tolist()) == selection.counts
    assert selections[2] is selections[3]
    rising = TopKSelector(layer_ratios=(0.1, 0.5))(scores, features, 2)
    assert not (masks(rising, features)[0] & ~masks(rising, features)[1]).any()


def test_scores_weigh_the_kept_tokens_where_the_scorer_asks(features, scores):
    logits = scores.logits.masked_fill(features.padding_mask, float("nan")).requires_grad_()
    selector = TopKSelector(layer_ratios=(0.4, 0.2))
    plain = selector(TokenScores(logits), features, 2)
    weighted = selector(TokenScores(logits, weighs=True), features, 2)
    same(plain, weighted)
    for before, selection in zip(plain, weighted, strict=True):
        assert before.weight is None
        shown = torch.ones_like(selection.indices, dtype=torch.bool)
        shown = shown if selection.valid is None else selection.valid
        expected = logits.gather(1, selection.indices).sigmoid()
        assert torch.equal(selection.weight[shown], expected[shown])
        assert selection.weight.isfinite().all(), "fillers too, lest gradients become nan"
    weighted[0].weight.sum().backward()
    kept = masks(weighted, features)[0]
    slope = logits.detach().sigmoid() * (1 - logits.detach().sigmoid())
    torch.testing.assert_close(logits.grad[kept], slope[kept])
    assert logits.grad[features.padding_mask].eq(0).all()


# --- any ratio


def test_one_model_for_any_ratio(features, scores):
    selector = ElasticSelector(0.3, layer_ratios=(1.0, 0.5)).eval()
    before = torch.get_rng_state()
    for ratio in (0.3, 0.05, 0.6, 0.75):
        selector.keep_ratio = ratio
        expected = TopKSelector(ratio, layer_ratios=(1.0, 0.5))(scores, features, 2)
        same(selector(scores, features, 2), expected)
    assert torch.equal(torch.get_rng_state(), before), "evaluation draws nothing"


def test_training_draws_one_of_the_ratios(features, scores):
    ratios = (0.1, 0.25, 0.6)
    shape = (0.8, 0.4)
    selector = ElasticSelector(0.3, train_ratios=ratios, layer_ratios=shape).train()
    possible = {
        TopKSelector(ratio, layer_ratios=shape)(scores, features, 2)[0].counts: ratio
        for ratio in ratios
    }  # for the whole batch
    torch.manual_seed(0)
    drawn = [possible[selector(scores, features, 2)[0].counts] for _ in range(60)]
    assert all(drawn.count(ratio) > 8 for ratio in ratios)


def test_a_resumed_run_draws_the_same_ratios(features, scores):
    selector = ElasticSelector(0.3).train()
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        torch.set_rng_state(state)
        runs.append([selector(scores, features, 1)[0].counts for _ in range(8)])
    assert runs[0] == runs[1]


# --- a threshold


def adaptive(scores, features, keep_ratio=0.3, **arguments) -> AdaptiveSelector:
    """Calibrated on these images, ready to select."""
    selector = AdaptiveSelector(keep_ratio, **arguments).eval()
    selector.calibrate(scores, features)
    return selector


def counts_of(selector, logits, features) -> tuple[int, ...]:
    return selector(TokenScores(logits), features, 1)[0].counts


@pytest.mark.parametrize("ratios", [None, (1.0, 0.5), (0.2, 0.4)])
def test_the_ratio_is_the_mean_over_layers_and_images(features, scores, ratios):
    selector = adaptive(scores, features, layer_ratios=ratios)
    for ratio in (0.05, 0.2, 0.45, 0.7):
        selector.keep_ratio = ratio
        shares = [
            count / valid
            for selection in selector(scores, features, 2)
            for count, valid in zip(selection.counts, features.num_valid, strict=True)
        ]
        assert sum(shares) / len(shares) == pytest.approx(ratio, abs=0.02)
        assert max(shares) > min(shares), "every image keeps a share of its own"


def test_what_scores_above_the_threshold_is_kept(features, scores):
    selector = adaptive(scores, features, layer_ratios=(1.0, 0.5))
    first, second = selector(scores, features, 2)
    threshold = selector.curve.threshold(0.4)
    assert torch.equal(
        masks([first], features)[0], (scores.logits > threshold) & ~features.padding_mask
    )
    assert second.counts == tuple(max(count // 2, 1) for count in first.counts)
    assert second.begins(first)


def test_better_scores_never_keep_fewer(features, scores):
    """Wherever they rise: the sum of all scores may grow faster than the best of them."""
    selector = adaptive(scores, features)
    generator = torch.Generator().manual_seed(0)
    before = counts_of(selector, scores.logits, features)
    for _ in range(40):
        share, rise = torch.rand(2, generator=generator).tolist()
        raised = torch.rand(scores.logits.shape, generator=generator) < share
        counts = counts_of(selector, scores.logits + 4 * rise * raised, features)
        assert all(more >= less for more, less in zip(counts, before, strict=True))


@pytest.mark.parametrize("floor", [-40.0, -9.0, -5.0])
def test_a_blank_image_keeps_one_token_whatever_its_background_scores(features, floor):
    """And more objects keep more. The background's scores have most of the sum at -5."""
    generator = torch.Generator().manual_seed(1)
    logits = floor + 0.3 * torch.randn(features.padding_mask.shape, generator=generator)
    blank = logits.clone()
    for image, objects in enumerate((60, 20, 4)):
        logits[image, ~features.padding_mask[image]] = torch.cat(
            (torch.full((objects,), 2.0), logits[image, : features.num_valid[image] - objects])
        )
    selector = adaptive(TokenScores(logits), features, 0.1)
    assert counts_of(selector, blank, features) == (1, 1, 1)
    assert counts_of(selector, logits, features) == (60, 20, 4)


def test_an_image_counts_for_itself(model, features, scores):
    """In evaluation, and in a training pass, which learns from its batch afterwards."""
    for training in (False, True):
        selector = adaptive(scores, features, 0.6).train(training)
        state = copy.deepcopy(selector.state_dict())
        together = selector(scores, features, 1)[0]
        for image, size in enumerate(SIZES):
            for canvas in (None, (136, 200)):
                alone = small.features(model, (size,), (image,), canvas=canvas)
                logits = torch.full(alone.padding_mask.shape, 99.0)
                logits[~alone.padding_mask] = scores.logits[image, ~features.padding_mask[image]]
                selector.load_state_dict(state)
                selection = selector(TokenScores(logits), alone, 1)[0]
                assert selection.counts == together.counts[image : image + 1]


def test_images_count_alike_and_padding_does_not(features, scores):
    curve = adaptive(scores, features).curve
    assert curve.num_images == len(SIZES)
    for logit in (-4.0, -0.5, 0.0, 1.25, 3.0):
        shares = [
            (scores.logits[image, ~padding] > logit).double().mean()
            for image, padding in enumerate(features.padding_mask)
        ]
        share = float(torch.stack(shares).mean())
        assert curve.shares[int((logit + 32) * 32)] == pytest.approx(share, abs=1e-6)
        threshold = curve.threshold(share)
        above = (scores.logits > threshold) & ~features.padding_mask
        shares = above.sum(1) / (~features.padding_mask).sum(1)
        assert float(shares.mean()) == pytest.approx(share, abs=0.01)


def test_a_calibration_in_parts_is_one_of_the_whole(model, features, scores):
    whole, parts = adaptive(scores, features), AdaptiveSelector(0.3)
    for image, size in enumerate(SIZES):
        alone = small.features(model, (size,), (image,))
        logits = scores.logits[image, ~features.padding_mask[image]][None]
        parts.calibrate(TokenScores(logits), alone)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())
    parts.forget()
    parts.calibrate(scores, features)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_training_begins_as_top_k_and_follows_the_scores(features, scores):
    selector = AdaptiveSelector(0.3, layer_ratios=(1.0, 0.5)).train()
    same(
        selector(scores, features, 2),
        TopKSelector(0.3, layer_ratios=(1.0, 0.5))(scores, features, 2),
    )
    shifted = TokenScores(scores.logits + 7)
    everything = selector(shifted, features, 2)[0]
    assert everything.counts > TopKSelector(0.6)(scores, features, 1)[0].counts, "known from before"
    for _ in range(250):
        found = selector(shifted, features, 2)
    expected = adaptive(shifted, features, layer_ratios=(1.0, 0.5))(shifted, features, 2)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours.counts, theirs.counts, strict=True):
            assert one == pytest.approx(other, abs=2)


def test_bounds_of_a_count(features, scores):
    selector = adaptive(scores, features, 0.3, max_ratio=0.5, layer_ratios=(0.5, 0.25))
    most = TopKSelector(0.5)(scores, features, 1)[0].counts
    assert counts_of_first(selector, scores.logits + 30, features) == most
    assert counts_of_first(selector, scores.logits - 30, features) == (1, 1, 1)
    selector.keep_ratio = 0.75  # all tokens of the first layer, in the mean
    assert not selector.depends_on_image
    assert counts_of_first(selector, scores.logits - 30, features) == most


def counts_of_first(selector, logits, features) -> tuple[int, ...]:
    return selector(TokenScores(logits), features, 2)[0].counts


def test_beyond_what_can_be_told_apart(features):
    """Scores that are 0 or 1: what is certainly nothing is left out, whatever the ratio."""
    logits = torch.full(features.padding_mask.shape, -float("inf"))
    for row, padding in zip(logits, features.padding_mask, strict=True):
        row[(~padding).nonzero()[:6]] = 1e4
    selector = adaptive(TokenScores(logits), features, 0.5)
    assert counts_of(selector, logits, features) == (6, 6, 6)
    selector.keep_ratio = 0.001
    assert counts_of(selector, logits, features) == (6, 6, 6)


@pytest.mark.parametrize("compiling", [False, True])
def test_without_calibration_it_says_how_to_get_one(features, scores, compiling):
    selector = AdaptiveSelector(0.3).eval()
    kind = RuntimeError if compiling else ValueError  # on a device, what it was told to check
    with (
        mock.patch.object(torch.compiler, "is_compiling", return_value=compiling),
        pytest.raises(
            kind, match=r"^AdaptiveSelector derives its threshold.*calibrate_selector\(model, bat"
        ),
    ):
        selector(scores, features, 1)
    selector.keep_ratio = 1.0
    assert counts_of(selector, scores.logits, features) == features.num_valid


def test_half_precision_weights_keep_the_threshold(features, scores):
    selector = adaptive(scores, features)
    before = counts_of(selector, scores.logits, features)
    after = counts_of(selector.to(torch.bfloat16), scores.logits, features)
    for one, other in zip(after, before, strict=True):
        assert one == pytest.approx(other, abs=2)


@pytest.mark.usefixtures("_forget_compiled_code")
def test_a_compiled_training_pass_learns_the_same(features, scores):
    eager, selector = AdaptiveSelector(0.3).train(), AdaptiveSelector(0.3).train()
    compiled = torch.compile(selector, backend="aot_eager", fullgraph=True)
    for shift in range(4):
        given = TokenScores(scores.logits + shift)
        expected, got = eager(given, features, 1), compiled(given, features, 1)
        assert kept_sets(got[0]) == kept_sets(expected[0])
        torch.testing.assert_close(selector.state_dict(), eager.state_dict())


# --- whole levels


def test_layers_update_the_levels_that_are_listed(features):
    selections = LevelScheduleSelector(LEVELS)(None, features, 4)
    for selection, mask, levels in zip(
        selections, masks(selections, features), LEVELS, strict=True
    ):
        for level, part in enumerate(features.split_levels(mask)):
            padding = features.split_levels(features.padding_mask)[level]
            assert torch.equal(part, ~padding if level in levels else torch.zeros_like(part))
        assert selection.counts == tuple(mask.sum(1).tolist())
        if selection.indices is not None:
            assert selection.indices.shape[1] == max(selection.counts)
            assert all(len(set(row)) == len(row) for row in selection.indices.tolist())
    assert selections[1] is selections[2]
    assert selections[3].indices is None


def test_all_levels_are_the_dense_selection(features):
    selector = LevelScheduleSelector(((3, 1, 0, 2), (0, 1, 2, 3)))
    assert selector(None, features, 2) == DenseSelector()(None, features, 2)


def test_other_levels_stay_as_they_came():
    combination = small.Combination(selector="LevelScheduleSelector")
    model = small.detector(combination, levels=((1, 2), (0, 2))).eval()
    features = small.features(model, SIZES)
    with torch.no_grad():
        output = model.detect_features(features)
    changed = (output.memory.tokens != features.tokens).any(-1)
    padding = features.split_levels(features.padding_mask)
    for level, part in enumerate(features.split_levels(changed)):
        expected = torch.zeros_like(part) if level == 3 else ~padding[level]
        assert torch.equal(part, expected)


def test_the_default_updates_the_finest_level_every_third_layer(features):
    selections = LevelScheduleSelector()(None, features, 6)
    finest = features.spatial_shapes[0][0] * features.spatial_shapes[0][1]
    touched = [bool(mask[:, :finest].any()) for mask in masks(selections, features)]
    assert touched == [False, False, True, False, False, True]


def test_a_schedule_that_does_not_fit_is_refused(features):
    with pytest.raises(ValueError, match=r"one entry for each of the 3 encoder layers, got 4.*Set"):
        LevelScheduleSelector(LEVELS)(None, features, 3)
    with pytest.raises(ValueError, match=r"levels must be below 4.*got 4. Set model\.selector"):
        LevelScheduleSelector(((0, 4),))(None, features, 1)


# --- compiled


@pytest.fixture
def _forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_forget_compiled_code")
@pytest.mark.parametrize("ratios", [None, (0.7, 1.0, 0.29)])
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (ElasticSelector, dict(keep_ratio=0.3, train_ratios=(0.1, 0.45, 0.6))),
        (
            ElasticSelector,
            dict(keep_ratio=0.3, train_ratios=(0.1, 0.6), continuous=True, one_more=False),
        ),
        (AdaptiveSelector, dict(keep_ratio=0.3, max_ratio=0.9)),
    ],
)
def test_compiled_selectors_keep_the_same_tokens(features, scores, cls, arguments, ratios):
    """With shapes that do not change; ``max_counts`` are the most there can be."""
    selector = cls(**arguments, layer_ratios=ratios).train(cls is ElasticSelector)
    if cls is AdaptiveSelector:
        selector.calibrate(scores, features)
    compiled = torch.compile(selector, backend="aot_eager", fullgraph=True)
    shapes, counts = set(), set()
    for seed in range(4):
        given = TokenScores(scores.logits * (1 + seed), weighs=True)
        torch.manual_seed(seed)
        expected = selector(given, features, 3)
        torch.manual_seed(seed)
        got = compiled(given, features, 3)
        for ours, theirs in zip(got, expected, strict=True):
            assert kept_sets(ours) == kept_sets(theirs)
            assert ours.counts == theirs.counts == theirs.max_counts
            assert theirs.exact and not ours.exact
            assert all(most >= n for most, n in zip(ours.max_counts, ours.counts, strict=True))
        shapes.add(tuple(each.indices.shape for each in got))
        counts.add(expected[1].counts)
    assert len(shapes) == 1
    assert len(counts) > 1, "the seeds of this test all give the same"


@pytest.mark.parametrize("ratios", [None, (1.0, 0.5)])
@pytest.mark.parametrize("system", ["sparse", "sparse_dual"])
@pytest.mark.parametrize("selector", ["ElasticSelector", "AdaptiveSelector"])
def test_the_form_for_compilers_gives_the_same_answer(selector, system, ratios):
    """Also where an image keeps fewer tokens than may attend to each other."""
    combination = replace(small.NAMED[system], selector=selector, layer_ratios=ratios)
    arguments = dict(train_ratios=(0.03, 0.4))
    arguments |= dict(keep_ratio=0.05) if selector == "AdaptiveSelector" else {}
    model = small.detector(combination, **arguments).train(selector == "ElasticSelector")
    features, fewer = small.features(model, SIZES), []
    for seed in range(3):
        answers = []
        for compiling in (False, True):
            torch.manual_seed(seed)
            with (
                mock.patch.object(torch.compiler, "is_compiling", return_value=compiling),
                torch.no_grad(),
            ):
                answers.append(model.detect_features(features))
        expected, got = answers
        fewer.append(expected.selections[0].counts[0] < got.selections[0].max_counts[0])
        assert got.keep_ratios == expected.keep_ratios, "never an upper bound"
        shown = ~features.padding_mask
        torch.testing.assert_close(got.memory.tokens[shown], expected.memory.tokens[shown])
        torch.testing.assert_close(got.decoder[-1].logits, expected.decoder[-1].logits)
    assert any(fewer)


@pytest.mark.slow
@pytest.mark.usefixtures("_forget_compiled_code")
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("selector", ["ElasticSelector", "AdaptiveSelector"])
def test_a_compiled_detector_says_the_same(selector, training):
    model = small.detector(replace(small.NAMED["sparse"], selector=selector)).train(training)
    batch = model.preprocess(small.samples(((64, 96), (96, 70)), (2, 1)))
    eager = copy.deepcopy(model)
    detect = torch.compile(model.detect, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        answers = []
        for each in (eager.detect, detect):
            torch.manual_seed(seed)
            with torch.set_grad_enabled(training):
                answers.append(each(batch.images, batch.image_sizes, batch.targets))
        for ours, theirs in zip(answers[1].decoder, answers[0].decoder, strict=True):
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["AdaptiveSelector", "LevelScheduleSelector"])
def test_exported_selectors_keep_the_same_tokens(features, scores, selector):
    arguments = dict(keep_ratio=0.6, levels=LEVELS[:2])

    class Kept(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.selector = small.build(small.SELECTORS.get(selector), **arguments).eval()
            if selector == "AdaptiveSelector":
                self.selector.calibrate(scores, features)

        def forward(self, logits):
            return self.selector(TokenScores(logits), features, 2)

    program = torch.export.export(Kept(), (scores.logits,)).module()
    for logits in (scores.logits, 3 * scores.logits):
        for ours, theirs in zip(program(logits), Kept()(logits), strict=True):
            assert kept_sets(ours) == kept_sets(theirs)


# --- arguments


BAD = {
    "elastic ratio": (lambda: ElasticSelector(0), r"ElasticSelector\.keep_ratio must be in \(0, 1"),
    "elastic text": (lambda: ElasticSelector("a"), r"keep_ratio must be a number, got 'a'"),
    "elastic list": (
        lambda: ElasticSelector(0.3, train_ratios=0.3),
        r"train_ratios must be a list of numbers, got 0\.3\. Set model\.selector\.train_ratios",
    ),
    "elastic empty": (
        lambda: ElasticSelector(0.3, train_ratios=()),
        r"train_ratios must be numbers in \(0, 1\], at least one, got \(\)",
    ),
    "elastic high": (lambda: ElasticSelector(0.3, train_ratios=(0.3, 1.2)), r"train_ratios must"),
    "elastic layers": (
        lambda: ElasticSelector(0.3, layer_ratios=(0.5, 0.0)),
        r"ElasticSelector\.layer_ratios must be numbers in \(0, 1\].* got \[0\.5, 0\.0\]",
    ),
    "elastic peak": (
        lambda: ElasticSelector(0.3, train_ratios=(0.3, 0.7), layer_ratios=CASCADE),
        r"ElasticSelector\.train_ratios must be at most 0\.6, .* got 0\.7\. Set model\.selector",
    ),
    "peak": (
        lambda: TopKSelector(0.61, layer_ratios=CASCADE),
        r"TopKSelector\.keep_ratio must be at most 0\.6, .* got 0\.61\. Set model\.selector",
    ),
    "neither": (TopKSelector, r"TopKSelector\.keep_ratio must be given unless layer_ratios are"),
    "no layers": (lambda: TopKSelector(layer_ratios=[]), r"one per layer, got \[\]"),
    "mass": (
        lambda: AdaptiveSelector(mass=0.8, keep_ratio=0.5),
        r"AdaptiveSelector\.mass is gone .* write the share as keep_ratio, and max_ratio=0\.5",
    ),
    "adaptive ratio": (
        lambda: AdaptiveSelector(float("nan")),
        r"AdaptiveSelector\.keep_ratio must be in \(0, 1\], got nan",
    ),
    "cap": (
        lambda: AdaptiveSelector(0.5, max_ratio=0),
        r"AdaptiveSelector\.max_ratio must be in \(0, 1\], got 0\. Set model\.selector\.max",
    ),
    "layers": (
        lambda: TopKSelector(0.3, layer_ratios="1.0"),
        r"TopKSelector\.layer_ratios must be a list of numbers or null, got '1\.0'",
    ),
    **{
        f"levels {levels!r}": (
            lambda levels=levels: LevelScheduleSelector(levels),
            r"LevelScheduleSelector\.levels must be a list of levels for every layer, got .*"
            r"Set model\.selector\.levels",
        )
        for levels in (3, (0, 1), ((),), ((1, 1),), ((-1,),), ((0.5,),), ((True,),), ("01",))
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    build, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("cls", [TopKSelector, ElasticSelector])
def test_layer_ratios_of_another_number_are_refused(features, scores, cls):
    message = rf"{cls.__name__}\.layer_ratios must have one ratio for each of the 3 .*, got 2"
    with pytest.raises(ValueError, match=message):
        cls(0.3, layer_ratios=(1.0, 0.5))(scores, features, 3)


NEW = "keep_ratio=0.3, layer_ratios=[0.5, 0.4, 0.3, 0.3, 0.2, 0.1]"
OLD = dict(keep_ratio=0.5, schedule=[1.0, 0.8, 0.6, 0.6, 0.4, 0.2])
ELASTIC = dict(_target_="sparsedet.modeling.ElasticSelector", train_ratios=[0.1, 0.85])
OVERRIDE = "model.selector.schedule=[1.0,0.8,0.6,0.6,0.4,0.2]"


@pytest.mark.parametrize(
    ("old", "overrides", "new"),
    [
        (OLD, [], NEW),
        (OLD, ["model.selector.keep_ratio=0.25"], "keep_ratio=0.15, layer_ratios=[0.25, 0.2,"),
        (OLD, ["model.selector._target_=AdaptiveSelector"], NEW),
        (OLD | ELASTIC, [], "keep_ratio=0.3, train_ratios=[0.06, 0.51], layer_ratios=[0.5, 0.4"),
        (dict(keep_ratio=0.3, schedule=None), [], "keep_ratio=0.3, layer_ratios=null"),
        (dict(keep_ratio=0.3), [OVERRIDE], "write layer_ratios=[1.0, 0.8,"),
        (dict(keep_ratio=0.3), [OVERRIDE, "model.selector.keep_ratio=0.5"], NEW),
        (dict(keep_ratio=0.3), ["model.selector.schedule=null"], "write layer_ratios=null"),
        (dict(keep_ratio=0.3), ["+model.selector.schedule=x"], "write layer_ratios=null"),
    ],
)
def test_the_old_spelling_ends_in_one_sentence(tmp_path, old, overrides, new):
    """It is never taken for the new one: 0.5 was the ratio of the first layer."""
    selector = {"_target_": "sparsedet.modeling.TopKSelector", **old}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"model": {"selector": selector}}))
    with pytest.raises(ConfigError) as caught:
        instantiate(LazyConfig.apply_overrides(LazyConfig.load(path), overrides).model)
    message = str(caught.value)
    assert new in message and "Selector.schedule is gone and keep_ratio is the mean" in message
    assert "model.selector" in message and "\n" not in message


def test_the_old_spelling_in_python():
    for build in (
        lambda: TopKSelector(0.5, schedule=OLD["schedule"]),
        lambda: AdaptiveSelector(**OLD),
        lambda: ElasticSelector(**OLD, train_ratios=(0.1, 0.5)),
    ):
        with pytest.raises(
            ValueError, match=r"schedule is gone.*: write keep_ratio=0\.3, .*\[0\.5,"
        ):
            build()


def test_two_old_arguments_and_odd_values_end_in_the_sentence_too():
    for arguments in (dict(mass=0.8), dict(mass=0.8, schedule=[1.0, 0.5])):
        with pytest.raises(ValueError, match=r"mass is gone .*write the share as keep_ratio ins"):
            AdaptiveSelector(**arguments)
    with pytest.raises(ValueError, match=r"schedule is gone"):
        TopKSelector("x", schedule=[1.0, 0.5])


def test_only_a_falling_cascade_carries_rows_on(features, scores):
    """A ratio that rises by less than a token of the largest image adds one to a smaller one."""
    for ratios, falls in (((0.9, 0.45), True), ((0.45, 0.45), True), ((0.45, 0.4509), False)):
        first, second = TopKSelector(layer_ratios=ratios)(scores, features, 2)
        assert second.begins(first) is falls
