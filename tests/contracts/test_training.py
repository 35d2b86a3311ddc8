"""Every combination of parts trains: a finite gradient reaches every parameter."""

from __future__ import annotations

import re

import pytest
import torch

from tests.modeling import small

SIZES = ((96, 128), (128, 70))
# A bias in front of a norm that takes it away again, or of a softmax over tokens: its gradient is
# zero but for rounding.
CANCELLED = re.compile(r"neck\.(extra_)?convs\.\d\.0\.bias|encoder\.pool\.share\.bias")
# Queries that all start from the content 0 read one value, whomever they attend to.
_PROJECTIONS = r"\.in_proj_weight|\.(query|key)_.+|\.value\.weight"
ALIKE = re.compile(rf"decoder\.layers\.0\.self_attention({_PROJECTIONS}|_norm\.weight)")


COVER = pytest.mark.parametrize("combination", small.pairwise_cover(), ids=str)


def train_step(model, batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # denoising draws
    losses = model.train()(batch)
    for name, loss in losses.items():
        assert loss.ndim == 0 and loss.isfinite(), (name, loss)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert parameter.grad.isfinite().all(), name
    return losses


@COVER
def test_a_gradient_reaches_every_parameter(combination):
    check_gradients(combination)


@pytest.mark.slow
@pytest.mark.parametrize("combination", small.some_combinations(300), ids=str)
def test_a_gradient_reaches_every_parameter_of_any_combination(combination):
    check_gradients(combination)


def check_gradients(combination: small.Combination) -> None:
    model = small.detector(combination)
    losses = train_step(model, small.samples(SIZES, (4, 3)))
    silent = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.grad.any() and not CANCELLED.fullmatch(name)
    ]
    if combination.queries == "PositionQueries":
        silent = [name for name in silent if not ALIKE.fullmatch(name)]
    assert not silent
    layers = small.ARGUMENTS["num_layers"]
    stages = {f"decoder.{layer}" for layer in range(layers)}
    stages |= {f"encoder.{layer}" for layer in range(layers - 1) if combination.aux}
    stages |= {f"denoising.{layer}" for layer in range(layers) if combination.denoising}
    stages |= {"proposals"} if model.query_initializer.needs_proposals else set()
    supervised = combination.term or (model.scorer is not None and model.scorer.needs_head)
    stages |= {"scorer"} if supervised else set()
    assert {name.split("/")[0] for name in losses} == stages


@COVER
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param((0, 0), id="no object"),
        pytest.param((0, 2), id="an image without objects"),
        pytest.param((30, 1), id="more objects than queries"),
    ],
)
def test_unusual_numbers_of_objects(combination, counts):
    train_step(small.detector(combination), small.samples(SIZES, counts))


@COVER
def test_fewer_tokens_than_queries(combination):
    batch = small.samples(((8, 8), (20, 40)), (2, 9))
    train_step(small.detector(combination), batch)


@pytest.mark.parametrize("name", small.NAMED)
@pytest.mark.parametrize("box_noise", [0.4, 20.0], ids=["", "corners cross"])
def test_boxes_of_no_size(name, box_noise):
    batch = small.samples(SIZES, (4, 3))
    boxes = batch[0]["instances"].gt_boxes.tensor
    boxes[:2, 2:] = boxes[:2, :2]
    boxes[2, 2] = boxes[2, 0]
    train_step(small.detector(small.NAMED[name], box_noise=box_noise), batch)


@pytest.mark.parametrize("name", small.NAMED)
def test_boxes_at_the_border_and_of_the_whole_image(name):
    batch = small.samples(SIZES, (4, 3))
    boxes = batch[0]["instances"].gt_boxes.tensor
    height, width = SIZES[0]
    boxes[0] = torch.tensor([0.0, 0.0, width, height])
    boxes[1] = torch.tensor([width, height, width, height])
    boxes[2] = torch.tensor([0.0, 0.0, 0.0, height])
    train_step(small.detector(small.NAMED[name]), batch)


def test_objects_beyond_the_queries_are_left_out_not_the_queries():
    model = small.detector(small.PLAIN).train()
    batch = small.samples(SIZES[:1], (30,))
    prepared = model.preprocess(batch)
    output = model.detect(prepared.images, prepared.image_sizes, prepared.targets)
    matching = model.criterion.matcher(output.decoder[-1], prepared.targets)
    assert matching.query.sort().values.tolist() == list(range(small.ARGUMENTS["num_queries"]))


@pytest.mark.parametrize("label", [-1, small.NUM_CLASSES])
def test_labels_out_of_range_are_refused(label):
    batch = small.samples(SIZES, (4, 3))
    batch[1]["instances"].gt_classes[0] = label
    with pytest.raises(ValueError, match=rf"gt_classes must be in \[0, 3\).*{label}.*image 1.*"):
        small.detector(small.PLAIN).train()(batch)


def test_training_needs_objects():
    batch = small.samples(SIZES, (4, 3))
    del batch[1]["instances"]
    with pytest.raises(ValueError, match="must have 'instances' in training"):
        small.detector(small.PLAIN).train()(batch)


@COVER
def test_training_is_deterministic(combination):
    batch = small.samples(SIZES, (4, 3))
    first, second = (small.detector(combination) for _ in range(2))
    one, other = train_step(first, batch), train_step(second, batch)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


@COVER
def test_state_dict_round_trip(combination):
    batch = small.samples(SIZES, (4, 3))
    model, other = small.detector(combination).eval(), small.detector(combination, seed=1).eval()
    state = model.state_dict()
    storages = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
    assert len(set(storages)) == len(storages), "a tensor is stored under two keys"
    other.load_state_dict(state)
    with torch.no_grad():
        results = [each(batch)[1]["instances"] for each in (model, other)]
    for field in ("scores", "pred_classes"):
        assert torch.equal(results[0].get(field), results[1].get(field))
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)


def test_targets_and_samples_are_not_changed():
    model = small.detector(small.NAMED["deformable_two_stage"])
    batch, untouched = (small.samples(SIZES, (4, 3)) for _ in range(2))
    train_step(model, batch)
    for sample, before in zip(batch, untouched, strict=True):
        assert sample.keys() == before.keys()
        assert torch.equal(sample["image"], before["image"])
        assert torch.equal(sample["instances"].gt_boxes.tensor, before["instances"].gt_boxes.tensor)
        assert torch.equal(sample["instances"].gt_classes, before["instances"].gt_classes)
