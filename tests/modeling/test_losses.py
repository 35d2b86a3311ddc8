"""Loss terms and the criterion against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from sparsedet import events
from sparsedet.modeling import (
    BoxL1Loss,
    CrossEntropyLoss,
    DecoderAttentionLoss,
    FocalLoss,
    ForegroundLoss,
    GIoULoss,
    HungarianMatcher,
    SalienceLoss,
    SetCriterion,
)
from sparsedet.modeling.denoising import match_slots
from sparsedet.modeling.losses.matched import stage_sums
from sparsedet.modeling.losses.tokens import foreground_tokens, most_attended, token_salience
from sparsedet.modeling.parts import Foreground
from sparsedet.modeling.stages import (
    DenoisingOutput,
    DetectorOutput,
    Matching,
    Prediction,
    Targets,
    TokenScores,
    TokenSelection,
    flatten_maps,
)
from sparsedet.structures import cxcywh_to_xyxy, pairwise_generalized_iou
from tests.modeling import small


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
        target=torch.tensor([0]),
        boxes=torch.tensor([[0.3, 0.3, 0.2, 0.1]]),
        labels=torch.tensor([1]),
    )


def test_focal(prediction, matching):
    expected = focal(0.9, False) + focal(0.2, False) + focal(0.3, False) + focal(0.6, True)
    got = small.loss_of(FocalLoss(weight=7.0), prediction, matching, 2.0)
    assert got.item() == pytest.approx(expected / 2, rel=1e-5)
    other = small.loss_of(FocalLoss(weight=1.0, alpha=0.4, gamma=1.0), prediction, matching, 1.0)
    expected = sum(focal(p, False, 0.4, 1.0) for p in (0.9, 0.2, 0.3)) + focal(0.6, True, 0.4, 1.0)
    assert other.item() == pytest.approx(expected, rel=1e-5)


def test_focal_leaves_fillers_out(prediction, matching):
    some = replace(prediction, valid=torch.tensor([[False, True]]))
    expected = focal(0.3, False) + focal(0.6, True)
    assert small.loss_of(FocalLoss(weight=1.0), some, matching, 1.0).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_cross_entropy_is_the_mean_over_weighted_queries(prediction, matching):
    """torch's own, whose weights are those of the classes."""
    logits = torch.tensor([[[2.0, 0.5, -1.0], [0.1, 1.5, 0.3]]])
    given = replace(prediction, logits=logits, softmax=True)
    weights, answers = torch.tensor([1.0, 1.0, 0.1]), torch.tensor([2, 1])
    expected = torch.nn.functional.cross_entropy(logits[0], answers, weight=weights)
    term = CrossEntropyLoss(weight=7.0)
    for num_boxes in (1.0, 4.0):
        torch.testing.assert_close(small.loss_of(term, given, matching, num_boxes), expected)
    some = replace(given, valid=torch.tensor([[False, True]]))
    expected = torch.nn.functional.cross_entropy(logits[0, 1:], answers[1:])
    torch.testing.assert_close(small.loss_of(term, some, matching, 1.0), expected)
    none = replace(given, valid=torch.zeros(1, 2, dtype=torch.bool))
    nothing = replace(matching, **{k: getattr(matching, k)[:0] for k in vars(matching)})
    assert small.loss_of(term, none, nothing, 1.0) == 0
    heavy = CrossEntropyLoss(weight=1.0, no_object_weight=1.0)
    torch.testing.assert_close(
        small.loss_of(heavy, given, matching, 1.0),
        torch.nn.functional.cross_entropy(logits[0], answers),
    )


def test_there_is_one_kind_of_classification_loss():
    terms = [FocalLoss(weight=1.0), CrossEntropyLoss(weight=1.0)]
    with pytest.raises(
        ValueError,
        match=r"one kind of classification loss, got CrossEntropyLoss and FocalLoss.*model",
    ):
        SetCriterion(HungarianMatcher(), terms)
    assert SetCriterion(HungarianMatcher(), terms[1:]).softmax
    assert not SetCriterion(HungarianMatcher(), terms[:1]).softmax
    assert not SetCriterion(HungarianMatcher(), [BoxL1Loss(weight=1.0)]).softmax


