"""What the fields of annotation files mean: numbers, flags, ids and areas, whoever wrote them."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from sparsedet.data import (
    DatasetError,
    DetectionMapper,
    TestLoader,
    TrainLoader,
    open_dataset,
)
from sparsedet.data.validate import findings
from sparsedet.evaluation import COCOEvaluator
from sparsedet.structures import Boxes, Instances

NAN, INF, LONG = math.nan, math.inf, 10**400
DOCUMENT = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8], "area": 80, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [20, 5, 9, 9], "area": 81, "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [4, 4, 12, 6], "area": 72, "iscrowd": 0},
        {"id": 4, "image_id": 2, "category_id": 2, "bbox": [5, 8, 20, 7], "area": 140},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


@pytest.fixture
def write(tmp_path):
    """Writes a document beside its two pictures; returns what `open_dataset` takes."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), (9, 99, 9)).save(tmp_path / name)

    def to_file(document, name="set.json"):
        (tmp_path / name).write_text(json.dumps(document))
        return str(tmp_path / name), str(tmp_path)

    return to_file


def changed(key, place, field, value):
    document = copy.deepcopy(DOCUMENT)
    document[key][place][field] = value
    return document


def flags(dataset):
    return [entry["iscrowd"] for record in dataset.records for entry in record["annotations"]]


# --- single fields --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(
    ("value", "means", "said"),
    [
        (0, 0, False),
        (1, 1, False),
        (0.0, 0, False),
        (1.0, 1, False),
        (None, 0, False),
        (False, 0, False),
        (True, 1, False),
        ("0", 0, True),
        ("1", 1, True),
        ("0.0", 0, True),
        ("false", 0, True),
        ("True", 1, True),
        ("no", 0, True),
    ],
)
def test_flags_are_never_a_matter_of_truthiness(write, caplog, key, value, means, said):
    dataset = open_dataset(*write(changed("annotations", 1, key, value)))
    assert flags(dataset) == [0, means, 0, 0]
    sentence = f"annotation 2: its '{key}' is a string; it is read as true or false"
    assert (sentence in caplog.text) == said
    assert ("'ignore' is set: an ignore region" in caplog.text) == (key == "ignore" and means == 1)


@pytest.mark.parametrize(
    "key", ["isCrowd", "is_crowd", "ignored", "Ignore", "difficult", "gt_ignore"]
)
@pytest.mark.parametrize(("value", "said"), [(1, True), ("1", True), (0, False), (None, False)])
def test_flags_under_another_key_are_told(write, caplog, key, value, said):
    dataset = open_dataset(*write(changed("annotations", 1, key, value)))
    assert flags(dataset) == [0, 0, 0, 0]
    assert (f"annotation 2: its '{key}' is not used" in caplog.text) == said


@pytest.mark.parametrize(("group", "told"), [("attributes", 1), ("extra", 1), ("other", 0)])
def test_flags_in_fields_of_labelling_programs_are_told(write, caplog, group, told):
    document = changed("annotations", 1, group, {"ignore": 1, "occluded": True, "iscrowd": 0})
    assert flags(open_dataset(*write(document))) == [0, 0, 0, 0]
    assert caplog.text.count(f"annotation 2: its '{group}.ignore' is not used") == told
    assert caplog.text.count("WARNING") == told


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize("value", ["", "crowd", "2", 2, -1, 0.5, [], [0], {}, NAN, INF, LONG])
def test_what_is_no_flag_is_refused_by_name(write, key, value):
    with pytest.raises(DatasetError, match=rf"annotation 2 \({key} .*'{key}' must be 0 or 1"):
        open_dataset(*write(changed("annotations", 1, key, value)))


