"""Each kind of loss is one sentence with its share, and the override in it mends it."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest

from sparsedet.config import LazyConfig, get_config, instantiate
from sparsedet.survey.misfits import find_misfits
from sparsedet.survey.numbers import input_sizes
from sparsedet.survey.settings import Ranges, read_settings
from sparsedet.survey.suggest import suggest
from tests.survey.made import make_part


def misfits(parts, config="quickstart", *overrides, **changed) -> list[str]:
    cfg = LazyConfig.apply_overrides(get_config(config), list(overrides))
    settings = replace(read_settings(cfg), **changed)
    mapper = instantiate(cfg.dataloader.test.mapper)
    sizes = {part.name: input_sizes(part, mapper) for part in parts}
    return find_misfits(parts, sizes, settings, suggest(parts, settings))


def overrides_in(text: str) -> list[str]:
    found = re.findall(r"'[\w.]+=[^']+'|[\w.]+=[^\s',]+", text)
    return [shlex.split(each)[0].rstrip(".") for each in found if "size=320" not in each]


def test_nothing_is_said_of_what_fits(tmp_path):
    assert misfits([make_part(tmp_path, [(160, 160, [(20, 30, 0)] * 9)])]) == []


def test_objects_without_a_query(tmp_path):
    parts = [make_part(tmp_path, [(160, 160, [(20, 20, 0)] * 44), (160, 160, [(20, 20, 0)] * 6)])]
    few = "model.query_initializer.num_queries=10"
    (text,) = misfits(parts, "quickstart", few)
    assert "34 of 50 training objects (68 %, in 1 of 2 pictures)" in text
    (mend,) = overrides_in(text)
    assert mend == "model.query_initializer.num_queries=100"
    assert misfits(parts, "quickstart", few, mend) == []


def test_answers_that_are_cut_off(tmp_path):
    parts = [make_part(tmp_path, [(160, 160, [(20, 20, 0)] * 120)])]
    (text,) = [each for each in misfits(parts) if "model.max_detections" in each]
    assert "20 of 120 training objects (17 %" in text
    assert overrides_in(text) == ["model.max_detections=200"]


def test_the_evaluator_counts_by_class(tmp_path):
    boxes = [(20, 20, 0)] * 120 + [(20, 20, 1)] * 90
    parts = [make_part(tmp_path, [(160, 160, boxes)], classes=("a", "b"))]
    (text,) = misfits(parts, max_detections=None, num_queries=None, counted=100)
    assert (
        "20 of 210 training objects (9.52 %" in text or "20 of 210 training objects (10 %" in text
    )
    assert "dataloader.evaluator.max_detections=[1,10,350]" in text


def test_thin_panoramas(tmp_path):
    parts = [
        make_part(tmp_path, [(250, 5000, [(3, 40, 0)] * 2), (160, 160, [(20, 20, 0)] * 2)]),
        make_part(tmp_path, [(160, 160, [(20, 20, 0)] * 2)], name="validation"),
    ]
    (text,) = misfits(parts)
    assert "50 % of the training boxes (50 % have a side below 1) are below 8 pixels" in text
    assert "1 of 2 training pictures (50 % of the boxes) are so elongated that" in text
    assert "dataset.max_size=320 reduces their short side to 16 pixels instead of 160" in text
    assert "validation" not in text
    assert misfits(parts, "quickstart", *overrides_in(text)) == []


def test_boxes_that_are_small_altogether(tmp_path):
    parts = [make_part(tmp_path, [(1080, 1920, [(30, 30, 0)] * 3 + [(300, 300, 0)] * 2)])]
    text, large = misfits(parts)
    assert "projects/large_images" in large
    assert text.startswith("60 % of the training boxes are below 8 pixels at the model's input")
    assert "elongated" not in text
    assert re.search(r"at [\d.]+ times the pixels and time", text)
    left = misfits(parts, "quickstart", *overrides_in(text))
    assert all("projects/large_images" in each for each in left)


def test_boxes_that_no_size_of_input_saves(tmp_path):
    (text,) = misfits([make_part(tmp_path, [(160, 160, [(2, 2, 0)] * 3)])])
    assert "Cut the pictures into tiles" in text


@pytest.mark.parametrize(
    "distance, low, high, share",
    [
        ("sides", 41, 60, 50),
        ("sides", 19, 60, None),
        ("center", 21, 60, 50),
        ("half_size", 20, 60, 50),
    ],
)
def test_boxes_outside_of_all_size_ranges(tmp_path, distance, low, high, share):
    parts = [make_part(tmp_path, [(160, 160, [(40, 40, 0), (80, 80, 0)])])]
    ranges = (Ranges("model.criterion.unmatched.0.size_ranges", ((low, high),) * 4, distance),)
    found = misfits(parts, ranges=ranges)
    if share is None:
        assert found == []
    else:
        assert f"{share} % of the training boxes" in found[0]
        assert "model.criterion.unmatched.0.size_ranges=[[-1," in found[0]


def test_classes_that_training_never_shows(tmp_path):
    names = ("a", "b", "c")
    training = make_part(tmp_path, [(160, 160, [(30, 30, 0)])], classes=names)
    boxes = [(30, 30, 0)] * 3 + [(30, 30, 2)]
    validation = make_part(tmp_path, [(160, 160, boxes)], name="validation", classes=names)
    (text,) = misfits([training, validation])
    assert "2 of 3 classes ('b', 'c') have no training box" in text
    assert "25 % of the validation boxes" in text


def test_a_thin_panorama(tmp_path):
    part = make_part(tmp_path, [(250, 5000, [(3, 23, 0)] * 40)])
    (text,) = misfits([part])
    assert "100 % have a side below 1" in text
    assert misfits([part], "quickstart", *overrides_in(text)) == []


def test_what_helps_in_part_is_named_too(tmp_path):
    """Most boxes are at eight pixels already, and a few stay below it at any price."""
    boxes = [(110, 110, 0)] * 184 + [(60, 60, 0)] * 4 + [(20, 20, 0)] * 12
    parts = [make_part(tmp_path, [(2000, 2000, boxes)])]
    (text,) = misfits(parts, max_detections=None, counted=None, num_queries=None, ranges=())
    assert any(each.startswith("dataset.test_short_side=") for each in overrides_in(text))
    assert "6 % of all boxes are below 8 pixels instead of 8 %" in text and "Cut" in text