def test_box_l1(prediction, matching):
    got = small.loss_of(BoxL1Loss(weight=5.0), prediction, matching, 4.0)
    assert got.item() == pytest.approx((0.1 + 0.0 + 0.0 + 0.1) / 4, rel=1e-5)


def test_giou(prediction, matching):
    # [0.1, 0.2, 0.3, 0.4] and [0.2, 0.25, 0.4, 0.35]: overlap 0.1 x 0.1, hull 0.3 x 0.2
    union = 0.04 + 0.02 - 0.01
    expected = 1 - (0.01 / union - (0.06 - union) / 0.06)
    assert small.loss_of(GIoULoss(weight=2.0), prediction, matching, 1.0).item() == pytest.approx(
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
        expected = term.weight * small.loss_of(term, two, matching, 3.0)
        torch.testing.assert_close(losses[f"decoder.0/{term.name}"], expected)


def test_a_trainer_may_scale_losses_in_place(prediction):
    """As detectron2's trainers do with weights of their own."""
    logits = prediction.logits.detach().requires_grad_()
    targets = Targets((prediction.boxes[0],), (torch.tensor([0, 1]),))
    terms = [FocalLoss(weight=2.0), BoxL1Loss(weight=5.0)]
    both = (Prediction(logits, prediction.boxes), Prediction(2 * logits, prediction.boxes))
    gradients = []
    for factor in (1.0, 0.5):
        losses = SetCriterion(HungarianMatcher(), terms)(output(*both), targets)
        for name in losses:
            losses[name] *= factor
        gradients.append(torch.autograd.grad(sum(losses.values()), logits, retain_graph=True)[0])
    torch.testing.assert_close(gradients[1], gradients[0] / 2)


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
        [torch.zeros(count, 1, 1, 4)],
        lambda *_: torch.zeros(count, 4, 1),
        strides=(1,),
        image_sizes=sizes,
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
    alone = DecoderAttentionLoss(weight=3.0).of_scores(
        TokenScores(scores), found.features, selection, mass
    )
    assert alone == loss, "without a detector"
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


STRIDES = (8, 16, 32)
RANGES = ((-1, 20), (12, 48), (32, 999))
IMAGE_SIZES = ((70, 100), (96, 40))


def pyramid(image_sizes=IMAGE_SIZES, canvas=(96, 128)):
    """Tokens of three levels with padding."""
    shapes = [(-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in STRIDES]
    count = len(image_sizes)
    return flatten_maps(
        [torch.zeros(count, 1, *shape) for shape in shapes],
        lambda *_: torch.zeros(count, sum(h * w for h, w in shapes), 1),
        strides=STRIDES,
        image_sizes=image_sizes,
    )


def pixel_targets(*images, image_sizes=IMAGE_SIZES) -> Targets:
    """Targets from (left, top, right, bottom) in pixels."""
    boxes = []
    for each, (height, width) in zip(images, image_sizes, strict=True):
        xyxy = torch.tensor(each, dtype=torch.float64).view(-1, 4)
        center, size = (xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]
        scale = torch.tensor([width, height, width, height])
        boxes.append((torch.cat((center, size), 1) / scale).float())
    return Targets(tuple(boxes), tuple(torch.zeros(len(b), dtype=torch.long) for b in boxes))


OBJECTS = (
    [(3.0, 5.0, 41.0, 30.0), (20.0, 10.0, 99.0, 69.0), (50.0, 50.0, 61.0, 59.0)],
    [(1.0, 2.0, 39.0, 93.0)],
)


def cells(features):
    """Image, place in the row of tokens, level and pixel of every unpadded cell."""
    for image, valid in enumerate(features.level_sizes):
        first = 0
        for level, ((height, width), stride) in enumerate(
            zip(features.spatial_shapes, STRIDES, strict=True)
        ):
            for row in range(valid[level][0]):
                for column in range(valid[level][1]):
                    place = first + row * width + column
                    yield image, place, level, (column + 0.5) * stride, (row + 0.5) * stride
            first += height * width


def distance_in_box(distance: str, x: float, y: float, box) -> float:
    """What is compared with the ranges, worked out for one cell and one box."""
    left, top, right, bottom = box
    if distance == "sides":
        return max(x - left, y - top, right - x, bottom - y)
    if distance == "half_size":
        return max(right - left, bottom - top) / 2
    return max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))


