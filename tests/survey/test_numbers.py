"""Sizes at the model's input are those that the mapper makes, and no picture is opened for them."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from sparsedet.data import (
    AerialAugmentation,
    DetectionMapper,
    PhotographAugmentation,
    ResizeShortSide,
    open_dataset,
)
from sparsedet.data.shapes import write_shapes
from sparsedet.survey.numbers import Part, input_sizes
from tests.survey.made import make_part, make_set


def test_a_resize_scales_pictures_and_boxes(tmp_path):
    part = make_part(tmp_path, [(250, 5000, [(3, 23, 0)]), (120, 160, [(40, 20, 0), (7, 7, 0)])])
    sizes = input_sizes(part, DetectionMapper([ResizeShortSide(160, 320)]))
    assert sizes.exact
    assert sizes.pictures.tolist() == [[16, 320], [160, 213]]
    assert sizes.boxes[0] == pytest.approx([23 * 16 / 250, 3 * 320 / 5000])
    assert sizes.boxes[1] == pytest.approx([20 * 160 / 120, 40 * 213 / 160])
    assert sizes.share_small == pytest.approx(1 / 3)  # a box of 7 becomes one of 9
    assert sizes.share_vanished == pytest.approx(1 / 3)


def test_ignore_regions_are_counted_apart(tmp_path):
    path = make_set(tmp_path, [(100, 100, [(50, 50, 0), (20, 20, 1)])], classes=("a", "b"))
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    part = Part.of("training", open_dataset(path))
    assert part.ignored.tolist() == [1, 0]
    assert part.boxes.tolist() == [[20, 20]] and part.label.tolist() == [1] and part.most == 1


def test_objects_of_a_picture_and_of_a_class_in_it(tmp_path):
    pictures = [(9, 9, [(4, 4, 0)] * 3 + [(4, 4, 1)] * 2), (9, 9, []), (9, 9, [(4, 4, 1)] * 4)]
    part = make_part(tmp_path, pictures, classes=("a", "b"))
    assert part.objects.tolist() == [5, 0, 4]
    assert sorted(part.objects_of_a_class.tolist()) == [2, 3, 4]


@pytest.mark.parametrize(
    "transforms",
    [
        [PhotographAugmentation([56, 64, 72], 128)],
        [AerialAugmentation([56, 64, 72], 128)],
        [v2.RandomRotation(20), PhotographAugmentation([64], 128)],
        [v2.RandomPhotometricDistort(), ResizeShortSide([40, 64], 128)],
    ],
    ids=["photograph", "aerial", "rotation", "distortion"],
)
def test_augmented_sizes_are_those_of_the_samples(tmp_path, transforms):
    write_shapes(tmp_path / "shapes", num_train=4, num_val=1)
    folder = tmp_path / "shapes"
    dataset = open_dataset(folder / "annotations/instances_train.json", folder / "train")
    mapper = DetectionMapper(transforms)
    sizes = input_sizes(Part.of("training", dataset), mapper, seed=3)
    assert not sizes.exact
    samples = [mapper(r, random.Random(f"3-{i}")) for i, r in enumerate(dataset.records)]
    assert sizes.pictures.tolist() == [list(sample["image"].shape[-2:]) for sample in samples]
    corners = torch.cat([sample["instances"].gt_boxes.tensor for sample in samples])
    extents = (corners[:, 2:] - corners[:, :2]).flip(-1).numpy()
    assert np.abs(sizes.boxes - extents).max() < 1e-3


def brighten(image, boxes, rng):
    return image if image.float().mean().item() > 9 else image + 9, boxes


def test_a_transform_that_needs_pixels_is_named_as_the_reason(tmp_path):
    part = make_part(tmp_path, [(100, 100, [(50, 50, 0)])])
    found = input_sizes(part, DetectionMapper([brighten, ResizeShortSide(40, 80)]))
    assert isinstance(found, str) and "needs pixels" in found
    assert input_sizes(part, lambda record, rng: record) == "function does not give them"
