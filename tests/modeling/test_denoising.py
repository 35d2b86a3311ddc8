"""Noised objects: their noise, their slots, who sees them, and what they are divided by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsedet.layers.positional import inverse_sigmoid
from sparsedet.modeling import (
    AnchorQueries,
    BoxL1Loss,
    ContrastiveDenoising,
    Denoising,
    FocalLoss,
    GIoULoss,
    HungarianMatcher,
    SetCriterion,
)
from sparsedet.modeling.denoising import group_mask, match_slots
from sparsedet.modeling.stages import DenoisingOutput, Prediction, Queries, Targets
from sparsedet.structures import cxcywh_to_xyxy
from tests.modeling import small

SIZES = ((64, 96), (128, 70))
CLASSES = 50
KINDS = pytest.mark.parametrize("kind", [Denoising, ContrastiveDenoising])
SYSTEMS = [name for name, each in small.NAMED.items() if each.denoising is not None]


def part(kind: type, **arguments):
    return small.build(kind, **{"num_classes": CLASSES, "num_queries": 24, **arguments})


def one_box(box: tuple[float, ...], label: int = 7) -> Targets:
    return Targets((torch.tensor([box]),), (torch.tensor([label]),))


def queries(batch: int, count: int = 6, valid=None) -> Queries:
    shape = (batch, count)
    return Queries(
        torch.randn(*shape, small.EMBED_DIM), torch.rand(*shape, 4), pos=None, valid=valid
    )


def loop_mask(kinds: list[tuple[str, int]]) -> torch.Tensor:
    """Who must not see whom, query by query: kinds are ("matching", _) or ("noised", group)."""
    mask = torch.zeros(len(kinds), len(kinds), dtype=torch.bool)
    for row, (looking, own) in enumerate(kinds):
        for column, (seen, other) in enumerate(kinds):
            if seen == "matching":
                continue  # everybody sees the matching queries
            mask[row, column] = looking == "matching" or own != other
    return mask


@pytest.mark.parametrize(
    ("num_groups", "size", "matching"), [(3, 4, 5), (1, 2, 7), (5, 1, 1), (2, 6, 0)]
)
def test_groups_do_not_see_each_other(num_groups, size, matching):
    kinds = [("noised", group) for group in range(num_groups) for _ in range(size)]
    kinds += [("matching", -1)] * matching
    got = group_mask(num_groups * size, num_groups, len(kinds), torch.device("cpu"))
    assert torch.equal(got, loop_mask(kinds))


def test_prepended_queries_get_the_mask_of_their_groups():
    """Positives and negatives of a group see each other."""
    denoising, targets = part(ContrastiveDenoising), small.targets((3, 2))
    noised = denoising.sample(targets)
    joined = denoising.prepend(queries(2), noised)
    assert noised.num_groups == 8 and joined.num_denoising == 2 * 8 * 3
    kinds = [("noised", group) for group in range(8) for _ in range(6)]
    assert torch.equal(joined.attn_mask, loop_mask([*kinds, *[("matching", -1)] * 6]))


BOX = (0.5, 0.4, 0.1, 0.2)


def displacements(noised, box) -> torch.Tensor:
    """How far every corner moved, in half sizes: ``[groups, kinds, 4]``."""
    box = torch.tensor(box)
    half = torch.cat((box[2:], box[2:])) / 2
    moved = (cxcywh_to_xyxy(noised.boxes[0]) - cxcywh_to_xyxy(box)) / half
    return moved.unflatten(0, (noised.num_groups, -1))


@pytest.mark.parametrize("box_noise", [1.0, 0.4])
def test_positives_move_less_than_negatives(box_noise):
    denoising = part(ContrastiveDenoising, num_queries=3000, box_noise=box_noise)
    moved = displacements(denoising.sample(one_box(BOX)), BOX) / box_noise
    assert moved.shape == (3000, 2, 4)
    positive, negative = moved.abs().unbind(1)
    rounding = 1e-4
    assert positive.max() <= 1 + rounding
    assert negative.min() >= 1 - rounding and negative.max() <= 2 + rounding
    for distance, mean in ((positive, 0.5), (negative, 1.5)):
        torch.testing.assert_close(distance.mean(0), torch.full((4,), mean), atol=0.03, rtol=0)
        assert distance.std(0).sub(12**-0.5).abs().max() < 0.02, "not uniform"
    assert (moved > 0).float().mean((0, 1)).sub(0.5).abs().max() < 0.04
    both = torch.corrcoef(moved.flatten(1).T)
    assert (both - torch.eye(8)).abs().max() < 0.08, "corners are not independent"


@pytest.mark.parametrize("box_noise", [0.4, 1.0])
def test_centers_move_and_sizes_change(box_noise):
    noised = part(Denoising, num_groups=3000, box_noise=box_noise).sample(one_box(BOX))
    box = torch.tensor(BOX)
    extent = torch.cat((box[2:] / 2, box[2:])) * box_noise
    moved = (noised.boxes[0] - box) / extent
    assert moved.abs().max() <= 1 + 1e-4
    assert moved.mean(0).abs().max() < 0.05
    assert moved.std(0).sub(3**-0.5).abs().max() < 0.02, "not uniform in (-1, 1)"
    assert (torch.corrcoef(moved.T) - torch.eye(4)).abs().max() < 0.08


def test_negative_corners_may_cross():
    """They are not put in order; the reference has a size of eps then."""
    denoising = part(ContrastiveDenoising, num_queries=500, eps=1e-3)
    noised = denoising.sample(one_box(BOX))
    sizes = noised.boxes[0, :, 2:].unflatten(0, (500, 2))
    assert (sizes[:, 0] > -1e-6).all()
    crossed = sizes[:, 1] < 0
    assert 0.1 < crossed.float().mean() < 0.4
    reference = denoising.prepend(queries(1), noised).reference[0, :1000, 2:]
    eps = torch.tensor(1e-3 / 1.001)
    torch.testing.assert_close(
        reference.unflatten(0, (500, 2))[:, 1][crossed], eps.expand(int(crossed.sum()))
    )


@KINDS
@pytest.mark.parametrize("box", [(0.0, 1.0, 0.3, 0.3), (0.5, 0.5, 1.0, 1.0), (0.2, 0.2, 0.0, 0.0)])
def test_noise_stays_in_the_image(kind, box):
    denoising = part(kind, num_queries=500, num_groups=500, box_noise=3.0)
    noised = denoising.sample(one_box(box))
    if kind is Denoising:
        assert noised.boxes.min() >= 0 and noised.boxes.max() <= 1
    else:
        corners = cxcywh_to_xyxy(noised.boxes)
        assert corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
    if box[2] == 0:
        torch.testing.assert_close(noised.boxes, torch.tensor(box).expand_as(noised.boxes))
    reference = denoising.prepend(queries(1), noised).reference
    assert (reference > 0).all() and (reference < 1).all()


@pytest.mark.parametrize("label_noise", [0.0, 0.25, 1.0])
@KINDS
def test_labels_are_replaced_at_their_rate(kind, label_noise):
    count = 8000
    denoising = part(kind, num_queries=count, num_groups=2 * count, label_noise=label_noise)
    labels = denoising.sample(one_box(BOX, label=7)).labels[0]
    drawn_from = denoising.label_embedding.num_embeddings
    assert len(labels) == 2 * count
    assert drawn_from == CLASSES + (kind is Denoising)
    changed = (labels != 7).float().mean().item()
    assert changed == pytest.approx(label_noise * (1 - 1 / drawn_from), abs=0.015)
    if label_noise == 1.0:
        counts = torch.bincount(labels, minlength=drawn_from)
        assert len(counts) == drawn_from
        assert counts.min() > 0.7 * len(labels) / drawn_from
    if label_noise == 0.25 and kind is ContrastiveDenoising:
        for half in labels.view(-1, 2).T:  # positives and negatives alike
            assert (half != 7).float().mean().item() == pytest.approx(0.245, abs=0.02)


@KINDS
def test_noise_is_drawn_anew(kind):
    denoising, targets = part(kind), small.targets((3, 2))
    torch.manual_seed(1)
    first, second = denoising.sample(targets), denoising.sample(targets)
    assert not torch.equal(first.boxes, second.boxes)
    torch.manual_seed(1)
    again = denoising.sample(targets)
    assert torch.equal(first.boxes, again.boxes) and torch.equal(first.labels, again.labels)


@pytest.mark.parametrize(
    ("counts", "groups"), [((1,), 24), ((5, 2), 4), ((0, 0), 24), ((25,), 1), ((24, 0), 1)]
)
def test_contrastive_groups_fill_the_queries(counts, groups):
    noised = part(ContrastiveDenoising).sample(small.targets(counts))
    assert noised.num_groups == groups
    assert noised.labels.shape == (len(counts), 2 * groups * max(1, *counts))
    assert noised.valid.sum(1).tolist() == [2 * groups * count for count in counts]


def test_groups_of_slightly_noised_objects():
    noised = part(Denoising, num_groups=4).sample(small.targets((3, 0, 2)))
    assert noised.num_groups == 4 and noised.labels.shape == (3, 12)
    assert noised.valid[2].tolist() == [True, True, False] * 4
    assert not noised.valid[1].any()


@KINDS
def test_a_slot_of_every_group_answers_for_every_object(kind):
    """Without noise, what a slot holds is the object that it is matched to."""
    targets = small.targets((3, 0, 2))
    denoising = part(kind, label_noise=0.0, box_noise=0.0)
    noised = denoising.sample(targets)
    total = noised.labels.shape[1]
    found = match_slots(targets, total // noised.num_groups, noised.num_groups)
    assert len(found.image) == noised.num_groups * 5
    assert len(set(zip(found.image.tolist(), found.query.tolist(), strict=True))) == len(
        found.image
    )
    assert noised.valid[found.image, found.query].all()
    torch.testing.assert_close(noised.boxes[found.image, found.query], found.boxes)
    assert torch.equal(noised.labels[found.image, found.query], found.labels)
    size = total // noised.num_groups
    assert (found.query % size < 3).all(), "a negative slot answers for an object"
    for image, boxes in enumerate(targets.boxes):
        own = found.image == image
        for group in range(noised.num_groups):
            inside = own & (found.query // size == group)
            assert torch.equal(found.boxes[inside], boxes)
            assert found.target[inside].tolist() == list(range(len(boxes)))


@KINDS
def test_split_undoes_prepend(kind):
    targets = small.targets((3, 2))
    denoising = part(kind)
    noised = denoising.sample(targets)
    start = queries(2)
    joined = denoising.prepend(start, noised)
    total = joined.num_denoising
    assert total == noised.labels.shape[1]
    assert torch.equal(joined.content[:, total:], start.content)
    assert torch.equal(joined.reference[:, total:], start.reference)
    logits, boxes = torch.randn(2, total + 6, CLASSES), torch.rand(2, total + 6, 4)
    prediction = Prediction(logits, boxes, joined.valid)
    matching, denoised = denoising.split([prediction] * 2, noised, targets)
    assert len(matching) == len(denoised.predictions) == 2
    for each in matching:
        assert torch.equal(each.logits, logits[:, total:]) and each.valid.all()
        assert torch.equal(each.boxes, boxes[:, total:])
    for each in denoised.predictions:
        assert torch.equal(each.logits, logits[:, :total])
        assert torch.equal(each.boxes, boxes[:, :total])
        assert torch.equal(each.valid, noised.valid)
    assert denoised.num_groups == noised.num_groups


@KINDS
def test_what_used_and_unused_slots_hold(kind):
    denoising = small.randomize(part(kind, eps=1e-3))
    noised = denoising.sample(small.targets((3, 1)))
    joined = denoising.prepend(queries(2), noised)
    content = joined.content[:, : joined.num_denoising]
    reference = joined.reference[:, : joined.num_denoising]
    used, labels = noised.valid, noised.labels
    width = denoising.label_embedding.embedding_dim
    assert torch.equal(content[used][:, :width], denoising.label_embedding(labels)[used])
    torch.testing.assert_close(reference[used], inverse_sigmoid(noised.boxes[used], 1e-3).sigmoid())
    assert not content[~used].any()
    torch.testing.assert_close(reference[~used], torch.full_like(reference[~used], 0.5))


def test_the_last_channel_tells_noised_objects_from_anchors():
    denoising, anchors = part(Denoising), AnchorQueries(small.EMBED_DIM, 5)
    model = small.detector(small.PLAIN)
    start, _ = small.randomize(anchors)(small.features(model, SIZES), model.heads)
    noised = denoising.sample(small.targets((3, 1)))
    joined = denoising.prepend(start, noised)
    indicator = joined.content[..., -1]
    assert torch.equal(indicator[:, : joined.num_denoising], noised.valid.float())
    assert not indicator[:, joined.num_denoising :].any()
    contrastive = part(ContrastiveDenoising)
    assert contrastive.label_embedding.weight.shape == (CLASSES, small.EMBED_DIM)
    assert denoising.label_embedding.weight.shape == (CLASSES + 1, small.EMBED_DIM - 1)


@KINDS
@pytest.mark.parametrize("fillers", [False, True])
def test_unused_slots_are_valid_only_on_request(kind, fillers):
    targets, valid = small.targets((3, 1)), None
    if fillers:
        valid = torch.ones(2, 6, dtype=torch.bool)
        valid[1, 4:] = False
    shown = torch.ones(2, 6, dtype=torch.bool) if valid is None else valid
    for mask_unused in (True, False):
        denoising = part(kind, mask_unused=mask_unused)
        noised = denoising.sample(targets)
        joined = denoising.prepend(queries(2, valid=valid), noised)
        if not mask_unused and not fillers:
            assert joined.valid is None
            continue
        assert torch.equal(joined.valid[:, joined.num_denoising :], shown)
        slots = joined.valid[:, : joined.num_denoising]
        assert torch.equal(slots, noised.valid if mask_unused else torch.ones_like(slots))


@pytest.mark.parametrize("supervised", [True, False])
def test_seen_slots_may_be_left_out_of_the_losses(supervised):
    """DN-DETR's own code lets a group see its unused slots, and asks nothing of them."""
    targets = small.targets((3, 1))
    denoising = part(Denoising, mask_unused=False, supervise_unused=supervised)
    noised = denoising.sample(targets)
    joined = denoising.prepend(queries(2), noised)
    answers = Prediction(torch.zeros(*joined.content.shape[:2], 3), joined.reference, joined.valid)
    (matching,), output = denoising.split([answers], noised, targets)
    (found,) = output.predictions
    assert joined.valid is None and matching.valid is None
    assert found.valid is None if supervised else torch.equal(found.valid, noised.valid)