@pytest.mark.parametrize(
    ("key", "field", "value", "words"),
    [
        ("images", "width", 40.0, None),
        ("images", "width", "40", "image 1: its 'width' or 'height' is written as a string"),
        ("images", "width", "40.0", "image 1: its 'width' or 'height' is written as a string"),
        ("images", "id", 1.0, None),
        ("annotations", "image_id", 1.0, None),
        ("annotations", "image_id", "1", "annotation 1: its 'image_id' is a string; it is read as"),
        ("annotations", "category_id", 1.0, None),
        ("annotations", "category_id", "1", "annotation 1: its 'category_id' is a string; it is"),
        ("annotations", "bbox", ["2", "3.0", "1e1", " 8 "], "a number of its 'bbox' is written as"),
        ("annotations", "area", "80", "annotation 1: its 'area' is written as a string"),
        ("categories", "id", 1.0, None),
        ("categories", "id", "1", "category '1': its 'id' is written as a string"),
    ],
)
@pytest.mark.parametrize("pictures", [True, False])
def test_numbers_are_numbers_however_they_are_written(
    write, caplog, key, field, value, words, pictures
):
    path, folder = write(changed(key, 0, field, value))
    plain = open_dataset(*write(DOCUMENT, "plain.json"))
    assert not caplog.messages
    dataset = open_dataset(path, folder if pictures else None)
    assert dataset.class_names == plain.class_names
    assert dataset.category_ids == (1, 2)
    for mine, theirs in zip(dataset.records, plain.records, strict=True):
        assert mine["annotations"] == theirs["annotations"]
        assert (mine["image_id"], mine["width"]) == (theirs["image_id"], theirs["width"])
        assert [type(mine[name]) for name in ("image_id", "width")] == [int, int]
    assert caplog.text.count("WARNING") == (words is not None)
    assert words is None or words in caplog.text


@pytest.mark.parametrize(
    ("key", "field", "values", "words"),
    [
        ("images", "width", [640.5, "x", "", True, NAN, INF, LONG, [40], {}, 0, -40, None],
         r"image 1 \('a\.png', .* x 30\): 'width' and 'height' must be positive whole numbers"),
        ("images", "id", [None, True, 0.5, NAN, INF, [1], {}, ""],
         r"images\[0\] \(id .*'id' must be a whole number or a string"),
        ("images", "file_name", [5, True, [], {}, NAN, LONG],
         r"image 1 \(file_name .*'file_name' must be a string"),
        ("annotations", "image_id", [True, False, 0.5, NAN, INF, [1], {}, ""],
         r"annotation 1 \(image_id .*must be an 'id' in 'images'"),
        ("annotations", "category_id", [True, 0.5, NAN, INF, [1], {}, ""],
         r"annotation 1 \(category_id .*must be an 'id' in 'categories'"),
        ("annotations", "bbox", [None, [], 5, "2,3,4,5", [1, 2, 3], [1, 2, 3, True],
                                 [1, 2, 3, None], [1, 2, 3, "x"], [1, 2, 3, NAN], [1, 2, 3, LONG]],
         r"annotation 1 \(bbox .*'bbox' must be four finite numbers"),
        ("annotations", "bbox", [{"x": 1, "y": 2, "width": 3, "height": 4}],
         r"annotation 1 .*must be a list \[x, y, width, height\], not an object"),
        ("categories", "id", [None, True, 0.5, NAN, INF, [1], {}, "a", ""],
         r"category .*: 'id' must be a whole number"),
        ("categories", "name", [None, True, "", " ", [], {}, NAN, "\ud800"],
         r"category 1 \(name .*'name' must be a non-empty string"),
    ],
)  # fmt: skip
def test_what_is_no_value_of_a_field_is_refused_by_name(write, key, field, values, words):
    for place, value in enumerate(values):
        path, folder = write(changed(key, 0, field, value), f"{place}.json")
        for images in (folder, None):
            with pytest.raises(DatasetError, match=words) as error:
                open_dataset(path, images)
            assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", [0, -5, "x", "", True, [], {}, NAN, INF, LONG])
def test_an_area_that_is_none_becomes_width_x_height(write, caplog, value):
    dataset = open_dataset(*write(changed("annotations", 0, "area", value)))
    assert dataset.records[0]["annotations"][0]["area"] == 80
    assert "annotation 1: its 'area' is not a positive number" in caplog.text


