"""Curves, the confusion matrix and the table of classes, against cases counted by hand."""

import json
import math

import numpy as np
import pytest

from sparsedet.data import open_dataset
from sparsedet.evaluation import COCOEvaluator, class_table
from sparsedet.evaluation.confusion import confusion_matrix, match
from tests.evaluation.test_coco import answer, write


def found_in(folder, boxes, answers, **arguments):
    """What the evaluator writes for the categories 7 = nut and 8 = bolt."""
    source = write(folder / "a.json", boxes, categories=((7, "nut"), (8, "bolt")))
    evaluator = COCOEvaluator(open_dataset(source), output_dir=str(folder), **arguments)
    for image_id, output in answers.items():
        evaluator.process([{"image_id": image_id}], [output])
    evaluator.evaluate()
    return [json.loads((folder / f"{name}.json").read_text()) for name in ("curves", "confusion")]


def test_curves_of_a_small_case(tmp_path):
    """Four nuts. By score: right, wrong, right at IoU 0.6 alone, wrong; one nut is not found.

    At IoU 0.5: precision 1 up to a recall of 1/4, then 2/3 up to 2/4, then nothing.
    At IoU 0.75: precision 1 up to a recall of 1/4, then nothing.
    """
    nuts = [[10, 10, 20, 20], [50, 10, 20, 20], [10, 50, 20, 20], [50, 50, 20, 20]]
    boxes = [nuts[0], [100, 100, 20, 20], [50, 10, 20, 12], [120, 10, 20, 20]]
    output = answer(boxes, [0, 0, 0, 0], [0.9, 0.8, 0.7, 0.6])
    curves, _ = found_in(tmp_path, {1: [(box, 7) for box in nuts]}, {1: output})
    assert curves["recall"] == pytest.approx(list(range(101)))
    assert list(curves["0.50"]["classes"]) == ["nut"]  # there is no bolt
    nut = curves["0.50"]["classes"]["nut"]
    assert nut["precision"] == pytest.approx([100] * 26 + [200 / 3] * 25 + [0] * 50, abs=1e-3)
    assert nut["score"] == pytest.approx([0.9] * 26 + [0.7] * 25 + [0] * 50)
    assert curves["0.50"]["mean"] == nut["precision"]
    strict = curves["0.75"]["classes"]["nut"]["precision"]
    assert strict == pytest.approx([100] * 26 + [0] * 75)


def test_the_mean_curve_is_that_of_classes_with_boxes(tmp_path):
    boxes = {1: [([10, 10, 20, 20], 7), ([60, 10, 20, 20], 8)]}
    curves, _ = found_in(tmp_path, boxes, {1: answer([[10, 10, 20, 20]], [0])})
    assert curves["0.50"]["mean"] == pytest.approx([50] * 101)


def test_confusion_of_a_small_case(tmp_path):
    nut, bolt, other = [10, 10, 20, 20], [60, 10, 20, 20], [10, 60, 20, 20]
    boxes = {1: [(nut, 7), (bolt, 8), (other, 7)], 2: [(nut, 8)]}
    answers = {
        1: answer(
            [nut, nut, bolt, [100, 100, 9, 9], other],
            [0, 1, 0, 1, 0],
            [0.9, 0.8, 0.7, 0.6, 0.29],  # right; again, as a bolt; a bolt as a nut; nothing; low
        )
    }
    _, confusion = found_in(tmp_path, boxes, answers)
    assert confusion["classes"] == ["nut", "bolt", "background"]
    assert confusion["score_threshold"] == 0.3 and confusion["iou"] == 0.5
    assert confusion["matrix"] == [[1, 0, 1], [1, 0, 1], [0, 2, 0]]
    _, confusion = found_in(tmp_path, boxes, answers, confusion_threshold=0.2)
    assert confusion["matrix"] == [[2, 0, 0], [1, 0, 1], [0, 2, 0]]


