"""Average precision: perfect answers, known mistakes, odd ids, COCO's own summary."""

import json

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparsedet import comm
from sparsedet.data import DatasetError, open_dataset
from sparsedet.evaluation import COCOEvaluator
from sparsedet.structures import Boxes, BoxMode, Instances

HUGE = 2**60
BOXES = {
    HUGE + 1: [([10, 10, 8, 8], 7), ([30, 20, 40, 30], 1000), ([50, 5, 20, 20], 7)],
    HUGE + 2: [([0, 0, 100, 80], 1000)],
    HUGE + 3: [],
}


def write(path, boxes=BOXES, crowd=(), categories=((7, "nut"), (1000, "bolt"), (3, "never"))):
    annotations = []
    for image_id, objects in boxes.items():
        for box, category in objects:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(len(annotations) in crowd),
                }
            )
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 160, "height": 160} for i in boxes],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in categories],
    }
    path.write_text(json.dumps(document))
    return str(path)


def answer(boxes_xywh, classes, scores=None):
    boxes = torch.tensor(boxes_xywh, dtype=torch.float32).reshape(-1, 4)
    corners = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    return {
        "instances": Instances(
            (90, 120),
            pred_boxes=Boxes(corners),
            scores=torch.ones(len(boxes)) if scores is None else torch.tensor(scores),
            pred_classes=torch.tensor(classes, dtype=torch.int64),
        )
    }


def truth_as_answers(evaluator, source):
    for record in open_dataset(source).records:
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        output = answer([a["bbox"] for a in objects], [a["category_id"] for a in objects])
        evaluator.process([{"image_id": record["image_id"]}], [output])


def test_ground_truth_as_predictions_is_perfect(tmp_path):
    source = write(tmp_path / "a.json")
    evaluator = COCOEvaluator(open_dataset(source))
    truth_as_answers(evaluator, source)
    results = evaluator.evaluate()["bbox"]
    for name in ("AP", "AP50", "AP75", "APs", "APm", "AR100", "AP50_class_agnostic"):
        assert results[name] == pytest.approx(1.0), name
    assert set(results["per_class"]) == {"nut", "bolt"}
    assert results["max_detections"] == [1, 10, 100]
    json.dumps(results, allow_nan=False)


def test_sizes_follow_the_bounds(tmp_path):
    source = write(tmp_path / "a.json")
    evaluator = COCOEvaluator(open_dataset(source), area_bounds=(10**2, 30**2))
    small_only = answer([[10, 10, 8, 8]], [1])
    evaluator.process([{"image_id": HUGE + 1}], [small_only])
    results = evaluator.evaluate()["bbox"]
    assert results["APs"] == pytest.approx(1.0)
    assert results["APm"] == results["APl"] == 0.0
    assert results["area_bounds"] == [100.0, 900.0]
    default = COCOEvaluator(open_dataset(source)).evaluate()["bbox"]
    assert default["AP"] == 0.0
    assert COCOEvaluator(open_dataset(source), area_bounds=(1, 2)).evaluate()["bbox"]["APs"] is None


def test_wrong_class_counts_only_without_classes(tmp_path):
    source = write(tmp_path / "a.json", {1: [([10, 10, 20, 20], 7)], 2: [([9, 9, 30, 20], 1000)]})
    evaluator = COCOEvaluator(open_dataset(source))
    evaluator.process([{"image_id": 1}], [answer([[10, 10, 20, 20]], [2])])
    evaluator.process([{"image_id": 2}], [answer([[9, 9, 30, 20]], [1])])
    results = evaluator.evaluate()["bbox"]
    assert results["AP50"] == 0.0
    assert results["AP50_class_agnostic"] == pytest.approx(1.0)


def test_crowds_are_ignored(tmp_path):
    source = write(
        tmp_path / "a.json", {1: [([10, 10, 20, 20], 7), ([60, 10, 50, 50], 7)]}, crowd={1}
    )
    evaluator = COCOEvaluator(open_dataset(source))
    inside = answer([[65, 15, 10, 10], [10, 10, 20, 20]], [1, 1], [0.9, 0.8])
    evaluator.process([{"image_id": 1}], [inside])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(1.0)


