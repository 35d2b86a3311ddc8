"""Areas in another unit than the boxes are told; those of masks raise no alarm."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sparsedet.data import open_dataset
from sparsedet.evaluation import COCOEvaluator


@pytest.fixture
def write(tmp_path):
    """Writes a document; returns its path."""

    def to_file(document):
        (tmp_path / "set.json").write_text(json.dumps(document))
        return tmp_path / "set.json"

    return to_file


def with_areas(areas, boxes=None, segmentations=None):
    boxes = [[1, 2, 10 + i % 7, 8 + i % 5] for i in range(len(areas))] if boxes is None else boxes
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": area}
        for i, (box, area) in enumerate(zip(boxes, areas, strict=True))
    ]
    for entry, each in zip(annotations, segmentations or [], strict=False):
        entry["segmentation"] = each
    image = {"id": 1, "file_name": "a.png", "width": 36, "height": 36}
    return {
        "images": [image],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }


AREAS = {
    "a constant": (lambda w, h, i: 1.0, "20 of 20"),
    "a large constant": (lambda w, h, i: 100.0, "20 of 20"),
    "fractions of the image": (
        lambda w, h, i: w * h / (40 * 30),
        "20 of 20; the median is 0.00083",
    ),
    "another resolution": (lambda w, h, i: w * h * 4, "20 of 20; the median is 4 of it"),
    "a half of it": (lambda w, h, i: w * h / 4, "20 of 20; the median is 0.25"),
    "widths": (lambda w, h, i: w, "20 of 20"),
    "roots": (lambda w, h, i: math.sqrt(w * h), "20 of 20"),
    "outlines": (lambda w, h, i: 2 * (w + h), "20 of 20"),
    "corners": (lambda w, h, i: (1 + w) * (2 + h) * 2, "20 of 20"),
    "a tenth of the set": (lambda w, h, i: w * h if i % 10 else 0.5, "2 of 20"),
}


@pytest.mark.parametrize("kind", list(AREAS))
def test_areas_of_another_unit_are_told_with_the_figure(write, caplog, kind):
    formula, words = AREAS[kind]
    boxes = [[1, 2, 10 + i % 7, 8 + i % 5] for i in range(20)]
    areas = [formula(w, h, i) for i, (_, _, w, h) in enumerate(boxes)]
    COCOEvaluator(open_dataset(write(with_areas(areas, boxes))))
    assert "'area' does not fit width x height" in caplog.text
    assert words in caplog.text
    assert "delete it: without it, width x height is used" in caplog.text


def shapes(kind, count=60):
    """Boxes, areas and segmentations of objects whose masks fill a part of their box."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        w, h = rng.uniform(3, 30, 2)
        x, y = rng.uniform(0, 5, 2)
        if kind == "boxes, the last pixel counted":
            yield [x, y, w, h], (w + 1) * (h + 1), []
        elif kind == "ellipses":
            yield [x, y, w, h], math.pi / 4 * w * h, []
        elif kind == "any share":
            yield [x, y, w, h], w * h * rng.uniform(0.03, 1), []
        elif kind == "thin, aslant":
            line = [x, y, x + 0.2, y, x + w, y + h, x + w - 0.2, y + h]
            yield [x, y, w, h], 0.2 * h, [line]
        elif kind == "equal crosses":
            turn = rng.uniform(0, math.pi / 2)
            side = 10 * (math.cos(turn) + math.sin(turn))
            points = [(math.cos(turn + i * math.pi / 2), math.sin(turn + i * math.pi / 2))
                      for i in range(4)]  # fmt: skip
            r = 10 / math.sqrt(2)
            yield [x, y, side, side], 100.0, [[x + 9 + r * v for p in points for v in p]]


@pytest.mark.parametrize(
    "kind",
    ["boxes, the last pixel counted", "ellipses", "any share", "thin, aslant", "equal crosses"],
)
def test_areas_of_masks_raise_no_alarm(write, caplog, kind):
    boxes, areas, segmentations = zip(*shapes(kind), strict=True)
    open_dataset(write(with_areas(areas, boxes, segmentations)))
    assert not caplog.messages


def test_no_alarm_on_real_sets(shared, caplog):
    files = sorted((shared / "data").glob("*/annotations/*.json"))
    assert len(files) >= 8
    for path in files:
        open_dataset(path)
    assert "'area'" not in caplog.text


@pytest.mark.parametrize("name", ["ann.json", "ann_fraction.json"])
def test_constant_and_fractional_areas_of_the_cases(shared, caplog, name):
    COCOEvaluator(open_dataset(shared / "cases" / "area_units" / name))
    assert "annotation 1, annotation 2: 'area' does not fit width x height" in caplog.text
