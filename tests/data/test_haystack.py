"""Large pictures of small objects: fixed pixels, tight boxes, a class that a glance cannot tell."""

import hashlib
import json

import numpy as np
import pytest

from sparsedet.data import open_dataset
from sparsedet.data.haystack import CLASS_NAMES, HaystackOptions, haystack_sample, write_haystack
from sparsedet.data.haystack.__main__ import main
from sparsedet.data.haystack.scene import draw_disc
from sparsedet.data.shapes.chance import Chance
from sparsedet.data.shapes.drawing import Shape

CHECKSUM = "3cd419871fa3c21fbbc15432d7e04fc1a13b5599ab7bcb20840a2b01d79c3fff"
SMALL = HaystackOptions(size=(256, 320), objects=12, diameters=(12, 20))


def test_pixels_and_boxes_never_change():
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for index in (0, 5):
            sample = haystack_sample(0, split, index, SMALL)
            digest.update(sample.image.tobytes())
            digest.update(sample.boxes_xywh.astype("<i8").tobytes())
    assert digest.hexdigest() == CHECKSUM


def test_what_decides_a_sample():
    first = haystack_sample(0, "train", 3, SMALL).image
    assert np.array_equal(first, haystack_sample(0, "train", 3, SMALL).image)
    for other in ((1, "train", 3), (0, "val", 3), (0, "train", 4)):
        assert not np.array_equal(first, haystack_sample(*other, SMALL).image)
    val = haystack_sample(0, "val", 3, SMALL).image
    assert np.array_equal(val, haystack_sample(7, "val", 3, SMALL).image)
    with pytest.raises(ValueError, match="split"):
        haystack_sample(0, "test", 0)


@pytest.mark.parametrize("objects", [0, 1, 25])
def test_every_picture_has_the_number_and_the_sizes_asked_for(objects):
    options = HaystackOptions(size=(300, 400), objects=objects, diameters=(14, 20))
    classes = []
    for index in range(6):
        sample = haystack_sample(0, "train", index, options)
        assert sample.image.shape == (300, 400, 3)
        assert len(sample.boxes_xywh) == len(sample.classes) == objects
        x, y, w, h = sample.boxes_xywh.T
        assert (x >= 0).all() and (y >= 0).all() and (x + w <= 400).all() and (y + h <= 300).all()
        assert ((w >= 13) & (w <= 21) & (h >= 13) & (h <= 21)).all()
        classes += sample.classes.tolist()
        centers = np.stack((x + w / 2, y + h / 2), axis=1)
        apart = np.hypot(*(centers[:, None] - centers).transpose(2, 0, 1))
        assert (apart + 99 * np.eye(objects) > 14).all()
    assert objects < 25 or set(classes) == set(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("grain", [2, 3])
def test_the_class_is_gone_where_the_picture_is_reduced(grain):
    """Reduced by twice the grain, all classes look like a look-alike; at full size all differ."""
    side, whole, reduced = 2 * grain, [], []
    for label in range(-1, len(CLASS_NAMES)):
        canvas = np.full((48, 48, 3), 120, dtype=np.float32)
        draw_disc(canvas, Shape("dot", (24.0, 24.0), 30.0), label, grain, Chance([1]))
        whole.append(canvas[16:32, 16:32])
        blocks = canvas.reshape(48 // side, side, 48 // side, side, 3).mean(axis=(1, 3))
        reduced.append(blocks[18 // side : 30 // side, 18 // side : 30 // side])
    for label in range(1, len(whole)):
        assert np.abs(reduced[label] - reduced[0]).max() < 1e-3
        for other in range(label):
            assert np.abs(whole[label] - whole[other]).mean() > 20


def test_a_glance_still_shows_where_things_are():
    options = HaystackOptions(size=(256, 256), objects=8, clutter=0, diameters=(24, 32))
    for index in range(4):
        sample = haystack_sample(0, "train", index, options)
        small = sample.image.astype(float).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        for x, y, w, h in sample.boxes_xywh // 4:
            inside = small[y + 2 : y + h - 1, x + 2 : x + w - 1].mean(axis=(0, 1))
            beside = [small[y : y + h, at] for at in (max(x - 2, 0), min(x + w + 2, 63))]
            difference = np.median(np.concatenate(beside), axis=0) - inside
            assert np.abs(difference).sum() > 20


def test_what_the_options_change():
    given = dict(size=(512, 512), objects=40, diameters=(12, 16))
    plain, crowd = (HaystackOptions(**given, clutter=share) for share in (0, 2))
    images = [haystack_sample(0, "train", 0, each) for each in (plain, crowd)]
    assert [len(each.classes) for each in images] == [40, 40]
    assert not np.array_equal(*(each.image for each in images))
    fields = []
    for share in (0.1, 1.0):
        options = HaystackOptions(size=(1024, 1024), objects=20, clutter=0, area_share=share)
        x, y, w, h = haystack_sample(0, "train", 1, options).boxes_xywh.T
        fields.append(len({*zip((x + w // 2) // 128, (y + h // 2) // 128, strict=True)}))
    assert fields[0] <= 8 < 12 < fields[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", (64, 512)),
        ("objects", -1),
        ("diameters", (7, 20)),
        ("clutter", -1),
        ("area_share", 0),
        ("grain", 0),
    ],
)
def test_options_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"HaystackOptions\.{name}"):
        HaystackOptions(**{name: value})


def test_more_than_there_is_room_for():
    with pytest.raises(ValueError, match=r"room for \d+ objects and look-alikes, got 200"):
        HaystackOptions(size=(256, 256), objects=100)


def test_folder_goes_through_the_file_loader(tmp_path):
    assert write_haystack(tmp_path / "h", num_train=2, num_val=1, options=SMALL)
    assert not write_haystack(tmp_path / "h", num_train=2, num_val=1, options=SMALL)
    source = tmp_path / "h" / "annotations" / "instances_train.json"
    dataset = open_dataset(str(source), str(tmp_path / "h" / "train"))
    assert dataset.class_names == CLASS_NAMES
    boxes = [entry["bbox"] for entry in dataset.records[1]["annotations"]]
    assert boxes == haystack_sample(0, "train", 1, SMALL).boxes_xywh.tolist()


def test_command_line(tmp_path, capsys):
    words = ["--output", str(tmp_path / "h"), "--train", "1", "--val", "1", "--size", "128", "160"]
    assert main([*words, "--objects", "3", "--diameters", "12", "16"]) == 0
    told = json.loads((tmp_path / "h" / "haystack.json").read_text())["options"]
    assert (told["size"], told["objects"], told["diameters"]) == ([128, 160], 3, [12, 16])
    with pytest.raises(SystemExit) as stop:
        main([*words, "--area-share", "2"])
    assert stop.value.code == 2
    assert "error: HaystackOptions.area_share" in capsys.readouterr().err
