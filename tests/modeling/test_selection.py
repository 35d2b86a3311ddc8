"""Which tokens the selectors keep, and how many. Simple counts are in test_scoring.py."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from unittest import mock

import pytest
import torch

from sparsedet.engine.random_state import get_random_state, set_random_state
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
SCHEDULE = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)


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


def test_a_list_of_ratios_is_its_largest_and_a_schedule(features, scores):
    """Table 7 of Focus-DETR, in the integers of its code."""
    selections = TopKSelector(0.5, schedule=SCHEDULE)(scores, features, 6)
    for selection, ratio, factor in zip(
        selections, (0.5, 0.4, 0.3, 0.3, 0.2, 0.1), SCHEDULE, strict=True
    ):
        assert ratio == pytest.approx(0.5 * factor)
        for count, valid in zip(selection.counts, features.num_valid, strict=True):
            assert count == int(factor * (int(0.5 * valid) + 1))
            assert abs(count - ratio * valid) <= 1


def test_layers_are_nested_and_equal_factors_are_one_object(features, scores):
    selections = TopKSelector(0.5, schedule=SCHEDULE)(scores, features, 6)
    kept = masks(selections, features)
    for wide, narrow, selection in zip(kept[:-1], kept[1:], selections[1:], strict=True):
        assert not (narrow & ~wide).any()
        assert tuple(narrow.sum(1).tolist()) == selection.counts
    assert selections[2] is selections[3]
    rising = TopKSelector(0.5, schedule=(0.2, 1.0))(scores, features, 2)
    assert not (masks(rising, features)[0] & ~masks(rising, features)[1]).any()


def test_scores_weigh_the_kept_tokens_where_the_scorer_asks(features, scores):
    logits = scores.logits.masked_fill(features.padding_mask, float("nan")).requires_grad_()
    selector = TopKSelector(0.4, schedule=(1.0, 0.5))
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
    selector = ElasticSelector(0.3, schedule=(1.0, 0.5)).eval()
    before = torch.get_rng_state()
    for ratio in (0.3, 0.05, 0.7, 1.0):
        selector.keep_ratio = ratio
        expected = TopKSelector(ratio, schedule=(1.0, 0.5))(scores, features, 2)
        same(selector(scores, features, 2), expected)
    assert torch.equal(torch.get_rng_state(), before), "evaluation draws nothing"


def test_training_draws_one_of_the_ratios(features, scores):
    ratios = (0.1, 0.25, 0.6)
    selector = ElasticSelector(0.3, train_ratios=ratios).train()
    possible = {
        TopKSelector(ratio)(scores, features, 1)[0].counts: ratio for ratio in ratios
    }  # for the whole batch
    torch.manual_seed(0)
    drawn = [possible[selector(scores, features, 1)[0].counts] for _ in range(60)]
    assert all(drawn.count(ratio) > 8 for ratio in ratios)


def test_a_resumed_run_draws_the_same_ratios(features, scores):
    selector = ElasticSelector(0.3).train()
    state = get_random_state(torch.device("cpu"))
    runs = []
    for _ in range(2):
        set_random_state(state, torch.device("cpu"))
        runs.append([selector(scores, features, 1)[0].counts for _ in range(8)])
    assert runs[0] == runs[1]


# --- a share of the score


def brute_force(logits: torch.Tensor, mass: float, cap: float) -> int:
    """Smallest number of best tokens whose scores reach the mass, in exact arithmetic."""
    scores = [Fraction(float(score)) for score in logits.float().sigmoid()]
    most = min(int(cap * len(scores)) + 1, len(scores))
    reached, needed = Fraction(0), Fraction(mass) * sum(scores)
    for count, score in enumerate(sorted(scores, reverse=True), 1):
        reached += score
        if reached >= needed:
            return min(count, most)
    raise AssertionError


@pytest.mark.parametrize("cap", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("mass", [0.001, 0.3, 0.8, 0.999, 1.0])
def test_as_few_tokens_as_hold_the_mass(features, scores, mass, cap):
    selector = AdaptiveSelector(mass, keep_ratio=cap, schedule=(1.0, 0.5))
    first, second = selector(scores, features, 2)
    for image, count in enumerate(first.counts):
        logits = scores.logits[image, ~features.padding_mask[image]]
        assert count == brute_force(logits, mass, cap)
        best = scores.logits[image].masked_fill(features.padding_mask[image], -1e9).sort()
        assert kept_sets(first)[image] == best.indices.flip(0)[:count].tolist()
        assert second.counts[image] == max(int(0.5 * count), 1)
    assert not (masks([second], features)[0] & ~masks([first], features)[0]).any()


def test_equal_scores_are_counted_exactly(features):
    """However small they are, and where rounding would miss: of 10 equal tokens 0.3 hold 3."""
    for logit in (-15.0, 0.0, 40.0):
        scores = TokenScores(torch.full(features.padding_mask.shape, logit))
        selection = AdaptiveSelector(0.3, keep_ratio=1.0)(scores, features, 1)[0]
        expected = [-(-3 * valid // 10) for valid in features.num_valid]
        assert list(selection.counts) == expected


def test_plain_images_keep_fewer(features, scores):
    """One token stands out in the first image."""
    logits = scores.logits - 12
    logits[0, 3] = 10.0
    selection = AdaptiveSelector(0.9, keep_ratio=1.0)(TokenScores(logits), features, 1)[0]
    assert selection.counts[0] == 1
    assert min(selection.counts[1:]) > 1


def test_an_image_counts_for_itself(model, features, scores):
    selector = AdaptiveSelector(0.7, keep_ratio=0.9)
    together = selector(scores, features, 1)[0]
    for image, size in enumerate(SIZES):
        for canvas in (None, (136, 200)):
            alone = small.features(model, (size,), (image,), canvas=canvas)
            logits = torch.full(alone.padding_mask.shape, 99.0)
            logits[~alone.padding_mask] = scores.logits[image, ~features.padding_mask[image]]
            selection = selector(TokenScores(logits), alone, 1)[0]
            assert selection.counts == together.counts[image : image + 1]


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
@pytest.mark.parametrize("schedule", [None, (0.7, 1.0, 0.29)])
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (ElasticSelector, dict(keep_ratio=0.3, train_ratios=(0.1, 0.45, 0.8))),
        (AdaptiveSelector, dict(mass=0.6, keep_ratio=0.7)),
    ],
)
def test_compiled_selectors_keep_the_same_tokens(features, scores, cls, arguments, schedule):
    """With shapes that do not change; what the host is told is the most there can be."""
    selector = cls(**arguments, schedule=schedule).train()
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
            assert all(most >= n for most, n in zip(ours.counts, theirs.counts, strict=True))
        shapes.add(tuple(each.indices.shape for each in got))
        counts.add(expected[1].counts)
    assert len(shapes) == 1
    assert len(counts) > 1, "the seeds of this test all give the same"


@pytest.mark.parametrize("schedule", [None, (1.0, 0.5)])
@pytest.mark.parametrize("system", ["sparse", "sparse_dual"])
@pytest.mark.parametrize("selector", ["ElasticSelector", "AdaptiveSelector"])
def test_the_form_for_compilers_gives_the_same_answer(selector, system, schedule):
    """Also where an image keeps fewer tokens than may attend to each other."""
    combination = replace(small.NAMED[system], selector=selector, schedule=schedule)
    arguments = dict(mass=0.02, train_ratios=(0.03, 0.4))
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
        fewer.append(expected.selections[0].counts[0] < got.selections[0].counts[0])
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
    detect = torch.compile(model.detect, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        answers = []
        for each in (model.detect, detect):
            torch.manual_seed(seed)
            with torch.set_grad_enabled(training):
                answers.append(each(batch.images, batch.image_sizes, batch.targets))
        for ours, theirs in zip(answers[1].decoder, answers[0].decoder, strict=True):
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["AdaptiveSelector", "LevelScheduleSelector"])
def test_exported_selectors_keep_the_same_tokens(features, scores, selector):
    arguments = dict(mass=0.6, keep_ratio=0.7, levels=LEVELS[:2])

    class Kept(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.selector = small.build(small.SELECTORS.get(selector), **arguments)

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
    "elastic schedule": (
        lambda: ElasticSelector(0.3, schedule=(0.5, 0.0)),
        r"ElasticSelector\.schedule must hold numbers in \(0, 1\], got \[0\.5, 0\.0\]",
    ),
    "mass": (
        lambda: AdaptiveSelector(0.0, keep_ratio=0.5),
        r"AdaptiveSelector\.mass must be in \(0, 1\], got 0\.0\. Set model\.selector\.mass",
    ),
    "cap": (
        lambda: AdaptiveSelector(0.5, keep_ratio=float("nan")),
        r"keep_ratio must be in \(0, 1\], got nan",
    ),
    "schedule": (
        lambda: TopKSelector(0.3, schedule="1.0"),
        r"TopKSelector\.schedule must be a list of numbers or null, got '1\.0'",
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
def test_a_schedule_of_another_length_is_refused(features, scores, cls):
    with pytest.raises(
        ValueError, match=rf"{cls.__name__}\.schedule must have one factor for each"
    ):
        cls(0.3, schedule=(1.0, 0.5))(scores, features, 3)


def test_only_a_falling_cascade_carries_rows_on(features, scores):
    """A factor that rises by less than a token of the largest image adds one to a smaller one."""
    for schedule, falls in (((1.0, 0.5), True), ((0.5, 0.5), True), ((0.5, 0.501), False)):
        first, second = TopKSelector(0.9, schedule=schedule)(scores, features, 2)
        assert second.begins(first) is falls
