"""The rim of the detector: samples to tensors, predictions to detections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.detector import top_detections
from sparsedet.modeling.stages import Prediction
from sparsedet.structures import cxcywh_to_xyxy, xyxy_to_cxcywh
from tests.modeling import small

SIZES = ((64, 96), (128, 70))


@pytest.fixture
def model():
    return small.detector(small.PLAIN).eval()


def test_preprocess_normalizes_and_pads(model):
    batch = small.samples(SIZES, (2, 0))
    prepared = model.preprocess(batch)
    assert prepared.image_sizes == SIZES
    assert prepared.images.shape == (2, 3, 128, 96)
    assert not prepared.images[0, :, 64:].any()
    assert not prepared.images[1, :, :, 70:].any()
    red = (batch[0]["image"][0].float() - 123.675) / 58.395
    torch.testing.assert_close(prepared.images[0, 0, :64], red)
    boxes = batch[0]["instances"].gt_boxes.tensor
    expected = xyxy_to_cxcywh(boxes) / torch.tensor([96, 64, 96, 64])
    torch.testing.assert_close(prepared.targets.boxes[0], expected)
    assert prepared.targets.counts == (2, 0)
    del batch[0]["instances"]
    assert model.preprocess(batch).targets is None


def test_objects_come_back_where_they_were(model):
    """The ground truth as prediction, in the original image at twice the size."""
    batch = small.samples(SIZES, (3, 3))
    prepared = model.preprocess(batch)
    boxes = torch.stack(prepared.targets.boxes)
    labels = torch.stack(prepared.targets.labels)
    logits = torch.full((2, 3, small.NUM_CLASSES), -20.0)
    logits.scatter_(2, labels[..., None], torch.tensor([3.0, 2.0, 1.0])[:, None].expand(2, 3, 1))
    with torch.no_grad():
        output = model.detect(prepared.images, prepared.image_sizes)
    output = replace(output, decoder=(Prediction(logits, boxes),))
    for sample, result in zip(batch, model.postprocess(output, batch), strict=True):
        found = result["instances"][:3]
        assert found.pred_classes.tolist() == sample["instances"].gt_classes.tolist()
        expected = sample["instances"].gt_boxes.tensor * 2
        torch.testing.assert_close(found.pred_boxes.tensor, expected, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())


def test_size_of_the_result_defaults_to_the_image(model):
    batch = small.samples(SIZES[:1], (1,))
    for key in ("height", "width"):
        del batch[0][key]
    with torch.no_grad():
        assert model(batch)[0]["instances"].image_size == SIZES[0]


def test_boxes_are_clipped_to_the_image(model):
    batch = small.samples(SIZES[:1], (1,))
    with torch.no_grad():
        output = model.detect(model.preprocess(batch).images, SIZES[:1])
    outside = Prediction(torch.zeros(1, 1, 3), torch.tensor([[[0.9, 0.1, 0.6, 0.6]]]))
    found = model.postprocess(replace(output, decoder=(outside,)), batch)[0]["instances"]
    expected = torch.tensor([0.6 * 192, 0.0, 192.0, 0.4 * 128])
    torch.testing.assert_close(found.pred_boxes.tensor[0], expected)


def test_fillers_never_come_out(model):
    valid = torch.tensor([[True, False, True]])
    logits = torch.tensor([[[-9.0, -9.0, -9.0], [9.0, 9.0, 9.0], [-9.0, 1.0, -9.0]]])
    prediction = Prediction(logits, torch.rand(1, 3, 4), valid)
    scores, labels, boxes = top_detections(prediction, 9)
    assert (scores >= 0).sum() == 6
    torch.testing.assert_close(scores[0, 0], torch.tensor(1.0).sigmoid())
    assert labels[0, 0] == 1
    assert torch.equal(boxes[0, 0], prediction.boxes[0, 2])
    batch = small.samples(SIZES[:1], (1,))
    with torch.no_grad():
        output = model.detect(model.preprocess(batch).images, SIZES[:1])
    found = model.postprocess(replace(output, decoder=(prediction,)), batch)[0]["instances"]
    assert len(found) == 6
    filler = cxcywh_to_xyxy(prediction.boxes[0, 1])
    assert not (found.pred_boxes.tensor == filler).all(-1).any()


def test_a_query_by_softmax_gives_its_best_class_alone():
    logits = torch.tensor([[[3.0, 2.9, 0.0, 0.0], [0.0, 1.0, 0.0, 5.0], [9.0, 0.0, 0.0, 0.0]]])
    valid = torch.tensor([[True, True, False]])
    prediction = Prediction(logits, torch.rand(1, 3, 4), valid, softmax=True)
    scores, labels, boxes = top_detections(prediction, 9)
    shares = logits[0].softmax(-1)
    torch.testing.assert_close(scores[0], torch.tensor([shares[0, 0], shares[1, 1], -1.0]))
    assert labels[0, :2].tolist() == [0, 1]
    assert torch.equal(boxes[0], prediction.boxes[0])
    assert top_detections(prediction, 1)[1].tolist() == [[0]]


def test_a_detector_without_an_embedding_of_levels():
    arguments = small.parts(small.PLAIN)
    plain = TokenSparseDetector(**arguments, level_embed=False)
    assert "level_embed" not in plain.state_dict()
    features = small.features(plain, SIZES)
    positions = plain.position_embedding(features.valid_sizes, features.spatial_shapes)
    assert torch.equal(features.pos, torch.cat(positions, dim=1))
    plain.train()(small.samples(SIZES, (1, 1)))


def test_at_most_max_detections(model):
    model.max_detections = 7
    with torch.no_grad():
        found = model(small.samples(SIZES, (1, 1)))
    assert [len(each["instances"]) for each in found] == [7, 7]


def test_images_smaller_than_the_queries_give_fewer_detections():
    model = small.detector(small.Combination()).eval()
    with torch.no_grad():
        small_image, large_image = model(small.samples(((8, 8), (128, 128)), (1, 1)))
    assert len(small_image["instances"]) == 4 * small.NUM_CLASSES
    assert len(large_image["instances"]) == 20 * small.NUM_CLASSES


def test_positions_are_those_of_the_image_plus_the_level(model):
    alone = small.features(model, SIZES[:1])
    levels = alone.split_levels(alone.pos)
    for level, (pos, size) in enumerate(zip(levels, alone.spatial_shapes, strict=True)):
        (expected,) = model.position_embedding(torch.tensor([[size]]).float(), [size])
        torch.testing.assert_close(pos, expected + model.level_embed[level])
    padded = small.features(model, SIZES)
    torch.testing.assert_close(padded.pos[0, ~padded.padding_mask[0]], alone.pos[0])


@pytest.mark.parametrize(
    ("combination", "biases"),
    [
        (small.PLAIN, [-2.0]),
        (small.Combination(queries="LearnedQueries", refine=False), [-2.0, -2.0]),
        (small.Combination(queries="LearnedQueries"), [-2.0, 0.0]),
        (small.Combination(queries="LearnedQueries", shared=True), [-2.0]),
        (small.Combination(queries="TwoStageQueries"), [0.0, 0.0]),
        (small.Combination(), [0.0, 0.0]),
        (small.Combination(queries="AnchorQueries"), [0.0, 0.0]),
        (small.NAMED["dino"], [0.0, 0.0]),
    ],
    ids=str,
)
def test_boxes_relative_to_points_start_small(combination, biases):
    model = TokenSparseDetector(**small.parts(combination))
    heads = list(model.heads.decoder_heads)
    assert [head.box_embed.layers[-1].bias[2].item() for head in heads] == biases
    for head in [*heads, *([model.heads.proposal_head] if model.heads.proposal_head else [])]:
        assert not head.box_embed.layers[-1].weight.any()
        assert not head.box_embed.layers[-1].bias[:2].any()
        assert head.class_embed.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)