def test_detections_on_empty_images_are_false_positives(tmp_path):
    source = write(tmp_path / "a.json", {1: [([10, 10, 20, 20], 7)], 2: []})
    evaluator = COCOEvaluator(open_dataset(source))
    evaluator.process([{"image_id": 1}], [answer([[10, 10, 20, 20]], [1], [0.5])])
    evaluator.process([{"image_id": 2}], [answer([[10, 10, 20, 20]], [1], [0.9])])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(0.5)


def test_predictions_keep_the_ids_of_the_file(tmp_path):
    source = write(tmp_path / "a.json")
    evaluator = COCOEvaluator(open_dataset(source), output_dir=str(tmp_path / "out"))
    truth_as_answers(evaluator, source)
    evaluator.evaluate()
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {p["image_id"] for p in predictions} == {HUGE + 1, HUGE + 2}
    assert sorted(p["category_id"] for p in predictions) == [7, 7, 1000, 1000]
    assert predictions[0]["bbox"] == [10, 10, 8, 8]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_agrees_with_pycocotools_summary(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    boxes = {i: [] for i in range(1, 13)}
    found = {i: ([], [], []) for i in boxes}
    for image_id, objects in boxes.items():
        for _ in range(6):
            x, y, w, h = (torch.rand(4, generator=generator) * 60 + 4).tolist()
            category = int(torch.randint(2, (1,), generator=generator))
            objects.append(([x, y, w, h], (7, 1000)[category]))
            shift = (torch.rand(4, generator=generator) * 10 - 5).tolist()
            found[image_id][0].append([a + b for a, b in zip([x, y, w, h], shift, strict=True)])
            found[image_id][1].append(category + 1)
            found[image_id][2].append(float(torch.rand(1, generator=generator)))
    source = write(tmp_path / "a.json", boxes)
    evaluator = COCOEvaluator(open_dataset(source), output_dir=str(tmp_path))
    for image_id, columns in found.items():
        evaluator.process([{"image_id": image_id}], [answer(*columns)])
    results = evaluator.evaluate()["bbox"]
    document = json.loads((tmp_path / "a.json").read_text())
    for entry in document["annotations"]:
        entry["id"] += 1
    truth = COCO()
    truth.dataset = document
    truth.createIndex()
    reference = COCOeval(truth, truth.loadRes(str(tmp_path / "predictions.json")), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    for name, value in zip(names, reference.stats, strict=True):
        expected = None if value == -1 else pytest.approx(value, abs=1e-4)
        assert results[name] == expected, name
    assert 0.05 < results["AP"] < 0.95


def test_classes_are_matched_by_name(tmp_path):
    source = write(tmp_path / "a.json")
    evaluator = COCOEvaluator(open_dataset(source, class_names=["bolt", "extra", "never", "nut"]))
    for record in open_dataset(source).records:
        classes = [{1: 3, 2: 0}[a["category_id"]] for a in record["annotations"]]
        output = answer([a["bbox"] for a in record["annotations"]], classes)
        evaluator.process([{"image_id": record["image_id"]}], [output])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(1.0)
    with pytest.raises(DatasetError, match="'never' is not one of the 1 classes"):
        COCOEvaluator(open_dataset(source, class_names=["nut"]))


def test_gathers_over_processes(tmp_path, monkeypatch):
    source = write(tmp_path / "a.json")
    other = COCOEvaluator(open_dataset(source))
    truth_as_answers(other, source)
    mine = COCOEvaluator(open_dataset(source))
    first = HUGE + 1
    mine._detections = {first: other._detections[first]}
    rest = {i: rows for i, rows in other._detections.items() if i != first}

    def gather(obj):
        return [obj, rest] if isinstance(obj, dict) and "bbox" not in obj else [obj, None]

    monkeypatch.setattr(comm, "all_gather", gather)
    assert mine.evaluate()["bbox"]["AP"] == pytest.approx(1.0)


def test_refusals(tmp_path):
    source = write(tmp_path / "a.json")
    with pytest.raises(ValueError, match="area_bounds"):
        COCOEvaluator(open_dataset(source), area_bounds=(9, 4))
    with pytest.raises(ValueError, match="image_id 5"):
        COCOEvaluator(open_dataset(source)).process([{"image_id": 5}], [answer([], [])])
    with pytest.raises(DatasetError, match=r"gone\.json"):
        COCOEvaluator(open_dataset(str(tmp_path / "gone.json")))
