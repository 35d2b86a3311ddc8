"""One-to-one matching against trying all assignments."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sparsedet.modeling import FocalLoss, HungarianMatcher
from sparsedet.modeling.stages import Prediction, Targets
from sparsedet.structures import cxcywh_to_xyxy, pairwise_generalized_iou
from tests.modeling import small


def predictions(batch: int, queries: int, seed: int = 0, **arguments) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.1 + 0.5 * torch.rand(batch, queries, 4, generator=generator)
    logits = 2 * torch.randn(batch, queries, small.NUM_CLASSES, generator=generator)
    return Prediction(logits, boxes, **arguments)


def cost(prediction: Prediction, targets: Targets, image: int, weights=(2.0, 5.0, 2.0)):
    """Costs ``[Q n]`` of one image, from the formulas of the papers."""
    boxes, labels = targets.boxes[image], targets.labels[image]
    p = prediction.logits[image].double().sigmoid()[:, labels]
    focal = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
    distance = (prediction.boxes[image][:, None] - boxes).abs().sum(-1)
    giou = pairwise_generalized_iou(cxcywh_to_xyxy(prediction.boxes[image]), cxcywh_to_xyxy(boxes))
    return weights[0] * focal + weights[1] * distance - weights[2] * giou


def pairs(matching, targets: Targets, image: int) -> set[tuple[int, int]]:
    found = set()
    for index in (matching.image == image).nonzero().flatten():
        same = (targets.boxes[image] == matching.boxes[index]).all(-1)
        found.add((int(matching.query[index]), int(same.nonzero())))
    own = matching.image == image
    named = zip(matching.query[own].tolist(), matching.target[own].tolist(), strict=True)
    assert set(named) == found, "the objects that it names are not those whose boxes it holds"
    return found


def test_the_class_cost_of_a_softmax_is_minus_the_probability():
    """The object's class is likelier at query 1, though its logit is smaller."""
    logits = torch.tensor([[[3.0, 0.0, 9.0], [2.0, 0.0, 0.0]]])
    prediction = Prediction(logits, torch.full((1, 2, 4), 0.3), softmax=True)
    targets = Targets((torch.full((1, 4), 0.3),), (torch.tensor([0]),))
    matcher = HungarianMatcher(class_cost=1.0)
    assert matcher(prediction, targets).query.tolist() == [1]
    assert matcher(replace(prediction, softmax=False), targets).query.tolist() == [0]
    costs = matcher._costs([prediction], targets.boxes[0][None], [targets.labels[0][None]])
    expected = -logits.softmax(-1)[0, :, 0] - 2.0
    torch.testing.assert_close(costs[0, :, 0], expected)


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (1, 0)])
def test_the_cheapest_assignment_is_found(counts):
    prediction, targets = predictions(2, 5), small.targets(counts)
    matching = HungarianMatcher()(prediction, targets)
    for image, count in enumerate(counts):
        costs = cost(prediction, targets, image)
        best = min(
            itertools.permutations(range(5), count),
            key=lambda queries: sum(costs[q, n].item() for n, q in enumerate(queries)),
        )
        assert pairs(matching, targets, image) == {(q, n) for n, q in enumerate(best)}
    assert torch.equal(matching.labels.sort().values, torch.cat(targets.labels).sort().values)


@pytest.mark.parametrize("only", ["class_cost", "box_cost", "giou_cost"])
def test_each_cost_counts(only):
    names = ("class_cost", "box_cost", "giou_cost")
    weights = tuple(float(name == only) for name in names)
    prediction, targets = predictions(1, 4, seed=3), small.targets((3,))
    matching = HungarianMatcher(**dict(zip(names, weights, strict=True)))(prediction, targets)
    costs = cost(prediction, targets, 0, weights)
    total = sum(costs[pair].item() for pair in pairs(matching, targets, 0))
    best = min(
        sum(costs[q, n].item() for n, q in enumerate(queries))
        for queries in itertools.permutations(range(4), 3)
    )
    assert total == pytest.approx(best, abs=1e-5)


def test_more_objects_than_queries():
    prediction, targets = predictions(1, 3), small.targets((5,))
    matching = HungarianMatcher()(prediction, targets)
    costs = cost(prediction, targets, 0)
    best = min(
        itertools.permutations(range(5), 3),
        key=lambda objects: sum(costs[q, n].item() for q, n in enumerate(objects)),
    )
    assert pairs(matching, targets, 0) == set(enumerate(best))


