"""The embedded set: pixels fixed for ever, boxes tight, folders whole."""

import hashlib
import json

import numpy as np
import pytest

from sparsedet.data import DatasetError, open_dataset
from sparsedet.data.shapes import CLASS_NAMES, ShapesOptions, shapes_sample, write_shapes
from sparsedet.data.shapes.__main__ import main

CHECKSUM = "8e35d97411e9f9a71b3e141c4183cb07ab44f6ac0f9c8f96f4531c7522a8adba"


def test_pixels_and_boxes_never_change():
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for index in (0, 1, 2, 7):
            sample = shapes_sample(0, split, index)
            digest.update(sample.image.tobytes())
            digest.update(sample.boxes_xywh.astype("<i8").tobytes())
    assert digest.hexdigest() == CHECKSUM


def test_what_decides_a_sample():
    first = shapes_sample(0, "train", 3).image
    assert np.array_equal(first, shapes_sample(0, "train", 3).image)
    for other in ((1, "train", 3), (0, "val", 3), (0, "train", 4)):
        assert not np.array_equal(first, shapes_sample(*other).image)
    val = shapes_sample(0, "val", 3).image
    assert np.array_equal(val, shapes_sample(7, "val", 3).image)


def test_statistics_of_the_scenes():
    samples = [shapes_sample(0, "train", index) for index in range(120)]
    counts = [len(sample.classes) for sample in samples]
    areas = np.concatenate([s.boxes_xywh[:, 2] * s.boxes_xywh[:, 3] for s in samples])
    assert 8 < np.mean(counts) < 11
    assert 0 < counts.count(0) < 15
    assert 0.28 < (areas < 12**2).mean() < 0.46
    assert 0.10 < (areas > 32**2).mean() < 0.25
    classes = np.concatenate([sample.classes for sample in samples])
    assert (np.bincount(classes, minlength=len(CLASS_NAMES)) > 40).all()


@pytest.mark.parametrize("size", [(160, 160), (96, 130)])
def test_boxes_lie_inside_and_have_size(size):
    height, width = size
    for index in range(20):
        sample = shapes_sample(0, "train", index, ShapesOptions(size=size))
        assert sample.image.shape == (height, width, 3)
        x, y, w, h = sample.boxes_xywh.T
        assert (x >= 0).all()
        assert (y >= 0).all()
        assert (x + w <= width).all()
        assert (y + h <= height).all()
        assert (np.minimum(w, h) >= 3).all()


def test_box_is_tight_around_a_lone_object():
    options = ShapesOptions(scene="sparse", clutter=0, gray=True)
    checked = 0
    for index in range(40):
        sample = shapes_sample(0, "train", index, options)
        if len(sample.classes) != 1:
            continue
        x, y, w, h = sample.boxes_xywh[0]
        pixels = sample.image[..., 0].astype(int)
        inner = pixels[y + h // 2 - 1 : y + h // 2 + 2, x + w // 2 - 1 : x + w // 2 + 2].mean()
        top, left = max(0, y - 4), max(0, x - 4)
        ring = pixels[top : y + h + 4, left : x + w + 4].copy()
        ring[y - top : y - top + h, x - left : x - left + w] = -1
        assert abs(inner - np.median(ring[ring >= 0])) > 10
        checked += 1
    assert checked > 10


def test_options():
    sparse = [shapes_sample(0, "train", i, ShapesOptions(scene="sparse")) for i in range(20)]
    dense = [shapes_sample(0, "train", i, ShapesOptions(scene="dense")) for i in range(10)]
    assert max(len(s.classes) for s in sparse) <= 2
    assert np.mean([len(s.classes) for s in dense]) > 15
    gray = shapes_sample(0, "train", 0, ShapesOptions(gray=True)).image
    assert (gray[..., 0] == gray[..., 1]).all()
    large = shapes_sample(0, "train", 0, ShapesOptions(scale=2.0))
    assert large.boxes_xywh[:, 2:].max() > 72
    for name, value in (("scene", "x"), ("clutter", 2), ("size", (8, 8)), ("scale", 0)):
        with pytest.raises(ValueError, match=rf"ShapesOptions\.{name}"):
            ShapesOptions(**{name: value})
    with pytest.raises(ValueError, match="split"):
        shapes_sample(0, "test", 0)


def test_folder_goes_through_the_file_loader(tmp_path):
    assert write_shapes(tmp_path / "s", num_train=3, num_val=2)
    for split, count in (("train", 3), ("val", 2)):
        source = tmp_path / "s" / "annotations" / f"instances_{split}.json"
        dataset = open_dataset(str(source), str(tmp_path / "s" / split))
        assert len(dataset.records) == count
        assert dataset.class_names == CLASS_NAMES
        boxes = [entry["bbox"] for entry in dataset.records[1]["annotations"]]
        assert boxes == shapes_sample(0, split, 1).boxes_xywh.tolist()


def test_finished_folder_is_kept_another_request_rewrites(tmp_path):
    folder = tmp_path / "s"
    write_shapes(folder, num_train=2, num_val=1)
    before = (folder / "train" / "000000.png").stat().st_mtime_ns
    assert not write_shapes(folder, num_train=2, num_val=1)
    assert (folder / "train" / "000000.png").stat().st_mtime_ns == before
    assert write_shapes(folder, num_train=1, num_val=1, seed=5)
    assert [p.name for p in (folder / "train").iterdir()] == ["000000.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(DatasetError, match=r"is not a set of shapes"):
        write_shapes(tmp_path, num_train=1, num_val=1)
    assert (tmp_path / "photo.png").read_bytes() == b"mine"


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "s", num_train=1, num_val=1)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, capsys):
    small = ["--train", "1", "--val", "1", "--size", "64", "80"]
    assert main(["--output", str(tmp_path / "s"), *small]) == 0
    assert json.loads((tmp_path / "s" / "shapes.json").read_text())["options"]["size"] == [64, 80]
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path / "t"), "--scene", "odd"])
    assert stop.value.code == 2
    assert "error: ShapesOptions.scene" in capsys.readouterr().err
