"""Beside the real detectron2: structures, data sets, events, backbones and checkpoints."""

from __future__ import annotations

import copy
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparsedet.checkpoint import load_weights
from sparsedet.config import LazyConfig, instantiate
from sparsedet.data import DatasetError, DetectionMapper, TestLoader, open_dataset
from sparsedet.data.catalog import resolve_dataset
from sparsedet.evaluation import COCOEvaluator
from sparsedet.evaluation.loop import evaluate
from sparsedet.events import log_scalar
from sparsedet.modeling import TorchvisionResNet
from sparsedet.structures import Boxes, Instances
from tests.house.source import ROOT, name
from tests.modeling.small import NAMED, detector, samples

READER = "sparsedet.interop.detectron2.read_registered"
BACKBONES = sorted(ROOT.glob("projects/interop/configs/interop_focus_detr_detectron2_*.py"))
_numbers = itertools.count()


@pytest.fixture
def interop(detectron2):
    from sparsedet.interop import detectron2 as module

    return module


@pytest.fixture
def register(detectron2):
    """Registers records under a new name, which it returns."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    added = []

    def add(records, suffix: str = "", **metadata) -> str:
        added.append(f"set{next(_numbers)}{suffix}")
        DatasetCatalog.register(added[-1], lambda: copy.deepcopy(records))
        MetadataCatalog.get(added[-1]).set(**metadata)
        return added[-1]

    yield add
    for each in added:
        DatasetCatalog.remove(each)
        MetadataCatalog.remove(each)


@pytest.fixture
def files(shapes: Path) -> SimpleNamespace:
    folder = shapes / "datasets/shapes"
    return SimpleNamespace(
        annotations=folder / "annotations/instances_val.json", images=folder / "val"
    )


@pytest.fixture
def ours(files):
    return open_dataset(files.annotations, files.images)


@pytest.fixture
def theirs(files, register, detectron2):
    """Name of the set, read by detectron2's own function."""
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    empty = register([])  # its facts are filled by reading
    records = load_coco_json(str(files.annotations), str(files.images), empty)
    return register(records, **_facts(MetadataCatalog.get(empty)))


def _facts(metadata) -> dict:
    return {key: value for key, value in metadata.as_dict().items() if key != "name"}


# --- structures


def some_instances() -> Instances:
    return Instances(
        (48, 64),
        pred_boxes=Boxes(torch.tensor([[1.0, 2, 9, 12], [3, 4, 30, 40]])),
        scores=torch.tensor([0.9, 0.4]),
        pred_classes=torch.tensor([1, 0]),
    )


def test_instances_become_theirs(interop):
    from detectron2.structures import Boxes as TheirBoxes
    from detectron2.structures import Instances as TheirInstances
    from detectron2.structures import pairwise_iou

    instances = some_instances()
    found = interop.to_detectron2(instances)
    assert type(found) is TheirInstances and type(found.pred_boxes) is TheirBoxes
    assert found.image_size == (48, 64) and set(found.get_fields()) == set(instances.get_fields())
    assert found.scores is instances.scores
    joined = TheirInstances.cat([found, found])
    assert torch.equal(joined.pred_boxes.tensor[2:], instances.pred_boxes.tensor)
    assert torch.allclose(
        pairwise_iou(found.pred_boxes, found.pred_boxes).diagonal(), torch.ones(2)
    )


def test_results_pass_their_functions_as_they_are(detectron2):
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.utils.visualizer import Visualizer

    instances = some_instances()
    rows = instances_to_coco_json(instances, 7)
    assert [row["bbox"] for row in rows] == [[1, 2, 8, 10], [3, 4, 27, 36]]
    halved = detector_postprocess(some_instances(), 24, 32)
    assert torch.equal(halved.pred_boxes.tensor, instances.pred_boxes.tensor / 2)
    drawn = Visualizer(np.zeros((48, 64, 3), np.uint8)).draw_instance_predictions(instances)
    assert drawn.get_image().any()


# --- events


def test_events_reach_their_storage_once(interop):
    from detectron2.utils.events import EventStorage

    interop.forward_events()
    interop.forward_events()
    log_scalar("mine/outside", 1.0)  # nobody stores it, and nothing fails
    model = detector(NAMED["focus"]).train()
    with EventStorage() as storage:
        log_scalar("mine/value", torch.tensor(2.0, requires_grad=True))
        log_scalar("mine/value", 4.0)
        model(samples([(64, 96)], [2]))
    assert len(storage.history("mine/value").values()) == 2
    assert storage.latest()["mine/value"] == (4.0, 0)
    assert 0 < storage.latest()["keep_ratio"][0] <= 1
    assert "mine/outside" not in storage.latest()


# --- data sets


def test_a_registered_set_is_a_dataset_here(theirs, ours):
    found = open_dataset(theirs, format=READER)
    assert found.format == "detectron2"
    assert (found.class_names, found.category_ids) == (ours.class_names, ours.category_ids)
    assert len(found.records) == len(ours.records) > 0
    for mine, other in zip(ours.records, found.records, strict=True):
        areas = [entry.pop("area") for entry in other["annotations"]]
        assert areas == pytest.approx([e.pop("area") for e in mine["annotations"]], rel=0.2)
        assert other == mine


