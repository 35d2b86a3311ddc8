"""Boxes move with the pixels, sizes follow DETR's rules, chance comes from the given source."""

import random
from collections import Counter

import pytest
import torch
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image

from sparsedet.data import (
    AerialAugmentation,
    DETRAugmentation,
    PhotographAugmentation,
    RandomCrop,
    RandomHorizontalFlip,
    RandomQuarterTurn,
    ResizeShortSide,
)
from sparsedet.data.mapper import DetectionMapper
from sparsedet.data.transforms import call_v2, resized_size


def scene():
    """A white rectangle on black, and its box."""
    return box_on_black([10.0, 20.0, 50.0, 40.0], (60, 90))


def box_on_black(box, size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    x0, y0, x1, y1 = map(int, box)
    image[:, y0:y1, x0:x1] = 255
    return Image(image), boxes_of([box], size)


def boxes_of(rows, size=(60, 90)):
    rows = torch.tensor(rows).reshape(-1, 4)
    return BoundingBoxes(rows, format="XYXY", canvas_size=size)


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
        RandomQuarterTurn(),
        PhotographAugmentation([64, 80, 96], 140, color_probability=0.0),
        AerialAugmentation([64, 80, 96], 140, color_probability=0.0),
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


def test_a_crop_is_cut_out_of_the_smaller_image():
    """It shows a third of each side or more, however large the picture is."""
    across = torch.linspace(0, 255, 600).to(torch.uint8).expand(3, 400, 600)
    augmentation = DETRAugmentation(
        [80], 200, crop_probability=1.0, crop_short_sides=[40], crop_size=(20, 30)
    )
    for seed in range(20):
        image, _ = augmentation(
            Image(across.contiguous()), boxes_of([], (400, 600)), random.Random(seed)
        )
        assert image.max() - image.min() > 255 * 0.8 * 20 / 60


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
        (lambda: ResizeShortSide(None, 10), "short_sides"),
        (lambda: ResizeShortSide("x", 10), "short_sides"),
        (lambda: ResizeShortSide([5, 5.5], 10), "short_sides"),
        (lambda: ResizeShortSide([5], None), "max_size"),
        (lambda: DetectionMapper("x"), "DetectionMapper.transforms must be a list of transforms"),
        (lambda: DetectionMapper([None]), "DetectionMapper.transforms"),
        (lambda: RandomHorizontalFlip(1.5), "probability"),
        (lambda: RandomCrop(9, 5), "min_size"),
        (lambda: DETRAugmentation([5], 10, crop_probability=-1), "crop_probability"),
        (lambda: PhotographAugmentation([5], 10, color_probability=2), "color_probability"),
    ],
)
def test_refusals(build, name):
    with pytest.raises(ValueError, match=name):
        build()


# --- presets


def test_all_ways_to_lay_a_picture_down_are_as_likely():
    augmentation = AerialAugmentation([60], 90, crop_probability=0.0, color_probability=0.0)
    image, boxes = box_on_black([5.0, 20.0, 35.0, 30.0], (60, 60))
    rng, seen = random.Random(0), Counter()
    for _ in range(400):
        turned = augmentation(image, boxes, rng)
        seen[tuple(turned[1].as_subclass(torch.Tensor)[0].tolist())] += 1
        assert bright_box(turned[0]) == turned[1].tolist()[0]
    assert len(seen) == 8 and min(seen.values()) > 30
    turned = {tuple(RandomQuarterTurn()(*scene(), rng)[0].shape[1:]) for _ in range(20)}
    assert turned == {(60, 90), (90, 60)}


def test_colors_change_with_their_probability_and_boxes_stay():
    augmentation = PhotographAugmentation([60], 90, flip_probability=0.0, crop_probability=0.0)
    image, boxes = scene()
    image[1] += 40
    rng, changed = random.Random(0), 0
    for _ in range(200):
        result, moved = augmentation(image, boxes, rng)
        assert torch.equal(moved, boxes)
        changed += not torch.equal(result, image)
    assert 70 < changed < 130


@pytest.mark.parametrize("build", [PhotographAugmentation, AerialAugmentation])
def test_presets_draw_from_the_given_source_alone(build):
    augmentation = build([64, 80, 96], 140, color_probability=1.0)
    torch.manual_seed(1)
    first = augmentation(*scene(), random.Random(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = augmentation(*scene(), random.Random(5))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(state, torch.get_rng_state())


# --- torchvision's


def call(transform, seed=0, boxes=None):
    image, own = scene()
    boxes = own if boxes is None else boxes
    classes = torch.arange(len(boxes)) + 3
    return call_v2(transform, (image, boxes, classes), random.Random(seed))


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomHorizontalFlip(1.0),
        v2.RandomRotation((90, 90), expand=True),
        v2.RandomCrop(45),
        v2.RandomIoUCrop(),
        v2.RandomZoomOut(p=1.0),
        v2.RandomResizedCrop((50, 70)),
        v2.Compose([v2.RandomVerticalFlip(1.0), v2.Resize(80)]),
        v2.RandomApply([v2.RandomCrop(45)], p=1.0),
        v2.RandomPhotometricDistort(p=1.0),
    ],
    ids=lambda transform: type(transform).__name__,
)
@pytest.mark.parametrize("seed", range(4))
def test_boxes_follow_the_pixels_of_torchvision_s_transforms(transform, seed):
    image, boxes, classes = call(transform, seed)
    assert len(boxes) == len(classes) <= 1
    assert boxes.canvas_size == tuple(image.shape[1:])
    if len(boxes):
        box = boxes.as_subclass(torch.Tensor)[0]
        if (box[2:] > box[:2] + 2).all():
            assert bright_box(image / image.max() * 255) == pytest.approx(box.tolist(), abs=1.0)
    else:
        assert (image > 127).sum() == 0


