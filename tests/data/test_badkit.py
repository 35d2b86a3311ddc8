"""The kit of broken data sets: each case must end as its manifest says, never in a traceback."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sparsedet.config import get_config
from sparsedet.data import (
    DatasetError,
    DetectionMapper,
    DETRAugmentation,
    ResizeShortSide,
    TestLoader,
    TrainLoader,
    open_dataset,
    resolve_dataset,
)
from sparsedet.evaluation import COCOEvaluator
from sparsedet.structures import Boxes, Instances
from sparsedet.survey import Survey
from tests.data_files import bad_sets
from tests.data_files.good_set import Draft

SHARED = Path(__file__).resolve().parents[3] / "shared" / "badkit"


class OwnKit:
    """The sets of `tests/data_files/bad_sets.py`, written when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drafts: dict[str, Draft] = {}

    def case(self, case_id: str) -> bad_sets.Case:
        return next(case for case in bad_sets.CASES if case.id == case_id)

    def path(self, case_id: str) -> Path:
        path = self.folder / case_id
        if case_id not in self.drafts:
            self.drafts[case_id] = self.case(case_id).draft()
            self.drafts[case_id].write(path)
        return path


# what the other kit calls the ways in which reading a set ends
OUTCOMES = {"error": bad_sets.REFUSED, "warn_skip": bad_sets.LESS, "accept": bad_sets.FINE}