@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (0, 0)])
def test_stages_together_are_matched_as_each_by_itself(counts):
    """Costs from the formulas, image by image; stages differ in queries, fillers and classes."""
    targets, matcher = small.targets(counts), HungarianMatcher()
    stages = [predictions(2, 6), predictions(2, 40, seed=1, class_agnostic=True)]
    valid = torch.rand(2, 9, generator=torch.Generator().manual_seed(2)) < 0.6
    stages += [predictions(2, 9, seed=2, valid=valid), predictions(2, 2, seed=3)]
    found = matcher.match(stages, targets)
    assert len(found) == len(stages)
    for prediction, matching in zip(stages, found, strict=True):
        seen = targets
        if prediction.class_agnostic:
            seen = Targets(targets.boxes, tuple(torch.zeros_like(x) for x in targets.labels))
        for image, count in enumerate(counts):
            costs = cost(prediction, seen, image).numpy()
            kept = np.arange(len(costs))
            if prediction.valid is not None:
                kept = kept[prediction.valid[image].numpy()]
            rows, columns = linear_sum_assignment(costs[kept])
            assert pairs(matching, targets, image) == set(
                zip(kept[rows].tolist(), columns.tolist(), strict=True)
            )
            assert (matching.image == image).sum() == min(count, len(kept))
        labels = [
            seen.labels[i][matching_object(matching, targets, n)]
            for n, i in enumerate(matching.image.tolist())
        ]
        assert matching.labels.tolist() == [int(label) for label in labels]


def matching_object(matching, targets: Targets, pair: int) -> int:
    same = targets.boxes[int(matching.image[pair])] == matching.boxes[pair]
    return int(same.all(-1).nonzero())


def test_fillers_are_never_matched():
    valid = torch.tensor([[True, False, True, False], [False, False, False, True]])
    prediction, targets = predictions(2, 4, valid=valid), small.targets((2, 3))
    prediction.boxes[0, [1, 3]] = targets.boxes[0]  # the fillers would fit best
    prediction.boxes[1, :3] = targets.boxes[1]
    matching = HungarianMatcher()(prediction, targets)
    assert valid[matching.image, matching.query].all()
    assert (matching.image == 0).sum() == 2
    assert (matching.image == 1).sum() == 1
    costs = cost(prediction, targets, 1)
    assert pairs(matching, targets, 1) == {(3, int(costs[3].argmin()))}


def test_class_agnostic_predictions_see_class_zero():
    boxes = torch.full((1, 2, 4), 0.3)
    logits = torch.tensor([[[-4.0, 4.0], [4.0, -4.0]]])
    targets = Targets((torch.full((1, 4), 0.3),), (torch.tensor([1]),))
    matcher = HungarianMatcher()
    aware = matcher(Prediction(logits, boxes), targets)
    agnostic = matcher(Prediction(logits, boxes, class_agnostic=True), targets)
    assert (aware.query.item(), aware.labels.item()) == (0, 1)
    assert (agnostic.query.item(), agnostic.labels.item()) == (1, 0)
    assert targets.labels[0].item() == 1, "the targets were changed"


def test_the_class_cost_has_no_gradient_and_no_infinity():
    logits = torch.tensor([[[60.0, -60.0], [-60.0, 60.0]]], requires_grad=True)
    targets = Targets((torch.full((1, 4), 0.3),), (torch.tensor([0]),))
    matching = HungarianMatcher()(Prediction(logits, torch.full((1, 2, 4), 0.3)), targets)
    assert matching.query.item() == 0
    assert not matching.boxes.requires_grad


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_diverged_model_is_matched_and_seen_in_its_losses(number):
    prediction = predictions(2, 3)
    prediction.logits[1, 1] = math.nan
    prediction.boxes[1, 2] = number
    matching = HungarianMatcher()(prediction, small.targets((1, 2)))
    assert matching.image.tolist() == [0, 1, 1]
    assert not small.loss_of(FocalLoss(weight=1.0), prediction, matching, 3.0).isfinite()


@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0), (7, 1, 0)])
def test_pairs_of_every_image_as_criteria_of_the_detr_family_take_them(counts):
    """The numbers by which DETR's criterion gathers, image by image, also where there is none."""
    prediction, targets = predictions(3, 5), small.targets(counts)
    found = HungarianMatcher().pairs(prediction, targets)
    assert len(found) == 3
    for image, (source, target) in enumerate(found):
        rows, columns = linear_sum_assignment(cost(prediction, targets, image).numpy())
        assert source.dtype == target.dtype == torch.int64
        assert (source.tolist(), target.tolist()) == (rows.tolist(), columns.tolist())