def is_foreground(level: int, x: float, y: float, boxes, distance="sides") -> bool:
    low, high = RANGES[level]
    return any(
        left < x < right
        and top < y < bottom
        and low < distance_in_box(distance, x, y, (left, top, right, bottom)) <= high
        for left, top, right, bottom in boxes
    )


def salience(x: float, y: float, boxes) -> float:
    found = [0.0]
    for left, top, right, bottom in boxes:
        if left < x < right and top < y < bottom:
            across = (x - (left + right) / 2) / (right - left)
            down = (y - (top + bottom) / 2) / (bottom - top)
            found.append(1 - math.hypot(across, down))
    return max(found)


def scored(features, scores: torch.Tensor) -> DetectorOutput:
    return replace(output(features=features), scores=TokenScores(scores))


DISTANCES = pytest.mark.parametrize("distance", ["sides", "half_size", "center"])


@DISTANCES
def test_foreground_is_what_lies_in_a_box_at_a_distance_of_its_level(distance):
    features = pyramid()
    got = foreground_tokens(features, pixel_targets(*OBJECTS), RANGES, distance=distance)
    expected = torch.zeros_like(got)
    for image, place, level, x, y in cells(features):
        expected[image, place] = is_foreground(level, x, y, OBJECTS[image], distance)
    assert torch.equal(got, expected)
    assert all(level.any() for level in features.split_levels(got))
    assert not got[features.padding_mask].any()


@DISTANCES
def test_foreground_of_many_boxes(distance):
    """Boxes of all sizes and shapes, which overlap: a token is asked for each of them."""
    generator = torch.Generator().manual_seed(5)
    size, count = (320, 448), 60
    for _ in range(3):
        corner = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        far = corner + (1 - corner) * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        scale = torch.tensor([size[1], size[0]], dtype=torch.float64)
        boxes = torch.cat((corner * scale, far * scale), dim=1).tolist()
        features = pyramid((size,), size)
        got = foreground_tokens(
            features, pixel_targets(boxes, image_sizes=(size,)), RANGES, distance=distance
        )
        expected = torch.zeros_like(got)
        for image, place, level, x, y in cells(features):
            expected[image, place] = is_foreground(level, x, y, boxes, distance)
        assert torch.equal(got, expected)


def test_sides_and_ranges_of_foreground_are_strict_as_the_paper_has_them():
    features = flatten_maps(
        [torch.zeros(1, 1, 2, 2)],
        lambda *_: torch.zeros(1, 4, 1),
        strides=(8,),
        image_sizes=((16, 16),),
    )

    def found(box, low: float, high: float, distance: str = "sides") -> list[bool]:
        targets = pixel_targets([box], image_sizes=((16, 16),))
        return foreground_tokens(features, targets, ((low, high),), distance=distance)[0].tolist()

    # Centers of the cells lie at 4 and 12.
    assert found((0, 0, 16, 16), -1, 999) == [True] * 4
    assert found((4, 0, 16, 16), -1, 999) == [False, True, False, True]
    assert found((0, 0, 16, 12), -1, 999) == [True, True, False, False]
    assert found((0, 0, 16, 16), -1, 12) == [True] * 4, "the upper end belongs to the range"
    assert found((0, 0, 16, 16), 12, 999) == [False] * 4, "the lower end does not"
    for distance, there in (("sides", 12), ("half_size", 8), ("center", 4)):
        assert found((0, 0, 16, 16), there - 1, there, distance) == [True] * 4
        assert found((0, 0, 16, 16), there, there + 1, distance) == [False] * 4
    # The longer side counts, half of it is 8; rows are 3 above and 5 below the center, columns 4.
    assert found((0, 0, 16, 14), 7, 8, "half_size") == [True] * 4
    assert found((0, 0, 16, 14), 4.5, 5, "center") == [False, False, True, True]


