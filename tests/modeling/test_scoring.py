"""Token scorers and selectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sparsedet.modeling import (
    ForegroundScorer,
    MultiCategoryScorer,
    OracleScorer,
    RandomScorer,
    TopKSelector,
)
from sparsedet.modeling.heads import Head
from sparsedet.modeling.parts import Foreground
from sparsedet.modeling.scoring import MaskPredictor
from sparsedet.modeling.scoring.foreground import interpolation
from sparsedet.modeling.stages import Targets, TokenScores, flatten_maps
from tests.modeling import small

SIZES = ((64, 96), (128, 70))


@pytest.fixture
def model():
    return small.detector(small.PLAIN)


def test_the_oracle_prefers_tokens_in_boxes(model):
    features = small.features(model, SIZES)
    targets = small.targets((2, 1))
    scores = OracleScorer()(features, model.heads, targets).logits
    points = features.reference_points
    for image, boxes in enumerate(targets.boxes):
        distance = (points[image, :, None] - boxes[:, :2]).abs()
        inside = (distance < boxes[:, 2:] / 2).all(-1).any(-1) & ~features.padding_mask[image]
        assert inside.any()
        assert (scores[image][inside] > -1).all()
        far = (distance > 0.55 * boxes[:, 2:]).any(-1).all(-1)
        assert (scores[image][far] < -1).all()


def test_the_oracle_takes_images_without_objects(model):
    features = small.features(model, SIZES)
    scores = OracleScorer()(features, model.heads, small.targets((2, 0))).logits
    assert scores.isfinite().all()
    assert not scores[1].any()


def test_random_scores_are_spread_and_seeded(model):
    features = small.features(model, ((512, 512),))
    one, again, other = (RandomScorer(seed)(features, model.heads).logits[0] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert abs(one.mean() - 0.5) < 0.02
    assert abs(one.std() - 12**-0.5) < 0.02
    both = torch.stack((one, other))
    assert abs(torch.corrcoef(both)[0, 1]) < 0.05
    neighbours = torch.stack((one[: 64 * 64 - 1], one[1 : 64 * 64]))
    assert abs(torch.corrcoef(neighbours)[0, 1]) < 0.05
    assert len(one.unique()) > 0.999 * len(one)


def test_the_context_of_a_score_leaves_padding_out():
    predictor = small.randomize(MaskPredictor(8))
    tokens = torch.randn(2, 6, 8)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    scores = predictor(tokens, padding)
    alone = predictor(tokens[1:, :4], None)
    torch.testing.assert_close(scores[1:, :4], alone)
    changed = tokens.clone()
    changed[1, 0] = torch.randn(8)
    assert not torch.allclose(predictor(changed, padding)[1, 1:4], alone[0, 1:]), "no context"


def grid(sizes):
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    count = len(sizes)
    return flatten_maps(
        [torch.zeros(count, 1, height, width)],
        lambda *_: torch.zeros(count, height * width, 1),
        strides=(1,),
        image_sizes=sizes,
    )


@pytest.mark.parametrize(
    ("ratio", "counts"),
    [(0.3, (4, 2)), (0.01, (1, 1)), (0.5, (6, 3)), (0.99, (10, 4)), (1.0, (10, 4))],
)
def test_counts_are_per_image(ratio, counts):
    features = grid(((2, 5), (1, 4)))
    scores = torch.arange(20.0).view(2, 10)  # rising: padding would be chosen first
    first, second = TopKSelector(ratio)(TokenScores(scores), features, 2)
    assert first is second
    assert first.counts == counts
    assert first.indices.shape == (2, max(counts))
    assert first.indices[0].tolist() == list(range(9, 9 - counts[0], -1))
    assert first.indices[1, : counts[1]].tolist() == list(range(3, 3 - counts[1], -1))
    assert first.mask(10).sum(1).tolist() == list(counts)
    assert all(len(set(row)) == len(row) for row in first.indices.tolist())


def test_ratios_of_layers_count_per_image():
    features = grid(((2, 5), (1, 4)))
    scores = TokenScores(torch.arange(20.0).view(2, 10))
    selections = TopKSelector(layer_ratios=(0.6, 0.3, 0.06))(scores, features, 3)
    assert [each.counts for each in selections] == [(7, 3), (3, 1), (1, 1)]
    with pytest.raises(ValueError, match=r"layer_ratios must have one ratio for each of the 2"):
        TopKSelector(layer_ratios=(0.6, 0.3, 0.06))(scores, features, 2)


def test_objectness_is_the_best_class_and_trains_its_head_only_as_a_detector():
    model = small.detector(small.Combination("ObjectnessScorer", selector="TopKSelector"))
    features = small.features(model, SIZES)
    scores = model.scorer(features, model.heads)
    torch.testing.assert_close(scores.logits, scores.prediction.logits.amax(-1))
    assert not scores.logits.requires_grad
    assert scores.prediction.logits.requires_grad
    assert not scores.prediction.valid[features.padding_mask].any()


def test_targets_of_another_batch_are_refused(model):
    features = small.features(model, SIZES)
    with pytest.raises(ValueError):
        OracleScorer()(
            features, model.heads, Targets((torch.rand(1, 4),), (torch.zeros(1).long(),))
        )


@pytest.fixture(scope="module")
def host():
    """A detector that has a token embedding."""
    return small.detector(small.NAMED["efficient"])


def foreground(**arguments) -> ForegroundScorer:
    scorer = small.randomize(ForegroundScorer(small.EMBED_DIM, 4, **arguments))
    if scorer.alpha is not None:
        scorer.alpha.data.copy_(torch.tensor([0.9, -0.7, 1.3]))
    return scorer


def bilinear(grid: list[list[float]], height: int, width: int, align_corners: bool):
    """Resize a list of rows by the textbook, cell by cell."""

    def place(index: int, new: int, old: int) -> tuple[int, int, float]:
        if align_corners:
            position = index * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            position = min(max((index + 0.5) * old / new - 0.5, 0.0), old - 1)
        low = min(math.floor(position), old - 1)
        return low, min(low + 1, old - 1), position - low

    result = []
    for row in range(height):
        top, bottom, down = place(row, height, len(grid))
        line = []
        for column in range(width):
            left, right, across = place(column, width, len(grid[0]))
            line.append(
                (1 - down) * ((1 - across) * grid[top][left] + across * grid[top][right])
                + down * ((1 - across) * grid[bottom][left] + across * grid[bottom][right])
            )
        result.append(line)
    return result


def scores_of_one_image(scorer, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
    """Equation 2 for one image: ``tokens`` are its maps ``[h w C]`` without any padding."""
    top_down = scorer.direction == "top_down"
    order = [3, 2, 1, 0] if top_down else [0, 1, 2, 3]
    linears = [layer for layer in scorer.predictor.output if isinstance(layer, torch.nn.Linear)]
    found = {}
    for step, level in enumerate(order):
        height, width, channels = tokens[level].shape
        factor = torch.ones(height, width, 1)
        if step > 0 and scorer.direction != "none":
            near = bilinear(found[order[step - 1]].tolist(), height, width, scorer.align_corners)
            factor = 1 + float(scorer.alpha[step - 1]) * torch.tensor(near)[..., None]
        norm, linear, _ = scorer.predictor.input
        if scorer.modulate_before_norm:
            x = norm(tokens[level] * factor)
        else:
            x = norm(tokens[level]) * factor
        x = F.gelu(linear(x)).flatten(0, 1)
        x[:, channels // 2 :] = x[:, channels // 2 :].mean(0)
        for layer in linears[:-1]:
            x = F.gelu(layer(x))
        found[level] = linears[-1](x).view(height, width)
    return [found[level].flatten() for level in range(4)]


@pytest.mark.parametrize("before_norm", [False, True], ids=["", "before norm"])
@pytest.mark.parametrize("align_corners", [False, True], ids=["", "corners"])
@pytest.mark.parametrize("direction", ["top_down", "bottom_up", "none"])
@torch.no_grad()
def test_foreground_scores_follow_the_equation_whatever_the_padding(
    host, direction, align_corners, before_norm
):
    scorer = foreground(
        direction=direction, align_corners=align_corners, modulate_before_norm=before_norm
    )
    sizes = ((130, 100), (64, 200), (8, 30))
    features = small.features(host, sizes, canvas=(192, 256))
    scores = scorer(features, host.heads).logits
    assert scores.isfinite().all()
    tokens = host.heads.token_embedding(features, with_pos=True)
    for image, valid in enumerate(features.level_sizes):
        alone = []
        levels = zip(features.split_levels(tokens), features.spatial_shapes, valid, strict=True)
        for level, shape, (rows, columns) in levels:
            alone.append(level[image].unflatten(0, shape)[:rows, :columns])
        expected = torch.cat(scores_of_one_image(scorer, alone))
        got = scores[image, ~features.padding_mask[image]]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("old", "new"), [((3, 5), (6, 9)), ((7, 4), (3, 1)), ((1, 1), (2, 3))])
def test_resizing_is_that_of_torch_where_there_is_no_padding(old, new, align_corners):
    maps = torch.randn(2, *old)
    rows, columns = (
        interpolation(
            torch.tensor(2 * [float(before)]),
            torch.tensor(2 * [float(after)]),
            (before, after),
            align_corners=align_corners,
        )
        for before, after in zip(old, new, strict=True)
    )
    expected = F.interpolate(maps[:, None], new, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(rows @ maps @ columns.mT, expected[:, 0])


@pytest.mark.parametrize(("direction", "order"), [("top_down", (3, 2, 1, 0)), ("bottom_up", None)])
@torch.no_grad()
def test_a_coefficient_changes_the_levels_that_come_after(host, direction, order):
    order = order or (0, 1, 2, 3)
    features = small.features(host, SIZES)
    scorer = foreground(direction=direction)
    before = features.split_levels(scorer(features, host.heads).logits)
    scorer.alpha[1] += 0.5  # belongs to the third level of the pass
    after = features.split_levels(scorer(features, host.heads).logits)
    changed = {level for level in range(4) if not torch.equal(before[level], after[level])}
    assert changed == set(order[2:])


@torch.no_grad()
def test_levels_are_scored_alone_without_modulation(host):
    features = small.features(host, SIZES)
    scorer = foreground(direction="none")
    assert "alpha" not in dict(scorer.named_parameters())
    before = scorer(features, host.heads).logits
    tokens = features.tokens.clone()
    coarse = features.spatial_shapes[3][0] * features.spatial_shapes[3][1]
    tokens[:, -coarse:] += 1.0
    after = scorer(features.with_tokens(tokens), host.heads).logits
    assert torch.equal(before[:, :-coarse], after[:, :-coarse])
    assert not torch.equal(before[:, -coarse:], after[:, -coarse:])


def test_one_level_has_nothing_to_modulate(host):
    scorer = ForegroundScorer(small.EMBED_DIM, 1)
    assert scorer.alpha is None
    one = flatten_maps(
        [torch.randn(1, small.EMBED_DIM, 3, 5)],
        lambda *_: torch.zeros(1, 15, small.EMBED_DIM),
        strides=(8,),
        image_sizes=((24, 40),),
    )
    assert scorer(one, host.heads).logits.shape == (1, 15)


@pytest.mark.parametrize("direction", ["top_down", "bottom_up"])
def test_coefficients_start_small_and_learn(host, direction):
    fresh = ForegroundScorer(small.EMBED_DIM, 4, direction=direction).alpha
    assert fresh.shape == (3,) and fresh.abs().max() <= 0.3 and fresh.unique().numel() == 3
    features = small.features(host, SIZES)
    gradients = {}
    for before_norm in (False, True):
        scorer = small.randomize(
            ForegroundScorer(
                small.EMBED_DIM, 4, direction=direction, modulate_before_norm=before_norm
            )
        )
        scorer(features, host.heads).logits[~features.padding_mask].square().sum().backward()
        assert all(p.grad.any() for p in scorer.predictor.parameters())
        gradients[before_norm] = scorer.alpha.grad.abs()
    assert (gradients[False] > 1e-3).all()
    # A norm that follows takes the factor away again.
    assert (gradients[True] < 1e-3 * gradients[False]).all()


def test_without_supervision_the_weights_carry_the_gradient(host):
    features = small.features(host, SIZES)
    supervised, alone = foreground(), foreground(supervised=False)
    assert supervised.learns is Foreground and alone.learns is None
    assert not supervised(features, host.heads).weighs
    assert alone(features, host.heads).weighs


def test_scores_do_not_lose_precision_under_autocast(host):
    features = small.features(host, SIZES)
    scorer = foreground()
    expected = scorer(features, host.heads).logits
    with torch.autocast("cpu", torch.bfloat16):
        got = scorer(features, host.heads).logits
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_bad_arguments_of_the_foreground_scorer(host):
    with pytest.raises(
        ValueError, match=r"direction must be one of \['top_down', .*'up'\. Set model\.scorer\.dir"
    ):
        ForegroundScorer(32, 4, direction="up")
    with pytest.raises(ValueError, match=r"num_levels must be an integer of at least 1, got 0"):
        ForegroundScorer(32, 0)
    features = small.features(host, SIZES)
    with pytest.raises(ValueError, match=r"num_levels must be 4 as in the features, got 3\. Set"):
        ForegroundScorer(32, 3)(features, host.heads)


@pytest.fixture
def category():
    """A head whose class logits are the first two channels."""
    head = Head(4, 2)
    head.class_embed.weight.data.copy_(torch.eye(2, 4))
    head.class_embed.bias.data.zero_()
    return head


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_object_scores_are_products_of_probabilities(category):
    tokens = torch.tensor([[[2.0, -1.0, 9.0, 9.0], [-3.0, -2.0, 9.0, 9.0]]], requires_grad=True)
    logits = torch.tensor([[-1.0, 0.5]], requires_grad=True)
    got = MultiCategoryScorer()(tokens, logits, category)
    expected = [sigmoid(-1.0) * sigmoid(2.0), sigmoid(0.5) * sigmoid(-2.0)]
    assert got[0].tolist() == pytest.approx(expected)
    assert not got.requires_grad
    alone = MultiCategoryScorer()(tokens, None, category)
    assert alone[0].tolist() == pytest.approx([sigmoid(2.0), sigmoid(-2.0)])


def test_released_object_scores_prefer_what_is_surely_nothing(category):
    tokens = torch.tensor([[[-4.0, -5.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]]])
    logits = torch.tensor([[-5.0, 1.0]])
    released = MultiCategoryScorer(product="logit")
    assert released(tokens, logits, category)[0].tolist() == pytest.approx([20.0, 1.0])
    assert released(tokens, None, category)[0].tolist() == pytest.approx([-4.0, 1.0])
    assert MultiCategoryScorer()(tokens, logits, category).argmax() == 1
    with pytest.raises(
        ValueError, match=r"must be 'probability' or 'logit', got 'sum'\. Set model"
    ):
        MultiCategoryScorer(product="sum")


def test_object_scores_are_not_rounded_under_autocast(category):
    tokens, logits = torch.randn(1, 5, 4), torch.randn(1, 5)
    expected = MultiCategoryScorer()(tokens, logits, category)
    with torch.autocast("cpu", torch.bfloat16):
        got = MultiCategoryScorer()(tokens, logits, category)
    assert torch.equal(got, expected)
