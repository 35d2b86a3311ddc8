"""Average precision: perfect answers, known mistakes, odd ids, COCO's own summary."""

import json
import math

import pytest
import torch

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
        assert results[name] == pytest.approx(100.0), name
    assert results["AP-nut"] == results["AP-bolt"] == pytest.approx(100.0)
    assert math.isnan(results["AP-never"]) and math.isnan(results["APl"])


def test_sizes_follow_the_bounds(tmp_path):
    source = write(tmp_path / "a.json")
    evaluator = COCOEvaluator(open_dataset(source), area_bounds=(10**2, 30**2))
    small_only = answer([[10, 10, 8, 8]], [1])
    evaluator.process([{"image_id": HUGE + 1}], [small_only])
    results = evaluator.evaluate()["bbox"]
    assert results["APs"] == pytest.approx(100.0)
    assert results["APm"] == results["APl"] == 0.0
    assert results["ARs"] == pytest.approx(100.0)
    assert results["ARm"] == results["ARl"] == 0.0
    assert 0 < results["AR100"] < 100
    assert evaluator.details["area_bounds"] == [100.0, 900.0]
    default = COCOEvaluator(open_dataset(source)).evaluate()["bbox"]
    assert default["AP"] == 0.0
    tiny = COCOEvaluator(open_dataset(source), area_bounds=(1, 2)).evaluate()["bbox"]
    assert math.isnan(tiny["APs"])


def test_the_area_of_the_file_decides_about_the_size(tmp_path):
    """COCO's areas are those of masks: here 500 of a box of 1600 square pixels."""
    path = tmp_path / "a.json"
    write(path, {1: [([10, 10, 40, 40], 7)]})
    document = json.loads(path.read_text())
    document["annotations"][0]["area"] = 500
    path.write_text(json.dumps(document))
    evaluator = COCOEvaluator(open_dataset(str(path)))
    evaluator.process([{"image_id": 1}], [answer([[10, 10, 40, 40]], [1])])
    results = evaluator.evaluate()["bbox"]
    assert results["APs"] == pytest.approx(100.0)
    assert math.isnan(results["APm"])


def test_wrong_class_counts_only_without_classes(tmp_path):
    source = write(tmp_path / "a.json", {1: [([10, 10, 20, 20], 7)], 2: [([9, 9, 30, 20], 1000)]})
    evaluator = COCOEvaluator(open_dataset(source))
    evaluator.process([{"image_id": 1}], [answer([[10, 10, 20, 20]], [2])])
    evaluator.process([{"image_id": 2}], [answer([[9, 9, 30, 20]], [1])])
    results = evaluator.evaluate()["bbox"]
    assert results["AP50"] == 0.0
    assert results["AP50_class_agnostic"] == pytest.approx(100.0)


def test_crowds_are_ignored(tmp_path):
    source = write(
        tmp_path / "a.json", {1: [([10, 10, 20, 20], 7), ([60, 10, 50, 50], 7)]}, crowd={1}
    )
    evaluator = COCOEvaluator(open_dataset(source))
    inside = answer([[65, 15, 10, 10], [10, 10, 20, 20]], [1, 1], [0.9, 0.8])
    evaluator.process([{"image_id": 1}], [inside])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)


def test_detections_on_empty_images_are_false_positives(tmp_path):
    source = write(tmp_path / "a.json", {1: [([10, 10, 20, 20], 7)], 2: []})
    evaluator = COCOEvaluator(open_dataset(source))
    evaluator.process([{"image_id": 1}], [answer([[10, 10, 20, 20]], [1], [0.5])])
    evaluator.process([{"image_id": 2}], [answer([[10, 10, 20, 20]], [1], [0.9])])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(50.0)


def test_predictions_keep_the_ids_of_the_file(tmp_path):
    source = write(tmp_path / "a.json")
    evaluator = COCOEvaluator(open_dataset(source), output_dir=str(tmp_path / "out"))
    truth_as_answers(evaluator, source)
    evaluator.evaluate()
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {p["image_id"] for p in predictions} == {HUGE + 1, HUGE + 2}
    assert sorted(p["category_id"] for p in predictions) == [7, 7, 1000, 1000]
    assert predictions[0]["bbox"] == [10, 10, 8, 8]
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["confusion.json", "curves.json", "predictions.json", "worst.json"]


def test_classes_are_matched_by_name(tmp_path):
    source = write(tmp_path / "a.json")
    evaluator = COCOEvaluator(open_dataset(source, class_names=["bolt", "extra", "never", "nut"]))
    for record in open_dataset(source).records:
        classes = [{1: 3, 2: 0}[a["category_id"]] for a in record["annotations"]]
        output = answer([a["bbox"] for a in record["annotations"]], classes)
        evaluator.process([{"image_id": record["image_id"]}], [output])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)
    with pytest.raises(DatasetError, match="'never' is not one of the 1 classes"):
        COCOEvaluator(open_dataset(source, class_names=["nut"]))