def test_a_number_as_a_name_is_its_text(write, caplog):
    assert open_dataset(*write(changed("categories", 0, "name", 7))).class_names == ("7", "dog")
    assert "category 1 (name 7): its 'name' is a number; it is read as a string" in caplog.text


def test_a_fault_of_all_entries_is_said_once_with_a_count(write, caplog):
    document = copy.deepcopy(DOCUMENT)
    for entry in document["annotations"]:
        entry["iscrowd"] = "0"
    open_dataset(*write(document))
    assert len(caplog.messages) == 1
    assert "annotation 1, annotation 2, annotation 3 and 1 more: its 'iscrowd'" in caplog.text


# --- ignore regions -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_training_set_of_ignore_regions_alone_is_an_error(write, key):
    document = copy.deepcopy(DOCUMENT)
    for entry in document["annotations"]:
        entry[key] = 1
    dataset = open_dataset(*write(document))
    assert dataset.num_objects == 4
    with pytest.raises(DatasetError, match=r"not a single usable box.*ignore regions or unusable"):
        TrainLoader(dataset, mapper=DetectionMapper([]), total_batch_size=1)


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_training_and_evaluation_agree_on_ignore_regions(write, key):
    """No target; a detection in one is not wrong, and none that finds nothing is missed."""
    dataset = open_dataset(*write(changed("annotations", 1, key, 1)))
    assert len(DetectionMapper([])(dataset.records[0])["instances"]) == 1

    def score(boxes_of_first):
        evaluator = COCOEvaluator(dataset)
        for (sample,) in TestLoader(dataset, mapper=DetectionMapper([])):
            targets = sample["instances"]
            found = targets.gt_boxes.tensor, targets.gt_classes
            if sample["image_id"] == 1 and boxes_of_first:
                extra = torch.tensor([box for box, _ in boxes_of_first], dtype=torch.float32)
                labels = torch.tensor([label for _, label in boxes_of_first])
                found = torch.cat((found[0], extra)), torch.cat((found[1], labels))
            answer = Instances(
                targets.image_size,
                pred_boxes=Boxes(found[0]),
                scores=torch.linspace(0.5, 0.9, len(found[0])),
                pred_classes=found[1],
            )
            evaluator.process([sample], [{"instances": answer}])
        return evaluator.evaluate()["bbox"]["AP"]

    assert score([]) == pytest.approx(100)
    inside = ([21.0, 6.0, 24.0, 9.0], 1)  # a part of the region
    assert score([inside, ([20.0, 5.0, 29.0, 14.0], 1)]) == pytest.approx(100)
    assert score([([30.0, 20.0, 38.0, 28.0], 1)]) < 90  # elsewhere it is wrong


# --- what refers to what --------------------------------------------------------------------------


def test_ids_that_are_texts_match_numbers(write, caplog):
    document = copy.deepcopy(DOCUMENT)
    for image in document["images"]:
        image["id"] = f"{image['id']}"
    dataset = open_dataset(*write(document))
    assert [len(record["annotations"]) for record in dataset.records] == [2, 2]
    assert [record["image_id"] for record in dataset.records] == ["1", "2"]
    assert "and 1 more: its 'image_id' is a number, but the 'id' in 'images' is a" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("image_id", "a.png", "its 'image_id' is a string, but every 'id' in 'images' is a number"),
        ("category_id", "cat", "its 'category_id' is a string, but every 'id' in 'categories' is"),
    ],
)
def test_ids_of_another_type_that_match_nothing_name_both_types(write, field, value, words):
    document = copy.deepcopy(DOCUMENT)
    for entry in document["annotations"]:
        entry[field] = value
    with pytest.raises(DatasetError, match=words) as error:
        open_dataset(*write(document))
    assert "such as 1" in str(error.value)
    assert "not a single usable box" not in str(error.value)