class SharedKit(OwnKit):
    """Sets of the same kinds that others made, with what they expect of each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "kit" / "cases")
        command = [sys.executable, "-W", "ignore", str(SHARED / "make_badkit.py")]
        subprocess.run([*command, str(folder / "kit")], check=True, capture_output=True)
        listed = json.loads((SHARED / "manifest.json").read_text())["cases"]
        self.listed = {case["id"]: case for case in listed}

    def case(self, case_id: str) -> bad_sets.Case:
        listed = self.listed[case_id]
        ends = {OUTCOMES[each] for each in (listed["expect"], *listed["also_ok"])}
        if bad_sets.FINE in ends:  # a word may be said, and must be where they ask for one
            ends.add(bad_sets.SAID)
            # whether there are too many objects depends on the model
            if listed["warn"] and "val_annotations" not in listed and case_id != "objects_500":
                ends.remove(bad_sets.FINE)
        names = ("img1.jpg",) if case_id == "control_good" else tuple(listed["bad"])
        return bad_sets.Case(case_id, lambda draft: None, tuple(ends), names)

    def path(self, case_id: str) -> Path:
        return self.folder / case_id


@pytest.fixture(scope="module", params=[OwnKit, SharedKit], ids=["own", "shared"])
def kit(request, tmp_path_factory):
    if request.param is SharedKit and not SHARED.is_dir():
        pytest.skip("needs ../shared/badkit, which is not here")
    return request.param(tmp_path_factory.mktemp("kit"))


def paths(kit, case_id):
    path = kit.path(case_id)
    return str(path / "instances.json"), str(path / "images")


def train_loader(annotations, images):
    mapper = DetectionMapper([DETRAugmentation([48, 64], 128)])
    return TrainLoader(
        open_dataset(annotations, images, skip_broken_images=True),
        mapper=mapper,
        total_batch_size=2,
    )


def plain_loader(annotations, images):
    mapper = DetectionMapper([ResizeShortSide(64, 128)])
    return TestLoader(open_dataset(annotations, images), mapper=mapper, batch_size=2)


def truth_as_answer(sample):
    targets = sample["instances"]
    boxes = Boxes(targets.gt_boxes.tensor.clone())
    height, width = targets.image_size
    boxes.scale(sample["width"] / width, sample["height"] / height)
    return {
        "instances": Instances(
            (sample["height"], sample["width"]),
            pred_boxes=boxes,
            scores=torch.ones(len(boxes)),
            pred_classes=targets.gt_classes,
        )
    }


def check_samples(samples):
    for sample in samples:
        height, width = sample["image"].shape[1:]
        assert sample["image"].shape[0] == 3
        assert sample["image"].dtype == torch.uint8
        assert 1 <= min(height, width) <= max(height, width) <= 128
        boxes = sample["instances"].gt_boxes.tensor
        assert boxes.isfinite().all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= boxes.new_tensor([width, height, width, height])).all()


by_case = pytest.mark.parametrize("case_id", [case.id for case in bad_sets.CASES])


@by_case
def test_training_set(kit, case_id, caplog):
    annotations, images = paths(kit, case_id)
    case = kit.case(case_id)
    try:
        loader = train_loader(annotations, images)
        batches = [loader.batches[i] for i in range(3 * len(loader))]
        check_samples(loader.dataset[key] for batch in batches for key in batch)
    except DatasetError as error:
        assert bad_sets.REFUSED in case.ends, error
        message = str(error)
        assert case_id in message
        for name in case.names:
            assert name in message or repr(name)[1:-1] in message
        assert "\n" not in message
        return
    assert set(case.ends) - {bad_sets.REFUSED}
    if not {bad_sets.LESS, bad_sets.SAID} & set(case.ends):
        assert not caplog.messages
    elif bad_sets.FINE not in case.ends:
        assert caplog.messages, "must be said"
    if case_id in kit.drafts:  # of the other kit the sizes are not known
        draft = kit.drafts[case_id]
        lost_images, lost_objects = case.lost
        assert len(loader.source.records) == len(draft.images) - lost_images
        assert loader.source.num_objects == len(draft.objects) - lost_objects
        for name in case.names if case.lost != (0, 0) else ():
            assert name in caplog.text


def test_more_objects_than_the_model_answers_are_said_of_the_model(kit):
    loader = train_loader(*paths(kit, "objects_500"))
    sets = {"training": (loader.source, loader.mapper)}
    said = " ".join(Survey.of(sets, get_config("quickstart")).misfits())
    assert "350 of" in said and "model.query_initializer.num_queries" in said


def test_the_kinds_are_those_of_the_other_kit(shared):
    listed = json.loads((shared / "badkit/manifest.json").read_text())["cases"]
    assert {case["id"] for case in listed} == {case.id for case in bad_sets.CASES}


@by_case
def test_validation_set_scores_its_own_truth(kit, case_id, caplog):
    annotations, images = paths(kit, case_id)
    unreadable = kit.case(case_id).lost[0] > 0  # a picture left out would change the metric
    try:
        loader = plain_loader(annotations, images)
        evaluator = COCOEvaluator(open_dataset(annotations))
        for batch in loader:
            evaluator.process(batch, [truth_as_answer(sample) for sample in batch])
    except DatasetError:
        assert unreadable or bad_sets.REFUSED in kit.case(case_id).ends
    else:
        assert not unreadable
        average = evaluator.evaluate()["bbox"]["AP"]
        if case_id in ("missing_key_annotations", "no_annotations_at_all"):
            assert math.isnan(average)  # the objects of a test set may be kept back
            assert "has no annotated boxes, so AP is undefined" in caplog.text
        else:
            crowded = case_id == "objects_500"  # the evaluation looks at 100 per image
            assert (average > 99) != crowded


def sample_of(kit, case_id):
    """The sample of the picture that the case is about."""
    annotations, images = paths(kit, case_id)
    name = kit.case(case_id).names[0]
    records = open_dataset(annotations, images).records
    (record,) = [r for r in records if r["file_name"].endswith(name)]
    return DetectionMapper([])(record, None)


def colors_inside_boxes_fit(sample):
    """Class 0 is red and class 1 blue, as the kit paints them."""
    image = sample["image"].float()
    targets = sample["instances"]
    for box, label in zip(targets.gt_boxes.tensor, targets.gt_classes, strict=True):
        x0, y0, x1, y1 = (box + 0.5).int().tolist()
        red, _, blue = image[:, y0:y1, x0:x1].mean(dim=(1, 2))
        assert (red > blue) == (label == 0)


@pytest.mark.parametrize(
    ("case_id", "shape"),
    [
        ("png_named_jpg", (64, 96)),
        ("cmyk_jpeg", (64, 96)),
        ("palette_alpha_png", (64, 96)),
        ("rgba_png", (64, 96)),
        ("exif6_json_shown_size", (96, 64)),
        ("exif6_json_stored_size", (64, 96)),
        ("animated_gif", (64, 96)),
        ("name_emoji", (64, 96)),
        ("control_good", (64, 96)),
    ],
)
def test_pixels_and_boxes_agree(kit, case_id, shape):
    sample = sample_of(kit, case_id)
    assert tuple(sample["image"].shape[1:]) == shape
    assert (sample["height"], sample["width"]) == shape
    assert len(sample["instances"]) == 3
    colors_inside_boxes_fit(sample)


@pytest.mark.parametrize("case_id", ["gray_jpeg", "gray_16bit_png"])
def test_gray_has_three_equal_channels_and_is_not_clipped(kit, case_id):
    image = sample_of(kit, case_id)["image"].float()
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    assert 100 < image.mean() < 135


@pytest.mark.parametrize(
    ("case_id", "expected"),
    [
        ("bbox_negative_origin", [0, 0, 17, 18]),
        ("bbox_partly_outside", [80, 20, 16, 20]),
        ("bbox_zero_width", None),
        ("bbox_fully_outside", None),
        ("bbox_1e12", None),
        ("bbox_negative", None),
    ],
)
def test_one_bad_box(kit, case_id, expected):
    control = open_dataset(*paths(kit, "control_good")).records[0]["annotations"]
    entries = open_dataset(*paths(kit, case_id)).records[0]["annotations"]
    if expected is None:
        assert entries == [control[0], *control[2:]]
    else:
        assert entries[1]["bbox"] == expected
        assert len(entries) == len(control)


def test_rounding_is_clipped_in_the_sample(kit):
    record = open_dataset(*paths(kit, "bbox_one_px_over")).records[0]
    boxes = DetectionMapper([])(record, None)["instances"].gt_boxes.tensor
    np.testing.assert_allclose(boxes[1], [76.4, 20, 96, 40], rtol=1e-6)


def test_missing_size_area_and_ids_are_filled(kit):
    control = open_dataset(*paths(kit, "control_good")).records
    for case_id in ("image_no_size", "ann_no_area_iscrowd", "ann_no_id", "area_wrong"):
        for record, good in zip(open_dataset(*paths(kit, case_id)).records, control, strict=True):
            assert (record["width"], record["height"]) == (96, 64)
            assert record["annotations"] == good["annotations"]


def test_crowds_are_no_targets_but_stay_in_the_records(kit):
    records = open_dataset(*paths(kit, "iscrowd")).records
    assert [a["iscrowd"] for a in records[0]["annotations"]] == [0, 0, 0, 1]
    assert len(DetectionMapper([])(records[0], None)["instances"]) == 3
    only_crowd = open_dataset(*paths(kit, "iscrowd_only_image")).records[1]
    assert len(DetectionMapper([])(only_crowd, None)["instances"]) == 0


def test_ids_come_back_exactly(kit):
    dataset = open_dataset(*paths(kit, "category_ids_gaps"))
    assert dataset.category_ids == (7, 1000)
    assert {a["category_id"] for r in dataset.records for a in r["annotations"]} == {0, 1}
    huge = open_dataset(*paths(kit, "image_ids_huge")).records
    assert [r["image_id"] for r in huge] == [2**60 + i for i in range(1, 5)]


@pytest.mark.parametrize(
    ("case_id", "words"),
    [
        ("json_cut", "line 1 column"),
        ("json_latin1", "not UTF-8"),
        ("missing_key_images", "'images' is missing"),
        ("all_boxes_xyxy", "corners"),
        ("all_boxes_normalised", "fractions"),
        ("all_image_files_missing", "none of the 4"),
        ("name_backslash", "sub/in.jpg"),
        ("name_nfc_vs_nfd", "Unicode form NFD"),
        ("path_traversal", "leaves the image folder"),
        ("path_absolute", "leaves the image folder"),
        ("size_swapped", "96x64"),
    ],
)
def test_messages_name_the_cause(kit, case_id, words):
    with pytest.raises(DatasetError) as error:
        open_dataset(*paths(kit, case_id))
    assert words in str(error.value)
    assert "instances.json" in str(error.value)


@pytest.mark.parametrize("case_id", ["missing_key_annotations", "no_annotations_at_all"])
def test_nothing_to_learn_is_an_error_in_training(kit, case_id):
    annotations, images = paths(kit, case_id)
    with pytest.raises(DatasetError, match="'annotations' is missing or empty"):
        train_loader(annotations, images)
    sets = dict.fromkeys(("train_json", "val_json"), annotations)
    sets |= dict.fromkeys(("train_images", "val_images"), images)
    cfg = OmegaConf.create({"dataset": {**sets, "class_names": None, "num_classes": None}})
    with pytest.raises(DatasetError, match="AP is undefined"):
        resolve_dataset(cfg)
    resolve_dataset(cfg, ("val",))


def test_categories_under_swapped_ids_are_matched_by_name(kit):
    case = kit.path("train_val_categories_differ")
    names = open_dataset(str(case / "instances.json")).class_names
    source = str(case / "instances_val.json")
    dataset = open_dataset(source, str(case / "images"), class_names=names)
    loader = TestLoader(
        dataset,
        mapper=DetectionMapper([]),
    )
    evaluator = COCOEvaluator(dataset)
    for batch in loader:
        for sample in batch:
            colors_inside_boxes_fit(sample)
        evaluator.process(batch, [truth_as_answer(sample) for sample in batch])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)