def pair(truth, found):
    """Rows (box, class, crowd) and (box, score, class) as `match` takes them."""
    rows = [[*box, label, crowd] for box, label, crowd in truth]
    columns = [[*box, score, label] for box, score, label in found]
    return np.array(rows, float).reshape(-1, 6), np.array(columns, float).reshape(-1, 6)


BOX, NEAR, FAR = [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 10, 10]


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        # inside of a crowd of its class: neither right nor wrong; of another class: wrong
        ([(BOX, 0, 1)], [([2, 2, 3, 3], 0.9, 0)], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([(BOX, 0, 1)], [([2, 2, 3, 3], 0.9, 1)], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]),
        # a crowd takes any number, and no object is lost to it
        (
            [(BOX, 0, 1), (FAR, 0, 0)],
            [(BOX, 0.9, 0), (NEAR, 0.8, 0), (FAR, 0.7, 0)],
            [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        ),
        # of two objects at one place each detection takes the one of its class
        (
            [(BOX, 0, 0), (NEAR, 1, 0)],
            [(NEAR, 0.9, 0), (BOX, 0.8, 1)],
            [[1, 0, 0], [0, 1, 0], [0, 0, 0]],
        ),
        # of two of its class the one that it overlaps most
        (
            [(BOX, 0, 0), ([0, 0, 10, 6], 0, 0)],
            [([0, 0, 10, 6], 0.9, 0), ([0, 4, 10, 6], 0.8, 0)],
            [[2, 0, 0], [0, 0, 0], [0, 0, 0]],
        ),
        # the higher score comes first, whatever the order
        ([(BOX, 0, 0)], [(BOX, 0.4, 0), (BOX, 0.9, 1)], [[0, 1, 0], [0, 0, 0], [1, 0, 0]]),
        # an overlap of exactly one half is enough, less is not
        ([(BOX, 0, 0)], [([0, 0, 10, 5], 0.9, 0)], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([(BOX, 0, 0)], [([0, 0, 10, 4.9], 0.9, 0)], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),
        ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_rules_of_the_confusion_matrix(truth, found, expected):
    matches = match(*pair(truth, found), score_threshold=0.3)
    assert confusion_matrix([matches], 2).tolist() == expected


def row(name, ap, boxes=1):
    return {"class": name, "images": 1, "boxes": boxes, "AP": ap, "AP50": 60.0, "AR": 70.25}


def test_the_table_has_the_best_class_first():
    rows = [row("nut", 12.3), row("bolt", 45.6, boxes=1000), row("never", math.nan, boxes=0)]
    assert class_table(rows).splitlines() == [
        "class  images  boxes    AP  AP50    AR",
        "bolt        1   1000  45.6  60.0  70.2",
        "nut         1      1  12.3  60.0  70.2",
        "classes without boxes: 1 of 3",
    ]


def test_a_long_table_is_shortened():
    lines = class_table([row(f"c{i}", float(i)) for i in range(9)], limit=5).splitlines()
    assert [line.split()[0] for line in lines] == ["class", "c8", "c7", "...", "c1", "c0"]
    assert lines[3] == "... 5 more classes ..."
    assert len(class_table([row(f"c{i}", float(i)) for i in range(5)], limit=5).splitlines()) == 6


@pytest.mark.parametrize("num_classes", [1, 12, 70])
def test_pictures(tmp_path, num_classes):
    """Of few classes and of many, which have long names."""
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib")
    categories = tuple((i + 1, f"{'long ' * 9}{i}") for i in range(num_classes))
    boxes = {1: [([10, 10, 20, 20], i) for i, _ in categories]}
    source = write(tmp_path / "a.json", boxes, categories=categories)
    evaluator = COCOEvaluator(open_dataset(source), output_dir=str(tmp_path), plots=True)
    evaluator.process([{"image_id": 1}], [answer([[10, 10, 20, 20]], [0])])
    evaluator.evaluate()
    for name in ("curves.png", "confusion.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
