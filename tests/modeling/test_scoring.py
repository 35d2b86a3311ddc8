"""Token scorers and selectors."""

from __future__ import annotations

import pytest
import torch

from sparsedet.modeling import OracleScorer, RandomScorer, TopKSelector
from sparsedet.modeling.scoring import MaskPredictor
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
    points = features.reference_points()
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
    alone = predictor(tokens[1:, :4], padding[1:, :4])
    torch.testing.assert_close(scores[1:, :4], alone)
    changed = tokens.clone()
    changed[1, 0] = torch.randn(8)
    assert not torch.allclose(predictor(changed, padding)[1, 1:4], alone[0, 1:]), "no context"


def grid(sizes):
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    count = len(sizes)
    return flatten_maps(
        [torch.zeros(count, 1, height, width)],
        [torch.zeros(count, height * width, 1)],
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


def test_a_schedule_counts_per_image_and_layer():
    features = grid(((2, 5), (1, 4)))
    scores = TokenScores(torch.arange(20.0).view(2, 10))
    selections = TopKSelector(0.6, schedule=(1.0, 0.5, 0.1))(scores, features, 3)
    assert [each.counts for each in selections] == [(7, 3), (3, 1), (1, 1)]
    with pytest.raises(ValueError, match=r"schedule must have one factor for each of the 2"):
        TopKSelector(0.6, schedule=(1.0, 0.5, 0.1))(scores, features, 2)


def test_objectness_is_the_best_class_and_trains_its_head_only_as_a_detector():
    model = small.detector(small.Combination("ObjectnessScorer", "TopKSelector"))
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