def test_annotations_of_other_images_are_an_error_unless_a_part_was_taken(write, caplog):
    part = copy.deepcopy(DOCUMENT)
    part["annotations"] += [
        {**part["annotations"][0], "id": i, "image_id": i} for i in range(9, 40)
    ]
    assert open_dataset(*write(part)).num_objects == 4
    assert "annotation 9, annotation 10, annotation 11 and 28 more: its 'image_id' is not in" in (
        caplog.text
    )
    other = copy.deepcopy(DOCUMENT)
    for entry in other["annotations"]:
        entry["image_id"] += 500
    with pytest.raises(DatasetError, match=r"like that of 4 of 4 annotations, and 2 of 2"):
        open_dataset(*write(other, "other.json"))


def test_equal_entries_of_an_image_are_one(write, caplog):
    document = copy.deepcopy(DOCUMENT)
    document["images"].append(dict(document["images"][0]))
    assert len(open_dataset(*write(document)).records) == 2
    assert "image 1: it is listed more than once; counted once" in caplog.text
    document["images"][2]["file_name"] = "b.png"
    with pytest.raises(DatasetError, match="image 1: the id occurs twice"):
        open_dataset(*write(document, "other.json"))


@pytest.mark.parametrize("box", [[5, 5, 0, 0], [900, 5, 10, 10]])
def test_half_of_the_boxes_is_not_left_out_with_a_warning(write, box):
    document = copy.deepcopy(DOCUMENT)
    for entry in document["annotations"][:2]:
        entry["bbox"] = box
    with pytest.raises(DatasetError, match="2 of 4 boxes: they have no width or height, or are"):
        open_dataset(*write(document))


def test_equal_categories_are_one_and_an_unused_namesake_is_left_out(write, caplog):
    document = copy.deepcopy(DOCUMENT)
    document["categories"] += [{"id": "1", "name": "cat"}, {"id": 0, "name": "dog"}]
    dataset = open_dataset(*write(document))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids == (1, 2)
    assert "category 1 ('cat'): it is listed more than once; counted once" in caplog.text
    assert (
        "category 0 ('dog'): another id has the same name, and no annotation uses this"
        in caplog.text
    )
    document["annotations"][0]["category_id"] = 0
    with pytest.raises(DatasetError, match=r"category 'dog': two ids have this name"):
        open_dataset(*write(document, "used.json"))


@pytest.mark.parametrize("name", ["Cat", " cat", "c at", "\uff43at"])
def test_names_that_differ_in_form_alone_are_told(write, caplog, name):
    document = copy.deepcopy(DOCUMENT)
    document["categories"].append({"id": 7, "name": name})
    assert len(open_dataset(*write(document)).class_names) == 3
    assert f"categories 'cat' and {name!r}: the names differ only in case, spaces or" in caplog.text


@pytest.mark.parametrize("name", ["Cat", "\uff43at"])
def test_classes_of_another_file_that_differ_in_form_alone_are_told(write, name):
    dataset = open_dataset(*write(DOCUMENT))
    with pytest.raises(DatasetError, match=f"{name!r} differs only in case, spaces or Unicode"):
        dataset.with_classes([name, "dog"])


def test_a_box_smaller_than_floats_tell_has_no_width(write, caplog):
    open_dataset(*write(changed("annotations", 1, "bbox", [5, 5, 1e-300, 1e-300])))
    assert "its box has no width or height; left out" in caplog.text


@pytest.mark.parametrize(
    ("case", "expected"),
    [("iscrowd_text", [0, 0]), ("ignore_flag", [1, 0]), ("via_export", [0, 0])],
)
def test_cases_that_load(shared, case, expected):
    folder = shared / "cases" / case
    assert flags(open_dataset(folder / "ann.json", folder / "img")) == expected


# --- lists of another layout ---------------------------------------------------------------------