def test_defaults_are_ranges_that_overlap_and_the_distance_of_the_released_code():
    assert ForegroundLoss(weight=1.0).distance == "sides"
    ranges = ForegroundLoss(weight=1.0).size_ranges
    assert len(ranges) == 4
    assert all(fine[1] > coarse[0] for fine, coarse in pairwise(ranges[1:]))
    assert ranges[0][0] < 0


@DISTANCES
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0)])
def test_foreground_loss(alpha, gamma, distance):
    features = pyramid()
    scores = torch.randn(features.padding_mask.shape)
    scores[features.padding_mask] = 50.0
    sums, positives = [0.0, 0.0], [0, 0]
    for image, place, level, x, y in cells(features):
        positive = is_foreground(level, x, y, OBJECTS[image], distance)
        p = torch.sigmoid(scores[image, place].double()).item()
        sums[image] += focal(p, positive, alpha, gamma)
        positives[image] += positive
    expected = sum(s / n for s, n in zip(sums, positives, strict=True)) / 2
    loss = ForegroundLoss(
        weight=9.0, size_ranges=RANGES, distance=distance, alpha=alpha, gamma=gamma
    )
    got = loss(scored(features, scores), pixel_targets(*OBJECTS))
    assert got.item() == pytest.approx(expected, rel=1e-5)
    alone = loss.of_scores(TokenScores(scores), features, pixel_targets(*OBJECTS))
    assert alone == got, "without a detector"


def test_salience_falls_from_the_center_whatever_the_size():
    features = pyramid()
    got = token_salience(features, pixel_targets(*OBJECTS))
    expected = torch.zeros_like(got)
    for image, place, _, x, y in cells(features):
        expected[image, place] = salience(x, y, OBJECTS[image])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got[0] > 0.9).any()
    one = flatten_maps(
        [torch.zeros(1, 1, 1, 1)],
        lambda *_: torch.zeros(1, 1, 1),
        strides=(8,),
        image_sizes=((8, 8),),
    )
    for box in ((3, 3, 5, 5), (-50, -50, 58, 58)):  # the only cell is the center of both
        targets = pixel_targets([box], image_sizes=((8, 8),))
        assert token_salience(one, targets).item() == pytest.approx(1.0)
    corner = pixel_targets([(3.999, 3.999, 8, 8)], image_sizes=((8, 8),))
    assert token_salience(one, corner).item() == pytest.approx(1 - 0.5**0.5, abs=1e-3)


def test_salience_loss():
    features = pyramid()
    scores = torch.randn(features.padding_mask.shape)
    scores[features.padding_mask] = 50.0
    sums, positives = [0.0, 0.0], [0, 0]
    for image, place, _, x, y in cells(features):
        target = salience(x, y, OBJECTS[image])
        p = torch.sigmoid(scores[image, place].double()).item()
        factor = 0.3 * target * (1 - p) ** 1.5 + 0.7 * (1 - target) * p**1.5
        cross_entropy = -target * math.log(p) - (1 - target) * math.log(1 - p)
        sums[image] += factor * cross_entropy
        positives[image] += target > 0
    expected = sum(s / n for s, n in zip(sums, positives, strict=True)) / 2
    loss = SalienceLoss(weight=9.0, alpha=0.3, gamma=1.5)
    got = loss(scored(features, scores), pixel_targets(*OBJECTS))
    assert got.item() == pytest.approx(expected, rel=1e-4)
    alone = loss.of_scores(TokenScores(scores), features, pixel_targets(*OBJECTS))
    assert alone == got, "without a detector"


