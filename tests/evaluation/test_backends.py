"""The evaluator against COCOeval called by hand, and the two packages against each other."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparsedet.data import open_dataset
from sparsedet.evaluation import COCOEvaluator
from tests.evaluation.test_coco import answer

NUM_IMAGES, CLASSES = 12, ((7, "nut"), (20, "bolt"), (3, "never"), (30, "always a crowd"))
ARGUMENTS = [
    {},
    {"area_bounds": (100, 400)},
    {"max_detections": [1, 10, 500]},
    {"max_detections": [2]},
    {"area_bounds": "coco"},
    {"area_bounds": "visdrone"},
    {"area_bounds": "ai-tod"},
    {"area_bounds": "ai-tod", "max_detections": [5, 50]},
]


def draw(seed):
    """Objects of very different sizes, crowds, shifted and spurious detections, many in one image.

    Returns:
        A COCO document, and per image boxes (xywh), classes and scores of the detections.
    """
    random = np.random.default_rng(seed)
    ids = [i for i, _ in CLASSES]
    document = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 900, "height": 900}
            for i in range(1, NUM_IMAGES + 1)
        ],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in CLASSES],
    }
    found = {image["id"]: ([], [], []) for image in document["images"]}
    for image_id, (boxes, classes, scores) in found.items():
        for _ in range(160 if image_id == 1 else 7):
            size = 2 ** random.uniform(1.5, 7, 2)
            box = [*random.uniform(0, 700, 2), *size]
            kind = int(random.choice([0, 1, 3], p=[0.5, 0.4, 0.1]))
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": ids[kind],
                    "bbox": [float(v) for v in box],
                    "area": float(size.prod()),
                    "iscrowd": int(kind == 3 or random.random() < 0.1),
                }
            )
            for _ in range(int(random.integers(0, 4))):
                boxes.append(box + np.array([*size, *size]) * random.normal(0, 0.08, 4))
                classes.append(kind if random.random() < 0.9 else int(random.integers(4)))
                scores.append(round(float(random.random()), 2))  # some are equal
        boxes.append([*random.uniform(0, 700, 2), 30, 30])
        classes.append(int(random.integers(4)))
        scores.append(0.5)
    return document, found


def run(folder, document, found, **arguments):
    """The evaluator's results and details, and what it wrote."""
    (folder / "a.json").write_text(json.dumps(document))
    dataset = open_dataset(str(folder / "a.json"))
    evaluator = COCOEvaluator(dataset, output_dir=str(folder), **arguments)
    own = [dataset.class_names.index(name) for _, name in CLASSES]
    for image_id, (boxes, classes, scores) in found.items():
        output = answer(np.array(boxes).tolist(), [own[c] for c in classes], scores)
        evaluator.process([{"image_id": image_id}], [output])
    results = evaluator.evaluate()["bbox"]
    written = [json.loads((folder / f"{n}.json").read_text()) for n in ("curves", "confusion")]
    return results, evaluator.details, *written