def test_its_areas_are_those_of_masks(register, files, theirs):
    from detectron2.data import DatasetCatalog

    (record, *_) = DatasetCatalog.get(theirs)
    triangle = [10.0, 10.0, 30.0, 10.0, 10.0, 30.0]
    from pycocotools import mask

    size = record["height"], record["width"]
    bare = {"bbox": [10, 10, 30, 30], "bbox_mode": 0, "category_id": 0}
    entries = [
        {**bare, "segmentation": [triangle]},
        {**bare, "segmentation": mask.frPyObjects([triangle], *size)[0]},
        {**bare, "iscrowd": 1},
    ]
    record["annotations"] = entries
    found = open_dataset(register([record], thing_classes=["a"]), format=READER)
    read = found.records[0]["annotations"]
    assert [entry["bbox"] for entry in read] == [[10, 10, 20, 20]] * 3
    assert [entry["area"] for entry in read] == pytest.approx([200, 200, 400], rel=0.1)
    assert read[2]["area"] == 400 and [entry["iscrowd"] for entry in read] == [0, 0, 1]


def test_a_config_names_it_by_the_part_before_the_split(register, theirs):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    facts, records = _facts(MetadataCatalog.get(theirs)), DatasetCatalog.get(theirs)
    train = register(records, "_train", **facts)
    stem = train.removesuffix("_train")
    DatasetCatalog.register(f"{stem}_val", lambda: records)
    MetadataCatalog.get(f"{stem}_val").set(**facts)
    cfg = LazyConfig.load(ROOT / "configs/quickstart.py")
    cfg.dataset.update(path=stem, format=READER)
    try:
        resolve_dataset(cfg)
    finally:
        DatasetCatalog.remove(f"{stem}_val")
        MetadataCatalog.remove(f"{stem}_val")
    assert list(cfg.dataset.class_names) == facts["thing_classes"]


BOX = {"bbox": [1, 1, 5, 5], "bbox_mode": 1, "category_id": 0}


@pytest.mark.parametrize(
    ("entry", "metadata", "sentence"),
    [
        (BOX, {}, r"its classes are not in detectron2's MetadataCatalog"),
        (
            {**BOX, "category_id": 2},
            {"thing_classes": ["a", "b"]},
            r"category_id 2 in image 0 is none",
        ),
        (
            {**BOX, "bbox": [1, 1, 5, 5, 30], "bbox_mode": 4},
            {"thing_classes": ["a"]},
            r"must be in pixels and upright .* got 4 in image 0",
        ),
        (
            BOX,
            {"thing_classes": ["a", "b"], "thing_dataset_id_to_contiguous_id": {5: 0, 3: 1}},
            r"must have an id for each of the 2 thing_classes, rising",
        ),
        (
            BOX,
            {"thing_classes": ["a", "b"], "thing_dataset_id_to_contiguous_id": {5: 0}},
            r"must have an id for each of the 2 thing_classes, rising",
        ),
        (
            {**BOX, "bbox": [1, 1, float("nan"), 5]},
            {"thing_classes": ["a"]},
            r"four finite numbers",
        ),
    ],
)
def test_what_is_wrong_with_a_registered_set(register, theirs, entry, metadata, sentence):
    from detectron2.data import DatasetCatalog

    record = {**DatasetCatalog.get(theirs)[0], "annotations": [entry], "image_id": 0}
    with pytest.raises(DatasetError, match=sentence):
        open_dataset(register([record], **metadata), format=READER)


def test_what_is_wrong_with_the_name(theirs):
    with pytest.raises(DatasetError, match=rf"no data set '{theirs}0' is registered.*{theirs}"):
        open_dataset(theirs + "0", split="val", format=READER)
    with pytest.raises(DatasetError, match=r"got the folder 'pictures'.*train_images=null"):
        open_dataset(theirs, "pictures", format=READER)