TOKEN_TERMS = pytest.mark.parametrize(
    "term", [ForegroundLoss(weight=1.5, size_ranges=RANGES), SalienceLoss(weight=1.5)]
)


@TOKEN_TERMS
@pytest.mark.parametrize(
    "box",
    [
        pytest.param(None, id="no object"),
        pytest.param((20, 20, 20, 20), id="no size"),
        pytest.param((4, 10, 4, 60), id="no width, on a column of cells"),
        pytest.param((60, 50, 20, 10), id="crossing"),
    ],
)
def test_images_without_anything_to_find(term, box):
    """All tokens are background, their sum is divided by 1."""
    features = pyramid()
    scores = torch.randn(features.padding_mask.shape, requires_grad=True)
    targets = pixel_targets([] if box is None else [box], [])
    got = term(scored(features, scores), targets)
    background = -0.75 * scores.sigmoid() ** 2 * F.logsigmoid(-scores)
    expected = background.masked_fill(features.padding_mask, 0.0).sum() / 2
    torch.testing.assert_close(got, expected)
    got.backward()
    assert scores.grad.isfinite().all()
    assert not scores.grad[features.padding_mask].any()
    assert scores.grad[~features.padding_mask].all()


@TOKEN_TERMS
def test_sure_scores_have_finite_losses(term):
    features = pyramid()
    scores = torch.where(torch.rand(features.padding_mask.shape) < 0.5, -300.0, 300.0)
    scores.requires_grad_()
    loss = term(scored(features, scores), pixel_targets(*OBJECTS))
    loss.backward()
    assert loss.isfinite() and scores.grad.isfinite().all()


@TOKEN_TERMS
def test_losses_of_tokens_are_means_over_images(term):
    features, targets = pyramid(), pixel_targets(*OBJECTS)
    scores = torch.randn(features.padding_mask.shape)
    alone = []
    for image, size in enumerate(IMAGE_SIZES):
        single = pyramid((size,), canvas=size)
        own = scores[image, ~features.padding_mask[image]][None]
        one = Targets(targets.boxes[image : image + 1], targets.labels[image : image + 1])
        alone.append(term(scored(single, own), one))
    got = term(scored(features, scores), targets)
    torch.testing.assert_close(got, (alone[0] + alone[1]) / 2)


@TOKEN_TERMS
def test_the_criterion_hands_targets_to_terms_of_the_scorer(prediction, term):
    features = pyramid()
    two = Prediction(prediction.logits.repeat(2, 1, 1), prediction.boxes.repeat(2, 1, 1))
    scores = TokenScores(torch.randn(features.padding_mask.shape))
    found = replace(output(two, features=features), scores=scores)
    targets = pixel_targets(*OBJECTS)
    losses = SetCriterion(HungarianMatcher(), [FocalLoss(weight=1.0)], unmatched=[term])(
        found, targets
    )
    torch.testing.assert_close(losses[f"scorer/{term.name}"], 1.5 * term(found, targets))
    assert term.teaches is Foreground


def test_ranges_must_fit_the_levels():
    features = pyramid()
    found = scored(features, torch.zeros(features.padding_mask.shape))
    with pytest.raises(
        ValueError, match=r"size_ranges must have one range for each of the 3 levels, got 4: .*Set"
    ):
        ForegroundLoss(weight=1.0)(found, pixel_targets(*OBJECTS))
    for bad in (((64, 64),), ((256, 64),), ((0, 1, 2),), (64, 128)):
        with pytest.raises(ValueError, match=r"must be pairs \(low, high\) with low < high, got"):
            ForegroundLoss(weight=1.0, size_ranges=bad)