def reference(document, found, *, bounds, max_detections, use_cats=1):
    """COCOeval as its own documentation calls it: `eval["precision"]`, `eval["recall"]`."""
    truth = COCO()
    truth.dataset = json.loads(json.dumps(document))
    truth.createIndex()
    rows = []
    for image_id, (boxes, classes, scores) in found.items():
        x, y, w, h = torch.tensor(np.array(boxes), dtype=torch.float32).unbind(1)
        # as a detector tells them: corners in single precision
        boxes = torch.stack((x, y, (x + w) - x, (y + h) - y), dim=1).double().tolist()
        ids = [CLASSES[c][0] for c in classes]
        scores = torch.tensor(scores).double().tolist()
        for box, category_id, score in zip(boxes, ids, scores, strict=True):
            rows.append(
                {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            )
    evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
    edges = itertools.pairwise([0, *bounds, 1e10])
    evaluation.params.areaRng = [[0, 1e10], *map(list, edges)]
    evaluation.params.maxDets = max_detections
    evaluation.params.useCats = use_cats
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def mean(values):
    values = values[values > -1]
    return 100 * values.mean() if values.size else math.nan


COCOS = ([1024, 9216], ["s", "m", "l"], [1, 10, 100])
EXPECTED = [
    COCOS,
    ([100, 400], ["s", "m", "l"], [1, 10, 100]),
    ([1024, 9216], ["s", "m", "l"], [1, 10, 500]),
    ([1024, 9216], ["s", "m", "l"], [2]),
    COCOS,
    ([1024, 9216], ["s", "m", "l"], [1, 10, 100, 500]),
    ([64, 256, 1024], ["vt", "t", "s", "m"], [1, 100, 1500]),
    ([64, 256, 1024], ["vt", "t", "s", "m"], [5, 50]),
]


@pytest.mark.parametrize(("arguments", "expected"), list(zip(ARGUMENTS, EXPECTED, strict=True)))
def test_agrees_with_pycocotools_called_by_hand(tmp_path, capsys, arguments, expected):
    bounds, sizes, counts = expected
    document, found = draw(0)
    results, details, curves, _ = run(tmp_path, document, found, **arguments)
    precision, recall = reference(document, found, bounds=bounds, max_detections=counts)
    wanted = {
        "AP": mean(precision[..., 0, -1]),
        "AP50": mean(precision[0, ..., 0, -1]),
        "AP75": mean(precision[5, ..., 0, -1]),
    }
    wanted |= {f"AR{count}": mean(recall[:, :, 0, i]) for i, count in enumerate(counts)}
    wanted |= {f"AP{s}": mean(precision[..., i, -1]) for i, s in enumerate(sizes, 1)}
    wanted |= {f"AR{s}": mean(recall[:, :, i, -1]) for i, s in enumerate(sizes, 1)}
    by_id = sorted(CLASSES)
    wanted |= {f"AP-{n}": mean(precision[:, :, i, 0, -1]) for i, (_, n) in enumerate(by_id)}
    agnostic, _ = reference(document, found, bounds=bounds, max_detections=counts, use_cats=0)
    wanted["AP50_class_agnostic"] = mean(agnostic[0, ..., 0, -1])
    assert results == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert 5 < results["AP"] < 95
    for row, (i, (_, name)) in zip(details["per_class"], enumerate(by_id), strict=True):
        assert row["class"] == name
        assert row["AP50"] == pytest.approx(mean(precision[0, :, i, 0, -1]), nan_ok=True)
        assert row["AR"] == pytest.approx(mean(recall[:, i, 0, -1]), nan_ok=True)
    for iou, place in (("0.50", 0), ("0.75", 5)):
        for i, (_, name) in enumerate(by_id):
            line = precision[place, :, i, 0, -1]
            if name in ("nut", "bolt"):
                got = curves[iou]["classes"][name]["precision"]
                assert got == pytest.approx(list(100 * line), abs=1e-4)
            else:
                assert name not in curves[iou]["classes"] and (line == -1).all()
        assert np.mean(curves[iou]["mean"]) == pytest.approx(results[f"AP{iou[2:]}"], abs=1e-4)


def test_the_cases_differ(tmp_path):
    """Each of the settings above changes a number, so that the tests would see it ignored."""
    document, found = draw(0)
    seen = []
    for place, arguments in enumerate(ARGUMENTS):
        (tmp_path / str(place)).mkdir()
        seen.append(run(tmp_path / str(place), document, found, **arguments)[0])
    assert seen[2]["AP"] > seen[0]["AP"] > seen[3]["AP"]
    assert seen[1]["APs"] != pytest.approx(seen[0]["APs"])
    assert seen[7]["AP"] < seen[6]["AP"]


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_faster_coco_eval_gives_the_same(tmp_path, arguments, seed):
    pytest.importorskip("faster_coco_eval", reason="needs the extra faster-eval")
    document, found = draw(seed)
    slow = run(tmp_path, document, found, **arguments)
    fast = run(tmp_path, document, found, backend="faster-coco-eval", **arguments)
    assert fast[0] == pytest.approx(slow[0], abs=1e-6, nan_ok=True)
    assert fast[1].pop("backend") == "faster-coco-eval" != slow[1].pop("backend")
    for mine, theirs in zip(fast[1].pop("per_class"), slow[1].pop("per_class"), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    assert fast[1:] == slow[1:]  # bounds and counts; curves with scores; the confusion matrix


def test_faster_coco_eval_on_empty_images_and_without_detections(tmp_path):
    pytest.importorskip("faster_coco_eval", reason="needs the extra faster-eval")
    document, found = draw(0)
    nothing = {image_id: ([], [], []) for image_id in found}
    assert run(tmp_path, document, nothing, backend="faster-coco-eval")[0]["AP"] == 0.0
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] == 2]
    slow = run(tmp_path, document, found)[0]
    fast = run(tmp_path, document, found, backend="faster-coco-eval")[0]
    assert fast == pytest.approx(slow, abs=1e-6, nan_ok=True)