def test_our_set_under_a_name_of_theirs(interop, ours, files):
    from detectron2.data import (
        DatasetCatalog,
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
    )

    name = f"ours{next(_numbers)}"
    interop.register_dataset(name, ours)
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    loader = build_detection_test_loader(DatasetCatalog.get(name), mapper=mapper)
    own = DetectionMapper(transforms=[])
    for record, (sample,) in zip(ours.records, loader, strict=True):
        expected = own(record)
        assert torch.equal(sample["image"], expected["image"])
        found = sample["instances"]
        assert torch.allclose(found.gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
        assert torch.equal(found.gt_classes, expected["instances"].gt_classes)
    again = open_dataset(name, format=READER)
    assert (again.class_names, again.category_ids) == (ours.class_names, ours.category_ids)
    facts = MetadataCatalog.get(name)
    ids = {i: number for number, i in enumerate(ours.category_ids)}
    assert facts.thing_dataset_id_to_contiguous_id == ids
    assert facts.evaluator_type == "coco"
    with pytest.raises(ValueError, match=rf"name must be new, got '{name}'"):
        interop.register_dataset(name, ours)
    with pytest.raises(ValueError, match=r"must have pictures"):
        interop.register_dataset("other", open_dataset(files.annotations))


def test_both_evaluators_agree(interop, ours, tmp_path):
    """AP of detections that are the objects themselves, a little moved and some left out."""
    from detectron2.evaluation import COCOEvaluator as TheirEvaluator
    from detectron2.evaluation import print_csv_format

    name = f"ours{next(_numbers)}"
    interop.register_dataset(name, ours)
    theirs = TheirEvaluator(name, output_dir=str(tmp_path), use_fast_impl=False)
    loader = TestLoader(ours, mapper=DetectionMapper(transforms=[]), batch_size=2)
    mine = COCOEvaluator(ours)
    expected = evaluate(_Guess(), loader, mine)["bbox"]
    found = evaluate(_Guess(), loader, theirs)["bbox"]
    print_csv_format({"bbox": expected})
    assert 10 < found["AP"] < 90
    for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert expected[key] == pytest.approx(found[key], abs=1e-6, nan_ok=True), key
    names = [key for key in found if key.startswith("AP-")]
    assert len(names) == len(ours.class_names)
    for key in names:
        assert expected.get(key, np.nan) == pytest.approx(found[key], abs=1e-6, nan_ok=True), key


class _Guess(torch.nn.Module):
    def forward(self, batch):
        torch.manual_seed(0)
        results = []
        for sample in batch:
            truth = sample["instances"]
            boxes = truth.gt_boxes.tensor + torch.randn(len(truth), 4)
            results.append(
                Instances(
                    truth.image_size,
                    pred_boxes=Boxes(boxes),
                    scores=torch.rand(len(truth)),
                    pred_classes=truth.gt_classes,
                )[1:]
            )
        return [{"instances": each} for each in results]


# --- backbones


@pytest.mark.parametrize("path", BACKBONES, ids=name)
def test_configs_load_by_both_and_their_parts_fit(path, detectron2):
    from detectron2.config import LazyConfig as TheirConfig
    from detectron2.config import instantiate as their_instantiate

    cfg = LazyConfig.load(path)
    other = TheirConfig.load(str(path))
    assert set(cfg) == set(other)
    assert re.sub(r"\s", "", str(cfg)) == re.sub(r"\s", "", str(other))
    for model in (cfg.model, other.model):
        model.backbone.pop("weights", None)
        model.update(embed_dim=32, num_classes=3)
        for stack in (model.encoder, model.decoder):
            stack.update(num_layers=1, num_heads=2, feedforward_dim=16)
        model.selector.layer_ratios = [0.3]
        model.query_initializer.num_queries = 10
    torch.manual_seed(0)
    ours = instantiate(cfg.model).eval()
    torch.manual_seed(0)
    theirs = their_instantiate(other.model).eval()
    batch = [{"image": torch.randint(256, (3, 72, 104), dtype=torch.uint8)}]
    with torch.no_grad():
        (mine,), (found,) = ours(batch), theirs(batch)
    assert torch.equal(mine["instances"].scores, found["instances"].scores)
    assert len(mine["instances"]) > 0


def test_their_resnet_equals_ours_on_equal_weights(detectron2):
    from detectron2.modeling.backbone import BasicStem, ResNet

    maps = ["res3", "res4", "res5"]
    stages = ResNet.make_default_stages(depth=50, stride_in_1x1=False, norm="FrozenBN")
    stem = BasicStem(in_channels=3, out_channels=64, norm="FrozenBN")
    theirs = ResNet(stem, stages, out_features=maps).eval()
    ours = TorchvisionResNet("resnet50", out_features=maps).eval()
    state = {_torchvision_name(key): value for key, value in theirs.state_dict().items()}
    ours.body.load_state_dict(state)
    images = torch.randn(2, 3, 70, 101)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    for each in maps:
        assert torch.allclose(found[each], expected[each], rtol=1e-4, atol=1e-5)


def _torchvision_name(key: str) -> str:
    key = re.sub(r"^stem\.", "", key)
    key = re.sub(r"^res(\d)", lambda found: f"layer{int(found[1]) - 1}", key)
    key = key.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    return re.sub(r"conv(\d)\.norm", r"bn\1", key)


# --- checkpoints


def test_checkpoints_go_both_ways(detectron2, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    first, second = (detector(NAMED["focus"], seed=seed) for seed in range(2))
    DetectionCheckpointer(first, str(tmp_path)).save("theirs")
    assert load_weights(second, tmp_path / "theirs.pth").num_loaded == len(first.state_dict())
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)
    torch.save({"model": first.state_dict()}, tmp_path / "ours.pth")
    for parameter in second.parameters():
        parameter.data.zero_()
    DetectionCheckpointer(second).load(str(tmp_path / "ours.pth"))
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)


# --- without it


def test_without_detectron2_one_sentence_says_so(root, tmp_path):
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "try:\n    import sparsedet.interop.detectron2\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "needs detectron2, which cannot be imported" in done.stdout, done.stderr