def one_by_one(term, prediction: Prediction, matching: Matching, num_boxes: float) -> torch.Tensor:
    """A stage by itself, in the simple form: with an array of targets, fillers taken out."""
    logits, boxes = prediction.logits, prediction.boxes[matching.image, matching.query]
    if term.name == "box_l1":
        return F.l1_loss(boxes, matching.boxes, reduction="sum") / num_boxes
    if term.name == "giou":
        corners = (cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(matching.boxes))
        return (1 - pairwise_generalized_iou(*corners).diagonal()).sum() / num_boxes
    target = torch.zeros_like(logits)
    target[matching.image, matching.query, matching.labels] = 1
    if prediction.valid is not None:
        logits, target = logits[prediction.valid], target[prediction.valid]
    loss = sigmoid_focal_loss(logits, target, term.alpha, term.gamma, reduction="sum")
    return loss / num_boxes


def random_stage(queries: int, seed: int, *, fillers: bool, **arguments) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, queries, small.NUM_CLASSES, generator=generator)
    boxes = 0.1 + 0.5 * torch.rand(2, queries, 4, generator=generator)
    valid = torch.rand(2, queries, generator=generator) < 0.7 if fillers else None
    return Prediction(logits.requires_grad_(), boxes.requires_grad_(), valid, **arguments)


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
@pytest.mark.parametrize("fillers", [False, True])
def test_stages_together_are_what_each_is_by_itself(counts, fillers):
    """Values and gradients; stages differ in queries, fillers and whether they tell classes."""
    targets, terms = small.targets(counts), [FocalLoss(weight=2.0, alpha=0.3, gamma=1.5)]
    terms += [BoxL1Loss(weight=5.0), GIoULoss(weight=3.0)]
    decoder = [random_stage(7, seed, fillers=fillers and seed > 0) for seed in range(3)]
    proposals = random_stage(30, 3, fillers=fillers, class_agnostic=True)
    encoder = (random_stage(3, 4, fillers=False),)
    noised = random_stage(8, 5, fillers=fillers)
    pairs = match_slots(targets, 4, 2)
    if fillers:  # objects sit in slots that are used
        noised.valid[pairs.image, pairs.query] = True
    denoised = DenoisingOutput((noised, noised), pairs, 2)
    found = replace(output(*decoder), proposals=proposals, encoder=encoder, denoising=denoised)
    criterion = SetCriterion(HungarianMatcher(), terms)
    losses = criterion(found, targets)

    stages = {f"decoder.{layer}": each for layer, each in enumerate(decoder)}
    stages |= {"proposals": proposals, "encoder.0": encoder[0]}
    expected = {}
    num_boxes = max(sum(counts), 1)
    for name, prediction in stages.items():
        matching = criterion.matcher(prediction, targets)
        for term in terms:
            value = term.weight * one_by_one(term, prediction, matching, num_boxes)
            expected[f"{name}/{term.name}"] = value
    for layer in range(2):
        for term in terms:
            value = term.weight * one_by_one(term, noised, pairs, 2 * num_boxes)
            expected[f"denoising.{layer}/{term.name}"] = value

    assert list(losses) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=lambda m, name=name: f"{name}: {m}")
    inputs = [x for p in (*stages.values(), noised) for x in (p.logits, p.boxes)]
    # uneven factors: a gradient that went to another stage would show
    factors = torch.rand(len(losses))
    ours = torch.autograd.grad((torch.stack(list(losses.values())) * factors).sum(), inputs)
    theirs = torch.autograd.grad((torch.stack(list(expected.values())) * factors).sum(), inputs)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted)


def test_sums_of_runs():
    values = torch.arange(10.0)
    assert stage_sums(values, (2, 2, 3, 0, 1, 2)).tolist() == [1, 5, 15, 0, 7, 17]
    assert stage_sums(values[:0], (0, 0)).tolist() == [0, 0]