def test_gathers_over_processes(tmp_path, monkeypatch):
    source = write(tmp_path / "a.json")
    other = COCOEvaluator(open_dataset(source))
    truth_as_answers(other, source)
    mine = COCOEvaluator(open_dataset(source))
    first = HUGE + 1
    mine._answers = {first: other._answers[first]}
    rest = {i: rows for i, rows in other._answers.items() if i != first}

    def gather(obj):
        return [obj, rest] if isinstance(obj, dict) else [obj, None]

    monkeypatch.setattr(comm, "all_gather", gather)
    assert mine.evaluate()["bbox"]["AP"] == pytest.approx(100.0)
    assert mine.details["per_class"][0]["class"] == "never"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"area_bounds": (9, 4)}, "area_bounds must be two ascending areas"),
        ({"area_bounds": "voc"}, "area_bounds must be coco, visdrone, ai-tod or two areas"),
        ({"max_detections": [10, 1]}, r"ascending integers of at least 1, got \[10, 1\]"),
        ({"area_bounds": 256}, "two ascending areas in square pixels, got 256"),
        ({"max_detections": 500}, r"ascending integers of at least 1, got 500"),
        ({"max_detections": []}, r"ascending integers"),
        ({"max_detections": [0, 10]}, r"ascending integers"),
        ({"max_detections": [1, 2.5]}, r"ascending integers"),
        ({"confusion_threshold": 30}, r"confusion_threshold must be in \[0, 1\], got 30"),
        ({"area_bounds": ["a", "b"]}, r"two ascending areas in square pixels, got \['a', 'b'\]"),
        ({"area_bounds": [None, 5]}, "two ascending areas in square pixels"),
        ({"confusion_threshold": "x"}, r"confusion_threshold must be in \[0, 1\], got 'x'"),
        ({"backend": ["cocoapi"]}, "backend must be pycocotools or faster-coco-eval"),
        ({"backend": "cocoapi"}, "backend must be pycocotools or faster-coco-eval"),
    ],
)
def test_refusals(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        COCOEvaluator(open_dataset(write(tmp_path / "a.json")), **arguments)


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    dataset = open_dataset(write(tmp_path / "a.json"))
    monkeypatch.setattr("sparsedet.evaluation.backends.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'sparsedet\[faster-eval\]'"):
        COCOEvaluator(dataset, backend="faster-coco-eval")
    monkeypatch.undo()
    monkeypatch.setattr("sparsedet.evaluation.coco.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'sparsedet\[plot\]'"):
        COCOEvaluator(dataset, plots=True)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("scores", float("nan"), r"must be finite, got of image .*nan"),
        ("pred_boxes", float("inf"), r"must be finite, got of image .*inf"),
        ("pred_classes", 3, r"pred_classes must be in 0 to 2, .* got 3 of image"),
        ("pred_classes", -1, r"pred_classes must be in 0 to 2, .* got -1 of image"),
    ],
)
def test_answers_that_count_for_nothing_are_refused_at_once(tmp_path, column, value, says):
    dataset = open_dataset(write(tmp_path / "a.json"))
    given = answer([[0, 0, 10, 10]], [0])
    filled = given["instances"].get(column)
    (filled.tensor if column == "pred_boxes" else filled).fill_(value)
    image_id = dataset.records[0]["image_id"]
    with pytest.raises(ValueError, match=says):
        COCOEvaluator(dataset).process([{"image_id": image_id}], [given])


def test_images_and_files_of_another_set(tmp_path):
    source = write(tmp_path / "a.json")
    with pytest.raises(ValueError, match="image_id 5"):
        COCOEvaluator(open_dataset(source)).process([{"image_id": 5}], [answer([], [])])
    with pytest.raises(DatasetError, match=r"gone\.json"):
        COCOEvaluator(open_dataset(str(tmp_path / "gone.json")))


def test_results_have_the_shape_that_detectron2_takes(tmp_path):
    """Its hook makes a float of every leaf; its printer wants numbers below each task."""
    source = write(tmp_path / "a.json")
    evaluator = COCOEvaluator(open_dataset(source))
    truth_as_answers(evaluator, source)
    results = evaluator.evaluate()
    assert list(results) == ["bbox"]
    assert all(type(value) is float for value in results["bbox"].values())
    whole = [name for name in results["bbox"] if "-" not in name]
    assert whole[:6] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [name for name in results["bbox"] if "-" in name] == ["AP-never", "AP-nut", "AP-bolt"]


def test_details_say_what_the_numbers_mean(tmp_path):
    source = write(tmp_path / "a.json", crowd={2})
    evaluator = COCOEvaluator(open_dataset(source), area_bounds="ai-tod")
    assert evaluator.details == {} and evaluator.max_detections == (1, 100, 1500)
    truth_as_answers(evaluator, source)
    evaluator.evaluate()
    rows = {row["class"]: row for row in evaluator.details.pop("per_class")}
    assert evaluator.details == {
        "unit": "percent",
        "area_bounds": [64, 256, 1024],
        "area_names": ["very tiny", "tiny", "small", "medium"],
        "max_detections": [1, 100, 1500],
        "backend": "pycocotools",
    }
    full = {name: pytest.approx(100) for name in ("AP", "AP50", "AR")}
    assert rows["nut"] == {"class": "nut", "images": 1, "boxes": 1, **full}  # the crowd is none
    assert rows["bolt"] == {"class": "bolt", "images": 2, "boxes": 2, **full}
    assert rows["never"]["boxes"] == 0 and math.isnan(rows["never"]["AP"])


def test_a_set_of_ignore_regions_alone(tmp_path, caplog):
    source = write(tmp_path / "a.json", {1: [([10, 10, 20, 20], 7)]}, crowd={0})
    evaluator = COCOEvaluator(open_dataset(source), output_dir=str(tmp_path / "out"), plots=True)
    evaluator.process([{"image_id": 1}], [answer([[10, 10, 20, 20]], [1])])
    results = evaluator.evaluate()["bbox"]
    assert all(math.isnan(value) for value in results.values())
    assert "has no annotated boxes, so AP is undefined" in caplog.text
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]