def top(key, value):
    return {**copy.deepcopy(DOCUMENT), key: value}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (top("images", {"1": {"file_name": "a.png"}}), "'images' must be a list, got an object"),
        (top("annotations", {"1": [{}]}), r"'annotations' must be a list, got an object\. Write"),
        (top("annotations", None), "'annotations' must be a list, got null"),
        (
            top("categories", ["cat"]),
            r"'categories'\[0\] must be an object, got a string \('cat'\)",
        ),
        (top("images", ["a.png"]), r"'images'\[0\] must be an object, got a string.*\"file_name\""),
        (
            {
                "images": [{"id": 1, "file_name": "a.png", "objects": [{}]}],
                "categories": [{"id": 1, "name": "cat"}],
            },
            "'annotations' is missing .* entries of 'images' have lists 'objects', which are not",
        ),
        (
            top("annotations", [{"image_id": 1, "category_id": 1, "keypoints": [1, 2, 2]}]),
            r"annotations\[0\] .*Keypoints do not replace it",
        ),
    ],
)
def test_other_layouts_of_the_lists_are_told_with_the_mend(write, document, words):
    with pytest.raises(DatasetError, match=words):
        open_dataset(*write(document))


def test_scores_are_not_used_and_that_is_said(write, caplog):
    open_dataset(*write(changed("annotations", 0, "score", 0.3)))
    assert "annotation 1: its 'score' is not used" in caplog.text


# --- anything at all ------------------------------------------------------------------------------

VALUES = (
    None, "", " ", "text", "1", "1.0", "-1", "1e400", "NaN", "true", "???", "${oc.env:HOME}",
    "\ud800", "a\nb", "\x00", "9" * 500, [], [1], [[1]], {}, {"x": 1}, 0, -1, 2, 0.5, 1.0, 640.5,
    1e9, -1e9, 1e150, 1e300, LONG, -LONG, 2**63, NAN, INF, -INF, True, False, ["1", "2", "3", "4"],
    [1, 2, 3, 4, 5], [1e149] * 4, [1e-200] * 4, [[1, 2], [3, 4]],
    {"counts": [1, 2], "size": [3, 4]}, {"counts": "~", "size": [3, 4]},
    {"counts": None, "size": 1}, {"counts": [LONG], "size": [LONG]},
)  # fmt: skip


def places():
    """Where something may stand: lists, entries, fields, and numbers in fields."""
    for key, entries in DOCUMENT.items():
        yield (key,)
        yield (key, 0)
        for field in [*entries[0], *(("ignore", "segmentation") if key == "annotations" else ())]:
            yield (key, 0, field)
    yield from (("annotations", 0, "bbox", i) for i in range(4))


def documents(place):
    """The document with each value at a place, and without one."""
    for value in (*VALUES, KeyError):
        document = copy.deepcopy(DOCUMENT)
        node = document
        for step in place[:-1]:
            node = node[step]
        if value is not KeyError:
            node[place[-1]] = value
        elif isinstance(node, list):
            del node[place[-1]]
        else:
            node.pop(place[-1], None)
        if place[-1] == "segmentation":
            del document["annotations"][0]["bbox"]
        yield document


def use(dataset):
    """Reads a sample for training and takes the set for evaluation; how many boxes it has."""
    if dataset.images is not None:
        COCOEvaluator(dataset)
        if dataset.has_targets():
            loader = TrainLoader(dataset, mapper=DetectionMapper([]), total_batch_size=1)
            assert loader.dataset[0]["instances"].gt_boxes.tensor.isfinite().all()
    return dataset.num_objects


@pytest.mark.parametrize("place", list(places()), ids=str)
def test_any_value_in_any_place_is_one_sentence_or_records(write, caplog, monkeypatch, place):
    monkeypatch.setenv("HOME", "what the environment says")
    for number, document in enumerate(documents(place)):
        path, folder = write(document, f"{number}.json")
        for images in (folder, None):
            caplog.clear()
            monkeypatch.setattr(findings, "_already_logged", set())  # a sentence is said once
            try:
                kept = use(open_dataset(path, images))
                said = list(caplog.messages)
            except DatasetError as error:
                kept, said = None, [str(error)]
            assert said or kept == len(document.get("annotations", [])), document
            for sentence in said:
                assert "\n" not in sentence
                assert "what the environment says" not in sentence
                assert len(sentence) < 800
        Path(path).unlink()
