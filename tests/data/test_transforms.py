"""Boxes move with the pixels, sizes follow DETR's rules, chance comes from the given source."""

import random

import pytest
import torch
from torchvision.tv_tensors import BoundingBoxes, Image

from sparsedet.data import (
    DETRAugmentation,
    RandomCrop,
    RandomHorizontalFlip,
    ResizeShortSide,
)
from sparsedet.data.transforms import resized_size


def scene(height=60, width=90):
    """A white rectangle on black, and its box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, 20:40, 10:50] = 255
    boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0]])
    return Image(image), BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))


def bright_box(image):
    rows, columns = torch.nonzero(image[0] > 127, as_tuple=True)
    return [
        columns.min().item(),
        rows.min().item(),
        columns.max().item() + 1,
        rows.max().item() + 1,
    ]


@pytest.mark.parametrize(
    "transform",
    [
        RandomHorizontalFlip(1.0),
        ResizeShortSide(97, 400),
        ResizeShortSide(30, 400),
        RandomCrop(30, 55),
        DETRAugmentation([64, 80, 96], 140, crop_probability=1.0),
    ],
    ids=lambda transform: type(transform).__name__,
)
@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_the_pixels(transform, seed):
    image, boxes = transform(*scene(), random.Random(seed))
    box = boxes.as_subclass(torch.Tensor)[0]
    if (box[2:] > box[:2] + 2).all():
        assert bright_box(image) == pytest.approx(box.tolist(), abs=1.0)
    else:
        assert (image > 127).sum() <= 3 * 2 * max(image.shape)


def test_flip_by_hand_and_its_probability():
    _, boxes = RandomHorizontalFlip(1.0)(*scene(), random.Random(0))
    assert boxes.tolist() == [[40, 20, 80, 40]]
    _, boxes = RandomHorizontalFlip(0.0)(*scene(), random.Random(0))
    assert boxes.tolist() == scene()[1].tolist()
    rng, flip = random.Random(0), RandomHorizontalFlip(0.25)
    flipped = sum(flip(*scene(), rng)[1].tolist() != boxes.tolist() for _ in range(400))
    assert 70 < flipped < 130


@pytest.mark.parametrize(
    ("size", "short_side", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((480, 1000), 800, 1333, (640, 1333)),
        ((16, 5000), 800, 1333, (4, 1333)),
        ((1, 1), 800, 1333, (800, 800)),
        ((1, 9000), 800, 1333, (1, 1333)),
    ],
)
def test_resized_size(size, short_side, max_size, expected):
    assert resized_size(*size, short_side, max_size) == expected


def test_resize_draws_all_candidates_and_tells_its_size_only_when_fixed():
    resize, rng = ResizeShortSide([30, 40, 50], 400), random.Random(0)
    sides = {min(resize(*scene(), rng)[0].shape[1:]) for _ in range(60)}
    assert sides == {30, 40, 50}
    assert resize.output_size(60, 90) is None
    assert ResizeShortSide(30, 400).output_size(60, 90) == (30, 45)


def test_crop_sizes_are_in_range_and_small_images_stay_whole():
    crop, rng = RandomCrop(30, 55), random.Random(0)
    shapes = [tuple(crop(*scene(), rng)[0].shape[1:]) for _ in range(200)]
    heights, widths = {h for h, _ in shapes}, {w for _, w in shapes}
    assert min(heights) == min(widths) == 30
    assert max(heights) == max(widths) == 55
    assert len({h - w for h, w in shapes}) > 20  # drawn each on its own
    assert RandomCrop(200, 300)(*scene(), rng)[0].shape[1:] == (60, 90)


def test_detr_augmentation_has_detr_s_numbers():
    augmentation = DETRAugmentation([480, 512, 800], 1333)
    assert augmentation.resize_before_crop.short_sides == [400, 500, 600]
    assert (augmentation.crop.min_size, augmentation.crop.max_size) == (384, 600)


def test_detr_augmentation_takes_both_branches_and_bounds_the_result():
    augmentation, rng = DETRAugmentation([64, 80], 100), random.Random(0)
    shapes = [tuple(augmentation(*scene(), rng)[0].shape[1:]) for _ in range(200)]
    assert all(max(shape) <= 100 and min(shape) <= 80 for shape in shapes)
    whole = sum(abs(w / h - 1.5) < 0.03 for h, w in shapes)
    assert 70 < whole < 140


def test_extreme_panorama_stays_small():
    image = Image(torch.zeros(3, 16, 5000, dtype=torch.uint8))
    boxes = BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(16, 5000))
    for seed in range(6):
        result, _ = DETRAugmentation([480, 800], 1333)(image, boxes, random.Random(seed))
        assert max(result.shape[1:]) <= 1333


def test_same_source_same_result():
    augmentation = DETRAugmentation([64, 80, 96], 140)
    torch.manual_seed(1)
    first = augmentation(*scene(), random.Random(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = augmentation(*scene(), random.Random(5))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: ResizeShortSide([], 10), "short_sides"),
        (lambda: ResizeShortSide([0], 10), "short_sides"),
        (lambda: ResizeShortSide([5], 0), "max_size"),
        (lambda: RandomHorizontalFlip(1.5), "probability"),
        (lambda: RandomCrop(9, 5), "min_size"),
        (lambda: DETRAugmentation([5], 10, crop_probability=-1), "crop_probability"),
    ],
)
def test_refusals(build, name):
    with pytest.raises(ValueError, match=name):
        build()
