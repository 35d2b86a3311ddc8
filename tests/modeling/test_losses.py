"""Loss terms and the criterion against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparsedet import events
from sparsedet.modeling import (
    BoxL1Loss,
    DecoderAttentionLoss,
    FocalLoss,
    GIoULoss,
    HungarianMatcher,
    SetCriterion,
)
from sparsedet.modeling.losses import most_attended
from sparsedet.modeling.stages import (
    DetectorOutput,
    Matching,
    Prediction,
    Targets,
    TokenScores,
    TokenSelection,
    flatten_maps,
)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def focal(p: float, positive: bool, alpha: float = 0.25, gamma: float = 2.0) -> float:
    if positive:
        return -alpha * (1 - p) ** gamma * math.log(p)
    return -(1 - alpha) * p**gamma * math.log(1 - p)


@pytest.fixture
def prediction() -> Prediction:
    probabilities = [[0.9, 0.2], [0.3, 0.6]]
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.2, 0.3, 0.2, 0.2]]
    return Prediction(
        torch.tensor([[[logit(p) for p in row] for row in probabilities]]), torch.tensor([boxes])
    )


@pytest.fixture
def matching() -> Matching:
    return Matching(
        image=torch.tensor([0]),
        query=torch.tensor([1]),
        boxes=torch.tensor([[0.3, 0.3, 0.2, 0.1]]),
        labels=torch.tensor([1]),
    )


def test_focal(prediction, matching):
    expected = focal(0.9, False) + focal(0.2, False) + focal(0.3, False) + focal(0.6, True)
    got = FocalLoss(weight=7.0)(prediction, matching, 2.0)
    assert got.item() == pytest.approx(expected / 2, rel=1e-5)
    other = FocalLoss(weight=1.0, alpha=0.4, gamma=1.0)(prediction, matching, 1.0)
    expected = sum(focal(p, False, 0.4, 1.0) for p in (0.9, 0.2, 0.3)) + focal(0.6, True, 0.4, 1.0)
    assert other.item() == pytest.approx(expected, rel=1e-5)


def test_focal_leaves_fillers_out(prediction, matching):
    some = replace(prediction, valid=torch.tensor([[False, True]]))
    expected = focal(0.3, False) + focal(0.6, True)
    assert FocalLoss(weight=1.0)(some, matching, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_box_l1(prediction, matching):
    got = BoxL1Loss(weight=5.0)(prediction, matching, 4.0)
    assert got.item() == pytest.approx((0.1 + 0.0 + 0.0 + 0.1) / 4, rel=1e-5)


def test_giou(prediction, matching):
    # [0.1, 0.2, 0.3, 0.4] and [0.2, 0.25, 0.4, 0.35]: overlap 0.1 x 0.1, hull 0.3 x 0.2
    union = 0.04 + 0.02 - 0.01
    expected = 1 - (0.01 / union - (0.06 - union) / 0.06)
    assert GIoULoss(weight=2.0)(prediction, matching, 1.0).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_weights_are_applied_once_and_boxes_counted_over_the_batch(prediction):
    two = Prediction(prediction.logits.repeat(2, 1, 1), prediction.boxes.repeat(2, 1, 1))
    targets = Targets(
        (prediction.boxes[0] + 0.05, prediction.boxes[0, :1]),
        (torch.tensor([0, 1]), torch.tensor([0])),
    )
    terms = [FocalLoss(weight=2.0), BoxL1Loss(weight=5.0), GIoULoss(weight=3.0)]
    criterion = SetCriterion(HungarianMatcher(), terms)
    losses = criterion(output(two), targets)
    matching = criterion.matcher(two, targets)
    assert set(losses) == {"decoder.0/focal", "decoder.0/box_l1", "decoder.0/giou"}
    for term in terms:
        expected = term.weight * term(two, matching, 3.0)
        torch.testing.assert_close(losses[f"decoder.0/{term.name}"], expected)


def test_terms_need_names_of_their_own():
    with pytest.raises(ValueError, match=r"SetCriterion.matched must be terms of different names"):
        SetCriterion(HungarianMatcher(), [FocalLoss(weight=1.0), FocalLoss(weight=5.0)])
    with pytest.raises(ValueError, match=r"SetCriterion.matched must hold at least one"):
        SetCriterion(HungarianMatcher(), [])


def test_every_stage_is_supervised(prediction):
    targets = Targets((prediction.boxes[0],), (torch.tensor([0, 1]),))
    full = replace(
        output(prediction, prediction),
        proposals=replace(prediction, class_agnostic=True),
        encoder=(prediction,),
        scores=TokenScores(torch.zeros(1, 2), prediction),
    )
    losses = SetCriterion(HungarianMatcher(), [FocalLoss(weight=1.0)])(full, targets)
    stages = ["decoder.0", "decoder.1", "proposals", "encoder.0", "scorer"]
    assert list(losses) == [f"{stage}/focal" for stage in stages]
    # Class-agnostic: both objects are class 0, so the positives are the first numbers.
    expected = focal(0.9, True) + focal(0.2, False) + focal(0.3, True) + focal(0.6, False)
    assert losses["proposals/focal"].item() == pytest.approx(expected / 2, rel=1e-5)
    assert losses["decoder.0/focal"] == losses["encoder.0/focal"] == losses["scorer/focal"]
    assert losses["decoder.0/focal"] != losses["proposals/focal"]


def test_without_objects_boxes_count_one(prediction):
    empty = Targets((torch.zeros(0, 4),), (torch.zeros(0, dtype=torch.long),))
    terms = [FocalLoss(weight=1.0), BoxL1Loss(weight=5.0), GIoULoss(weight=2.0)]
    losses = SetCriterion(HungarianMatcher(), terms)(output(prediction), empty)
    expected = sum(focal(p, False) for p in (0.9, 0.2, 0.3, 0.6))
    assert losses["decoder.0/focal"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["decoder.0/box_l1"] == losses["decoder.0/giou"] == 0


def maps(sizes=((1, 4), (1, 2))):
    """Tokens of one level with one pixel per cell, on a canvas of 1 x 4."""
    count = len(sizes)
    return flatten_maps(
        [torch.zeros(count, 1, 1, 4)], [torch.zeros(count, 4, 1)], strides=(1,), image_sizes=sizes
    )


def output(*decoder: Prediction, features=None, **changes) -> DetectorOutput:
    features = features or maps()
    return DetectorOutput(decoder, features, features, (TokenSelection((1, 1)),), **changes)


def test_decoder_attention_loss_leaves_padding_out(prediction):
    mass = torch.tensor([[3.0, 0.5, 2.0, 0.0], [1.0, 2.0, 9.0, 9.0]])
    scores = torch.tensor([[0.2, -1.0, 1.5, 0.3], [0.7, -0.4, 5.0, 5.0]])
    selection = TokenSelection(
        (2, 1), torch.tensor([[2, 0], [0, 1]]), torch.tensor([[True, True], [True, False]])
    )
    found = replace(
        output(prediction), scores=TokenScores(scores), token_mass=mass, selections=(selection,)
    )

    def bce(x: float, target: bool) -> float:
        return math.log1p(math.exp(-x if target else x))

    first = (bce(0.2, True) + bce(-1.0, False) + bce(1.5, True) + bce(0.3, False)) / 4
    second = (bce(0.7, False) + bce(-0.4, True)) / 2
    with events.Recorder() as recorder:
        loss = DecoderAttentionLoss(weight=3.0)(found, Targets((), ()))
    logged = recorder.flush()
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    # Kept are tokens 2 and 0 of the first image and 0 of the second.
    assert logged["token_mass_on_kept"] == pytest.approx((3.0 + 2.0 + 1.0) / mass.sum().item())


def test_most_attended():
    features = maps()
    mass = torch.tensor([[3.0, 0.5, 2.0, 0.0], [1.0, 2.0, 9.0, 9.0]])
    assert most_attended(mass, features, (2, 1)).tolist() == [
        [True, False, True, False],
        [False, True, False, False],
    ]
    # Never padding, and no token without any mass, however many are kept.
    assert most_attended(mass, features, (4, 2)).tolist() == [
        [True, True, True, False],
        [True, True, False, False],
    ]
