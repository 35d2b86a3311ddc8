"""The worst pictures, against cases counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sparsedet.data import open_dataset
from sparsedet.evaluation import COCOEvaluator
from sparsedet.evaluation.confusion import match
from sparsedet.evaluation.worst import worst_pictures
from tests.evaluation.test_coco import answer, write

NUT, BOLT, FAR = [10, 10, 20, 20], [60, 10, 20, 20], [100, 100, 20, 20]


def evaluated(folder: Path, boxes: dict, answers: dict) -> dict[str, Any]:
    source = write(folder / "a.json", boxes, categories=((7, "nut"), (8, "bolt")))
    evaluator = COCOEvaluator(open_dataset(source), output_dir=str(folder))
    for image_id, output in answers.items():
        evaluator.process([{"image_id": image_id}], [output])
    evaluator.evaluate()
    return json.loads((folder / "worst.json").read_text())


def test_faults_of_a_small_set(tmp_path):
    """1: one loose box, one object missed. 2: a wrong class, a false box and one below 0.3."""
    boxes = {1: [(NUT, 7), (BOLT, 8)], 2: [(NUT, 8)]}
    answers = {
        1: answer([[10, 10, 20, 12]], [0], [0.9]),
        2: answer([NUT, FAR, BOLT], [0, 1, 1], [0.8, 0.7, 0.2]),
    }
    worst = evaluated(tmp_path, boxes, answers)
    totals = {"objects": 3, "detections": 3, "class": 1, "missed": 1, "false": 1, "loose": 1}
    assert worst["totals"] == totals
    assert (worst["missed"], worst["false"], worst["loose"]) == ([0], [1], [0])
    first, second = worst["pictures"]
    assert first["truth"] == [
        {"box": NUT, "class": "nut", "fault": None},
        {"box": BOLT, "class": "bolt", "fault": "missed"},
    ]
    loose = {"box": [10, 10, 20, 12], "class": "nut", "score": 0.9, "object": 0, "iou": 0.6}
    assert first["found"] == [loose | {"fault": "loose"}]
    assert [(each["class"], each["object"], each["fault"]) for each in second["found"]] == [
        ("nut", 0, "class"),
        ("bolt", None, "false"),
    ]
    assert second["truth"] == [{"box": NUT, "class": "bolt", "fault": None}]


def pictures(rows: list[tuple[list, list]]):
    for number, (truth, found) in enumerate(rows):
        record = {"file_name": f"{number}.png", "height": 200, "width": 200}
        columns = [np.array(each, float).reshape(-1, 6) for each in (truth, found)]
        yield record, match(*columns, score_threshold=0.3)


def test_the_worst_come_first_and_there_are_twelve_of_a_kind():
    """Picture n lacks n objects; equals keep the order of the set."""
    far = [[30 * k, 0, 20, 20, 0, 0] for k in range(20)]
    rows = [(far[:number], []) for number in (*range(15), 14)]
    worst = worst_pictures(pictures(rows), ["nut"], score_threshold=0.3)
    files = [worst["pictures"][place]["file"] for place in worst["missed"]]
    assert files == ["14.png", "15.png", *(f"{n}.png" for n in range(13, 3, -1))]
    assert worst["false"] == worst["loose"] == []


def test_false_boxes_are_ranked_by_score_and_ignored_ones_are_no_fault():
    sure, unsure = [[*FAR, 0.9, 0]], [[*FAR, 0.4, 0], [*BOLT, 0.4, 0]]
    crowd = [[*FAR, 0, 1]]
    rows = [([], unsure), ([], sure), (crowd, sure)]
    worst = worst_pictures(pictures(rows), ["nut"], score_threshold=0.3)
    assert [worst["pictures"][place]["file"] for place in worst["false"]] == ["1.png", "0.png"]
    assert worst["totals"]["false"] == 3 and worst["totals"]["objects"] == 0
    assert worst["missed"] == []
