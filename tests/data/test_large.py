"""Pictures above Pillow's limit are read smaller where that is all that is needed of them."""

import random

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torchvision.transforms import v2

from sparsedet.data import DetectionMapper, images, mapper
from sparsedet.data.images import inspect_image, read_image, upright_pixels
from sparsedet.data.transforms import (
    AerialAugmentation,
    DETRAugmentation,
    PhotographAugmentation,
    RandomCrop,
    RandomHorizontalFlip,
    RandomQuarterTurn,
    ResizeShortSide,
)

HEIGHT, WIDTH = 331, 203


@pytest.fixture(autouse=True)
def low_limit(monkeypatch):
    for module in (images, mapper):
        monkeypatch.setattr(module, "LARGE_PIXELS", 50_000)
    monkeypatch.setattr(images, "_STRIP", 5000)


def smooth(height=HEIGHT, width=WIDTH):
    small = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def means(values, times):
    """Of blocks of times x times pixels; those at the border are smaller."""
    rows, columns = (np.arange(0, length, times) for length in values.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(values.astype(float), rows, 0), columns, 1)
    ones = np.ones(values.shape[:2])
    return sums / np.add.reduceat(np.add.reduceat(ones, rows, 0), columns, 1)[..., None]


@pytest.mark.parametrize("times", [2, 4, 8])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("P", "png"), ("L", "tif")],
)
def test_each_pixel_is_the_mean_of_those_it_stands_for(tmp_path, times, mode, suffix):
    path = str(tmp_path / f"a.{suffix}")
    smooth().convert(mode).save(path, **({"quality": 95} if suffix == "jpg" else {}))
    whole = read_image(path).permute(1, 2, 0).numpy()
    found = read_image(path, (WIDTH, HEIGHT), shrink=lambda *size: times)
    expected = means(whole, times)
    assert found.shape == (3, *expected.shape[:2])
    tolerance = 4 if suffix == "jpg" else 0.6  # rounded; a JPEG's border blocks are filled up
    assert np.abs(found.permute(1, 2, 0).numpy() - expected)[:-1, :-1].max() <= tolerance


def test_values_of_16_bits_are_read_smaller(tmp_path):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = read_image(str(tmp_path / "a.png"), shrink=lambda *size: 4)
    assert np.abs(found[0].numpy() - means(values[..., None] / 257, 4)[..., 0]).max() <= 1


def test_a_turned_picture_is_turned_after_it(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    smooth().save(tmp_path / "a.jpg", quality=95, exif=exif)
    asked = []
    found, size = upright_pixels(str(tmp_path / "a.jpg"), shrink=lambda *s: asked.append(s) or 2)
    assert asked == [size] == [(WIDTH, HEIGHT)]
    stored = read_image(str(tmp_path / "a.jpg"), shrink=lambda *size: 2)
    assert (found == torch.rot90(stored, -1, (1, 2))).all()


def test_a_jpeg_is_decoded_smaller_and_checked_so(tmp_path, monkeypatch):
    smooth().save(tmp_path / "a.jpg")
    decoded = []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "load", lambda self: decoded.append(self.size) or load(self)
    )
    read_image(str(tmp_path / "a.jpg"), shrink=lambda *size: 4)
    inspect_image(str(tmp_path / "a.jpg"), decode=True)
    assert decoded[0] == (51, 83)
    assert (26, 42) in decoded
    assert (WIDTH, HEIGHT) not in decoded
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-800])
    assert "truncated" in str(inspect_image(str(tmp_path / "a.jpg"), decode=True))


@pytest.mark.parametrize(
    ("transforms", "times"),
    [
        ([ResizeShortSide(20, 1000)], 4),  # 203 / 20 is more than 8, half of it more than 4
        ([ResizeShortSide([12, 20], 1000)], 4),
        ([ResizeShortSide(12, 1000)], 8),
        ([ResizeShortSide(200, 41)], 4),
        ([ResizeShortSide(60, 1000)], 1),  # less than 4, so no half is to spare
        ([RandomHorizontalFlip(), RandomQuarterTurn(), ResizeShortSide(50, 1000)], 2),
        ([RandomCrop(10, 20), ResizeShortSide(12, 1000)], 1),
        ([v2.RandomGrayscale(), ResizeShortSide(12, 1000)], 1),
        ([lambda image, boxes, rng: (image, boxes)], 1),
        ([RandomHorizontalFlip()], 1),
        ([], 1),
        ([DETRAugmentation([20], 1000)], 4),
        ([DETRAugmentation([20], 1000, crop_short_sides=[50], crop_size=(9, 9))], 2),
        ([PhotographAugmentation([20], 1000)], 4),
        ([AerialAugmentation([20], 1000)], 4),
    ],
)
def test_how_much_is_needed(transforms, times):
    assert DetectionMapper(transforms).shrink(HEIGHT, WIDTH) == times
    assert DetectionMapper(transforms).shrink(WIDTH, HEIGHT) == times
    assert DetectionMapper(transforms).shrink(250, 200) == 1  # not above the limit


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "transform",
    [
        ResizeShortSide(40, 1000),
        DETRAugmentation([32, 40], 1000, crop_size=(20, 30)),
        AerialAugmentation([32, 40], 1000),
    ],
)
def test_samples_are_those_of_the_whole_picture(tmp_path, monkeypatch, transform, seed):
    smooth().save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": HEIGHT, "width": WIDTH}
    record["annotations"] = [
        {"bbox": [17.3, 40.1, 100.2, 201.7], "bbox_mode": 1, "category_id": 2},
        {"bbox": [150.0, 300.0, 53.0, 31.0], "bbox_mode": 1, "category_id": 0},
    ]
    assert DetectionMapper([transform]).shrink(HEIGHT, WIDTH) > 1
    found = DetectionMapper([transform])(record, random.Random(seed))
    monkeypatch.setattr(mapper, "LARGE_PIXELS", HEIGHT * WIDTH)
    whole = DetectionMapper([transform])(record, random.Random(seed))
    assert found["image"].shape == whole["image"].shape
    assert (found["height"], found["width"]) == (HEIGHT, WIDTH)
    for key in ("gt_boxes", "gt_classes"):
        one, other = (getattr(each["instances"], key) for each in (found, whole))
        assert torch.equal(getattr(one, "tensor", one), getattr(other, "tensor", other))
    difference = (found["image"].float() - whole["image"].float()).abs()
    assert difference.mean() < 3