def test_a_turned_box_holds_the_turned_pixels():
    image, boxes, _ = call(v2.RandomRotation((20, 20)))
    x0, y0, x1, y1 = boxes.as_subclass(torch.Tensor)[0].tolist()
    left, top, right, bottom = bright_box(image)
    assert x0 - 1 <= left < right <= x1 + 1 and y0 - 1 <= top < bottom <= y1 + 1
    assert (x1 - x0) * (y1 - y0) > 800  # that of the box before


def test_boxes_without_a_rest_go_with_their_classes():
    none = [5.0, 5, 5, 9]
    boxes = boxes_of([[0.0, 0, 10, 10], [80, 50, 90, 60], none])
    _, kept, classes = call(v2.CenterCrop((60, 80)), boxes=boxes)
    assert kept.tolist() == [[0, 0, 5, 10], [75, 50, 80, 60]]
    assert classes.tolist() == [3, 4]
    _, kept, classes = call(v2.CenterCrop((20, 20)), boxes=boxes)
    assert kept.shape == (0, 4) and classes.shape == (0,)
    # one without a size does not come back by a turn
    assert len(call(v2.RandomRotation((45, 45)), boxes=boxes_of([none]))[1]) == 0
    for transform in (v2.RandomIoUCrop(), v2.RandomPerspective(p=1.0), v2.RandomRotation(30)):
        assert call(transform, boxes=boxes_of([]))[1].shape == (0, 4)


def test_transforms_that_leave_out_boxes_or_change_their_format():
    boxes = boxes_of([[0.0, 0, 10, 10], [10, 20, 50, 40]])
    _, kept, classes = call(v2.SanitizeBoundingBoxes(min_size=15), boxes=boxes)
    assert kept.tolist() == [[10, 20, 50, 40]] and classes.tolist() == [4]
    _, kept, _ = call(v2.ConvertBoundingBoxFormat("CXCYWH"), boxes=boxes)
    assert kept.tolist() == boxes.tolist()


@pytest.mark.parametrize(
    "transform", [v2.RandomCrop(20), v2.ColorJitter(0.5, 0.5), v2.RandomRotation(30)]
)
def test_torchvision_s_transforms_draw_from_the_given_source_alone(transform):
    torch.manual_seed(1)
    first = call(transform, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = call(transform, seed=5)
    assert torch.equal(first[0], second[0])
    others = [call(transform, seed=seed)[0] for seed in range(6, 12)]
    assert not all(torch.equal(first[0], other) for other in others)
    assert torch.equal(state, torch.get_rng_state())


def test_a_smaller_image_is_the_mean_of_what_it_covers():
    """Without antialiasing, a fine pattern would become stripes or one of its two values."""
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[..., ::4] = 200  # beside the columns that a new pixel lies between
    image, _ = ResizeShortSide(16, 100)(Image(stripes), boxes_of([], (64, 64)), random.Random(0))
    inside = image[:, 2:-2, 2:-2].float()
    assert (inside - 50).abs().max() <= 6


def test_a_crop_may_lie_anywhere():
    image = Image(torch.arange(40, dtype=torch.uint8).expand(3, 40, 40).contiguous())
    columns, rows, crop = set(), set(), RandomCrop(10, 10)
    for seed in range(400):
        cut, _ = crop(image, boxes_of([], (40, 40)), random.Random(seed))
        columns.add(int(cut[0, 0, 0]))
        turned = image.as_subclass(torch.Tensor).transpose(1, 2).contiguous()
        cut, _ = crop(Image(turned), boxes_of([], (40, 40)), random.Random(seed))
        rows.add(int(cut[0, 0, 0]))
    assert columns == rows == set(range(31))


def test_colors_of_photographs_change_in_all_ways():
    """Brightness, contrast, saturation and hue: a plain color tells the last two apart."""
    augmentation = PhotographAugmentation(
        [16], 16, flip_probability=0, crop_probability=0, color_probability=1.0, color_strength=0.4
    )
    plain = torch.tensor([180, 90, 60], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
    found = []
    for seed in range(40):
        image, _ = augmentation(
            Image(plain.contiguous()), boxes_of([], (16, 16)), random.Random(seed)
        )
        red, green, blue = image[:, 8, 8].float().tolist()
        found.append((red + green + blue, red - blue, (green - blue) / (red - blue)))
    brightness, saturation, hue = (
        torch.tensor(column).std() for column in zip(*found, strict=True)
    )
    assert brightness > 20
    assert saturation > 10
    assert 0.02 < hue < 0.2  # of rounding alone a fifth of that; as strong as the others, 0.4