def denoised(model, counts, images) -> tuple[DenoisingOutput, torch.Tensor]:
    features = small.features(model, [SIZES[0]] * len(images), images)
    targets = small.targets(counts, images)
    with torch.no_grad():
        output = model.detect_features(features, targets).denoising
    return output, output.predictions[-1].logits[0, : max(counts)][: counts[0]]


@pytest.mark.parametrize("name", SYSTEMS)
def test_companions_are_not_seen_by_masked_slots(name):
    """An image with 2 objects, alone and with companions that have more of them."""
    model = small.fix_noise(small.detector(small.NAMED[name]).train())
    _, alone = denoised(model, (2,), (0,))
    _, beside = denoised(model, (2, 5), (0, 1))
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)
    released = small.fix_noise(small.detector(small.NAMED[name], mask_unused=False).train())
    _, alone = denoised(released, (2,), (0,))
    output, beside = denoised(released, (2, 5), (0, 1))
    assert not torch.allclose(beside, alone, atol=1e-5, rtol=1e-5)
    assert output.predictions[-1].valid is None or output.predictions[-1].valid.all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_matching_queries_do_not_see_noised_objects(name):
    model = small.detector(small.NAMED[name]).train()
    features, targets = small.features(model, SIZES), small.targets((4, 3))
    with torch.no_grad():
        noisy = model.detect_features(features, targets, record={"token_mass"})
        model.denoising = None
        plain = model.detect_features(features, targets, record={"token_mass"})
    assert noisy.denoising is not None and plain.denoising is None
    for ours, theirs in zip(noisy.decoder, plain.decoder, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(noisy.token_mass, plain.token_mass, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_noised_objects_are_for_training_only(name):
    model = small.detector(small.NAMED[name])
    features, targets = small.features(model, SIZES), small.targets((4, 3))
    with torch.no_grad():
        assert model.train().detect_features(features, targets).denoising is not None
        assert model.train().detect_features(features).denoising is None
        assert model.eval().detect_features(features, targets).denoising is None


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("mask_unused", [True, False])
def test_without_objects_the_label_embedding_has_a_gradient_of_zero(name, mask_unused):
    """Every process must give every parameter a gradient, whatever its images show."""
    model = small.detector(small.NAMED[name], mask_unused=mask_unused).train()
    losses = model(small.samples(SIZES, (0, 0)))
    sum(losses.values()).backward()
    gradient = model.denoising.label_embedding.weight.grad
    assert gradient is not None and not gradient.any()
    for term in ("box_l1", "giou"):
        assert losses[f"denoising.0/{term}"] == 0
    assert (losses["denoising.0/focal"] == 0) == mask_unused
    model.zero_grad()
    sum(model(small.samples(SIZES, (0, 2))).values()).backward()
    assert model.denoising.label_embedding.weight.grad.any()


def criterion() -> SetCriterion:
    return SetCriterion(
        HungarianMatcher(), [FocalLoss(weight=1.0), BoxL1Loss(weight=3.0), GIoULoss(weight=2.0)]
    )


def test_denoising_losses_are_means_over_groups():
    model = small.detector(small.NAMED["dino"]).train()
    features, targets = small.features(model, SIZES), small.targets((4, 3))
    with torch.no_grad():
        output = model.detect_features(features, targets)
    found = output.denoising
    losses = criterion()(output, targets)
    for layer, prediction in enumerate(found.predictions):
        pairs = found.matching
        distance = prediction.boxes[pairs.image, pairs.query] - pairs.boxes
        expected = 3.0 * distance.abs().sum() / (7 * found.num_groups)
        torch.testing.assert_close(losses[f"denoising.{layer}/box_l1"], expected)

    def twice(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, x), dim=1)

    doubled = DenoisingOutput(
        tuple(
            Prediction(twice(each.logits), twice(each.boxes), twice(each.valid))
            for each in found.predictions
        ),
        match_slots(
            targets, found.predictions[0].logits.shape[1] // found.num_groups, 2 * found.num_groups
        ),
        2 * found.num_groups,
    )
    for name, loss in criterion()(replace(output, denoising=doubled), targets).items():
        torch.testing.assert_close(loss, losses[name])


def test_negatives_and_only_used_slots_are_told_that_they_show_nothing():
    """One image, logits of zero: 2 positives, 2 negatives, and 4 slots that are not used."""
    targets = small.targets((2, 4))
    denoising = part(ContrastiveDenoising, num_queries=4, num_classes=3)
    noised = denoising.sample(targets)
    assert noised.num_groups == 1
    logits = torch.zeros(2, 8, 3)
    _, found = denoising.split(
        [Prediction(logits, torch.rand(2, 8, 4), noised.valid)], noised, targets
    )
    used = small.loss_of(FocalLoss(weight=1.0), found.predictions[0], found.matching, 1.0)
    log2 = torch.log(torch.tensor(2.0))
    positive, negative = 0.25 * 0.25 * log2, 0.75 * 0.25 * log2
    slots, objects = 12, 6
    expected = objects * positive + (3 * slots - objects) * negative
    torch.testing.assert_close(used, expected)
    everything = replace(found.predictions[0], valid=None)
    everything = small.loss_of(FocalLoss(weight=1.0), everything, found.matching, 1.0)
    torch.testing.assert_close(everything, expected + 3 * 4 * negative)
