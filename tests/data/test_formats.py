"""COCO, LVIS, Pascal VOC and YOLO give the same records, are checked alike, and are read once."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask

from sparsedet.config import ConfigError, LazyConfig, instantiate
from sparsedet.data import (
    DatasetError,
    DetectionMapper,
    TrainLoader,
    open_dataset,
    resolve_classes,
    resolve_dataset,
    write_coco,
)
from sparsedet.data.formats import Source
from sparsedet.data.shapes import CLASS_NAMES, write_shapes
from sparsedet.evaluation import COCOEvaluator
from tests.data.written import write_voc, write_yolo, xml
from tests.data_files.yaml_texts import LAUGHS

WRITERS = {"voc": write_voc, "yolo": write_yolo}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "shapes"
    write_shapes(folder, num_train=4, num_val=2)
    return folder


@pytest.fixture(params=list(WRITERS))
def other(request, shapes, tmp_path):
    """The shapes in another format."""
    return WRITERS[request.param](tmp_path / request.param, shapes)


def picture(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 9)).save(path, **options)
    return path


def boxes(dataset):
    return [[entry["bbox"] for entry in record["annotations"]] for record in dataset.records]


# --- the same records -----------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_format_gives_the_records_of_the_same_set(shapes, other, split):
    truth = open_dataset(str(shapes), split=split)
    found = open_dataset(str(other), split=split, class_names=CLASS_NAMES)
    assert (truth.format, found.format) == ("coco", other.name)
    assert truth.num_objects == found.num_objects > 0
    assert len(truth.records) == len(found.records)
    for true, record in zip(truth.records, found.records, strict=True):
        pixels = np.asarray(Image.open(record["file_name"]))
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(true["file_name"])))
        assert {k: record[k] for k in ("height", "width", "image_id")} == {
            k: true[k] for k in ("height", "width", "image_id")
        }
        for mine, theirs in zip(true["annotations"], record["annotations"], strict=True):
            for key in ("category_id", "iscrowd", "bbox_mode"):
                assert mine[key] == theirs[key]
            np.testing.assert_allclose(mine["bbox"], theirs["bbox"], atol=1e-4)
            np.testing.assert_allclose(mine["area"], theirs["area"], rtol=1e-4)


def test_a_converted_set_reads_back_as_it_was(other, tmp_path):
    before = open_dataset(str(other), split="train")
    write_coco(before, tmp_path / "out" / "train.json")
    after = open_dataset(str(tmp_path / "out" / "train.json"), before.images)
    assert list(after.records) == list(before.records)
    assert after.class_names == before.class_names
    assert after.category_ids == before.category_ids
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["train.json"]


def test_conversion_keeps_ids_and_gives_absent_classes_free_ones(make_set, tmp_path):
    annotations, images = make_set([(20, 20)] * 2)
    dataset = open_dataset(annotations, images, class_names=["dog", "cow", "cat"])
    write_coco(dataset, tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert [(each["id"], each["name"]) for each in content["categories"]] == [
        (2, "dog"),
        (3, "cow"),
        (1, "cat"),
    ]
    assert [each["file_name"] for each in content["images"]] == ["0.png", "1.png"]
    assert [(a["image_id"], a["category_id"]) for a in content["annotations"]] == [(0, 1), (1, 2)]


def test_a_format_can_be_said_and_must_exist(other):
    named = open_dataset(str(other), split="val", format=other.name)
    assert list(named.records) == list(open_dataset(str(other), split="val").records)
    with pytest.raises(ValueError, match=r"must be auto, coco, voc, yolo or .*, got 'pascal'"):
        open_dataset(str(other), split="val", format="pascal")
    (other / "annotations").mkdir()
    (other / "annotations" / "instances_val.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"has .* and .*dataset\.format="):
        open_dataset(str(other), split="val")


def test_a_reader_of_ones_own_is_named_by_its_path(shapes, monkeypatch):
    """What it gives is checked as files are."""
    module = ModuleType("my_formats")
    picture = next((shapes / "val").glob("*.png"))
    entry = {"image_id": "a", "category_id": 4, "bbox": [2.0, 3, 5, 6]}
    asked = []

    def read_mine(path, images, split, findings):
        asked.append((path, images, split))
        return Source(
            path=path,
            format="mine",
            root=str(picture.parent),
            categories=[{"id": 4, "name": "thing"}],
            images=[{"id": "a", "file_name": picture.name}],
            annotations=[entry],
        )

    module.read_mine = read_mine
    monkeypatch.setitem(sys.modules, "my_formats", module)
    found = open_dataset("my set", split="val", format="my_formats.read_mine")
    assert asked == [("my set", None, "val")]
    assert (found.source, found.format, found.class_names) == ("my set", "mine", ("thing",))
    assert found.records[0]["file_name"] == str(picture)
    assert found.records[0]["annotations"][0]["bbox"] == [2, 3, 5, 6]
    assert open_dataset("my set", split="val", format="my_formats.read_mine") is found
    entry["bbox"] = [2.0, 3, math.nan, 6]
    with pytest.raises(DatasetError, match=r"another set: .* must be four finite numbers"):
        open_dataset("another set", format="my_formats.read_mine")
    with pytest.raises(ConfigError, match=r"my_formats has no 'read'"):
        open_dataset("my set", format="my_formats.read")


def test_one_key_trains_on_a_set_with_its_parts(other):
    path = other / "data.yaml" if other.name == "yolo" else other
    cfg = LazyConfig.apply_overrides(
        LazyConfig.load(Path("configs/quickstart.py").resolve()), [f"dataset.path={path}"]
    )
    resolve_dataset(cfg)
    assert sorted(cfg.dataset.class_names) == sorted(CLASS_NAMES)
    cfg.dataloader.test.num_workers = cfg.dataloader.train.num_workers = 0
    assert len(instantiate(cfg.dataloader.train).dataset) == 4
    test = instantiate(cfg.dataloader.test)
    assert sum(len(batch) for batch in test) == 2
    names = LazyConfig.apply_overrides(
        LazyConfig.load(Path("configs/quickstart.py").resolve()), [f"dataset.path={path}"]
    )
    resolve_classes(names)
    assert names.dataset.class_names == cfg.dataset.class_names


# --- read once ------------------------------------------------------------------------------------


def test_a_json_file_is_read_once_in_a_process(shapes, tmp_path, monkeypatch):
    shutil.copytree(shapes, tmp_path / "mine")
    reads = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda s, **k: reads.append(len(s)) or loads(s, **k))
    cfg = LazyConfig.apply_overrides(
        LazyConfig.load(Path("configs/quickstart.py").resolve()),
        [
            f"dataset.{split}_{kind}={tmp_path}/mine/{place}"
            for split in ("train", "val")
            for kind, place in (
                ("json", f"annotations/instances_{split}.json"),
                ("images", split),
            )
        ],
    )
    resolve_dataset(cfg)
    train = instantiate(cfg.dataloader.train)
    test, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    sizes = [
        (tmp_path / f"mine/annotations/instances_{s}.json").stat().st_size for s in ("train", "val")
    ]
    assert reads == sizes
    assert test.dataset[0]["image_id"] in evaluator._places
    resolve_dataset(cfg)
    assert reads == sizes
    assert instantiate(cfg.dataloader.test.dataset) is evaluator._dataset
    # processes that are handed the loader have what they need
    shutil.rmtree(tmp_path / "mine/annotations")
    copy = pickle.loads(pickle.dumps(train.dataset))
    assert copy[0]["image_id"] == train.dataset[0]["image_id"]


def test_a_changed_file_is_read_again(make_set, shapes, tmp_path):
    annotations, images = make_set([(20, 20)] * 3)
    first = open_dataset(annotations, images)
    assert open_dataset(annotations, images) is first
    reordered = open_dataset(annotations, images, class_names=["dog", "cat"])
    assert open_dataset(annotations, images, class_names=("dog", "cat")) is reordered
    content = json.loads(Path(annotations).read_text())
    content["annotations"][1]["category_id"] = 1
    Path(annotations).write_text(json.dumps(content))
    os.utime(annotations, ns=(1, 1))  # even where the clock is coarse
    again = open_dataset(annotations, images)
    assert again is not first
    assert again.records[1]["annotations"][0]["category_id"] == 0
    view = open_dataset(annotations, images, class_names=["dog", "cat"])
    assert view.records[1]["annotations"][0]["category_id"] == 1
    voc = write_voc(tmp_path / "voc", shapes)
    whole = open_dataset(str(voc))
    (voc / "Annotations" / "train_000001.xml").unlink()
    os.utime(voc / "Annotations", ns=(1, 1))
    assert len(open_dataset(str(voc)).records) == len(whole.records) - 1


def test_records_are_read_only(make_set):
    dataset = open_dataset(*make_set([(20, 20)] * 3))
    dataset.records[0]["annotations"].clear()
    assert len(dataset.records[0]["annotations"]) == 1
    assert [r["image_id"] for r in dataset.records[1:]] == [1, 2]
    assert dataset.records[-1]["image_id"] == 2


def test_a_set_without_pictures_is_refused_by_the_loader(make_set):
    annotations, _ = make_set([(20, 20)])
    with pytest.raises(DatasetError, match=r"opened without.*images=FOLDER"):
        TrainLoader(open_dataset(annotations), mapper=DetectionMapper([]), total_batch_size=1)


# --- COCO and LVIS --------------------------------------------------------------------------------


def coco(tmp_path, annotations, image=None, **more):
    picture(tmp_path / "val2017" / "a.png")
    image = {"id": 1, "file_name": "val2017/a.png", "width": 40, "height": 30, **(image or {})}
    image = {key: value for key, value in image.items() if value is not None}
    full = [{"id": i, "image_id": 1, "category_id": 1, **a} for i, a in enumerate(annotations)]
    content = {"images": [image], "annotations": full, "categories": [{"id": 1, "name": "cat"}]}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content | more))
    return str(path), str(tmp_path)


def test_a_segmentation_without_a_box_gives_its_box(tmp_path, caplog):
    filled = np.zeros((30, 40), np.uint8, order="F")
    filled[5:15, 10:30] = 1
    packed = mask.encode(filled)
    packed["counts"] = packed["counts"].decode()
    runs = {"size": [30, 40], "counts": [305, 10] + [20, 10] * 19 + [305]}
    polygons = [[1, 2, 8, 2, 8, 9], [4, 20, 12.5, 20, 12.5, 1]]
    segmentations = [{"segmentation": each} for each in (polygons, packed, runs)]
    dataset = open_dataset(*coco(tmp_path, segmentations))
    assert boxes(dataset) == [[[1, 1, 11.5, 19], [10, 5, 20, 10], [10, 5, 20, 10]]]
    assert "annotation 0, annotation 1, annotation 2: it has no 'bbox'" in caplog.text
    broken = coco(tmp_path, [{"segmentation": [[1, 2, 3]]}, {"segmentation": [1, 2]}])
    with pytest.raises(DatasetError, match="'bbox' must be four finite numbers"):
        open_dataset(*broken)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"segmentation": {"size": [30, 40], "counts": [-5, 10]}}, "must be four finite numbers"),
        ({"bbox": [10**400, 1, 2, 2]}, "must be four finite numbers"),
        ({"bbox": [1, 2, 3, 4], "iscrowd": "x"}, r"\(iscrowd 'x'\): 'iscrowd' must be 0 or 1"),
        ({"bbox": [1, 2, 3, 4], "iscrowd": [0]}, "'iscrowd' must be 0 or 1"),
    ],
)
def test_odd_values_of_coco_name_their_annotation(tmp_path, entry, words):
    with pytest.raises(DatasetError, match=rf"annotation 0 .*{words}"):
        open_dataset(*coco(tmp_path, [entry]))


def test_a_mask_without_pixels_is_not_taken_for_fractions(tmp_path, caplog):
    empty = {"segmentation": {"size": [30, 40], "counts": [30 * 40]}}
    assert open_dataset(*coco(tmp_path, [empty])).num_objects == 0
    assert "no width or height; left out" in caplog.text


def test_a_number_too_long_names_its_file(tmp_path):
    path, images = coco(tmp_path, [{"bbox": [1, 2, 3, 4]}])
    Path(path).write_text(Path(path).read_text().replace("40", "4" * 5000))
    with pytest.raises(DatasetError, match=r"coco\.json' is not valid JSON"):
        open_dataset(path, images)


def test_lvis_names_pictures_by_address_and_is_said_to_be_federated(tmp_path, caplog):
    image = {
        "file_name": None,
        "coco_url": "http://images.example/val2017/a.png",
        "neg_category_ids": [1],
        "not_exhaustive_category_ids": [],
    }
    dataset = open_dataset(*coco(tmp_path, [{"bbox": [1, 2, 3, 4]}], image))
    assert dataset.records[0]["file_name"] == str(tmp_path / "val2017/a.png")
    assert "lower than LVIS's own AP" in caplog.text


def test_repeated_categories_and_ids_of_another_type(tmp_path, caplog):
    """As VIA writes them: a category per image, and the image's id as a text."""
    found = [{"image_id": "1", "bbox": box} for box in ([8, 6, 20, 16], [20, 10, 12, 18])]
    twice = [{"id": 1, "name": "part"}] * 2
    dataset = open_dataset(*coco(tmp_path, found, categories=twice))
    assert boxes(dataset) == [[[8, 6, 20, 16], [20, 10, 12, 18]]]
    assert dataset.class_names == ("part",)
    assert "listed more than once" in caplog.text
    assert "its 'image_id' is a string; it is read as a number, like every 'id' in" in caplog.text


def test_classes_are_in_the_order_of_their_ids(tmp_path):
    """Not in that of the file: training and validation files may list them differently."""
    listed = [{"id": 9, "name": "last"}, {"id": 2, "name": "first"}, {"id": 4, "name": "middle"}]
    found = [{"bbox": [1, 2, 3, 4], "category_id": i} for i in (9, 2, 4)]
    dataset = open_dataset(*coco(tmp_path, found, categories=listed))
    assert dataset.class_names == ("first", "middle", "last")
    assert dataset.category_ids == (2, 4, 9)
    assert [e["category_id"] for e in dataset.records[0]["annotations"]] == [2, 0, 1]


@pytest.mark.parametrize("listed", [True, False])
def test_a_test_set_without_annotations_gives_predictions(listed, tmp_path, caplog):
    path, images = coco(tmp_path, [])
    if not listed:
        content = json.loads(Path(path).read_text())
        del content["annotations"]
        Path(path).write_text(json.dumps(content))
    evaluator = COCOEvaluator(open_dataset(path, images), output_dir=str(tmp_path))
    results = evaluator.evaluate()["bbox"]
    assert math.isnan(results["AP"])
    assert (tmp_path / "predictions.json").is_file()
    assert "has no annotated boxes, so AP is undefined" in caplog.text


# --- Pascal VOC -----------------------------------------------------------------------------------


def voc(folder, files, listed=None):
    """A devkit: files by stem, each (file name in the XML, size, objects)."""
    for stem, (name, size, objects) in files.items():
        picture(folder / "JPEGImages" / f"{stem}.png")
        path = folder / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(xml(name, size, objects))
    if listed is not None:
        (folder / "ImageSets/Main").mkdir(parents=True)
        (folder / "ImageSets/Main/train.txt").write_text("".join(f"{s}\n" for s in listed))
    return folder


def test_voc_counts_pixels_from_one_and_marks_what_is_difficult(tmp_path, caplog):
    objects = [("dog", False, (1, 1, 40, 30)), ("cat", True, (11, 6, 30, 15))]
    files = {"a": ("a", (40, 30), objects), "b": ("other.jpg", None, objects[:1])}
    dataset = open_dataset(str(voc(tmp_path / "set", files)))
    assert dataset.class_names == ("cat", "dog")
    assert boxes(dataset) == [[[0, 0, 40, 30], [10, 5, 20, 10]], [[0, 0, 40, 30]]]
    entries = dataset.records[0]["annotations"]
    assert [(e["category_id"], e["iscrowd"]) for e in entries] == [(1, 0), (0, 1)]
    assert [Path(r["file_name"]).name for r in dataset.records] == ["a.png", "b.png"]
    assert (dataset.records[1]["width"], dataset.records[1]["height"]) == (40, 30)
    assert "a.xml object 2: marked as difficult" in caplog.text
    assert "'b.xml': it gives no size" in caplog.text


def test_parts_of_voc(tmp_path):
    box = [("dog", False, (1, 1, 9, 9))]
    files = {stem: (f"{stem}.png", (40, 30), box) for stem in "abc"}
    voc(tmp_path / "kit/VOC2007", files, listed=["c", "a.png"])
    voc(tmp_path / "kit/VOC2012", {"d": files["a"]}, listed=["d"])

    def names(path, **options):
        found = open_dataset(str(path), **options).records
        return [os.path.relpath(r["file_name"], tmp_path / "kit") for r in found]

    one = ["VOC2007/JPEGImages/a.png", "VOC2007/JPEGImages/c.png"]
    assert names(tmp_path / "kit/VOC2007", split="train") == one
    assert names(tmp_path / "kit/VOC2007/Annotations", split="train") == one
    assert names(tmp_path / "kit", split="train") == [*one, "VOC2012/JPEGImages/d.png"]
    with pytest.raises(
        DatasetError, match=r"'val' are unknown, since there is neither ImageSets/Main/val\.txt"
    ):
        open_dataset(str(tmp_path / "kit/VOC2007"), split="val")
    (tmp_path / "kit/VOC2007/Annotations/c.xml").unlink()
    with pytest.raises(DatasetError, match=r"'c\.xml': it is listed but does not exist"):
        open_dataset(str(tmp_path / "kit/VOC2007"), split="train")
    flat = tmp_path / "flat"
    for split in ("train", "valid"):
        picture(flat / split / f"{split}.jpg")
        (flat / split / f"{split}.xml").write_text(xml("x.jpg", (40, 30), box))
        found = open_dataset(str(flat), split="val" if split == "valid" else split)
        assert [Path(r["file_name"]).name for r in found.records] == [f"{split}.jpg"]
    given = open_dataset(str(flat / "train"), str(flat / "train"), split="train")
    assert len(given.records) == 1
    with pytest.raises(DatasetError, match="give the folders of each part"):
        open_dataset(str(flat / "train"), split="train")


def test_faults_of_voc_are_named_by_file_and_object(tmp_path, caplog):
    box = [("dog", False, (1, 1, 9, 9))]
    bad = [*box, ("dog", False, (1, "x", 9, 9)), ("dog", False, (100, 1, 200, 9))]
    folder = voc(tmp_path / "set", {"a": ("a", (40, 30), bad)})
    with pytest.raises(DatasetError, match=r"a\.xml object 2 \(ymin 'x'\): its corners must be"):
        open_dataset(str(folder))
    (folder / "Annotations/a.xml").write_text(xml("a", (40, 30), [bad[0], bad[2]]))
    assert open_dataset(str(folder)).num_objects == 1
    assert "a.xml object 2 (bbox [99, 0, 101, 9]): its box is outside" in caplog.text
    (folder / "Annotations/a.xml").write_text("<annotation><object>")
    with pytest.raises(DatasetError, match=r"'a\.xml' .*cannot be read"):
        open_dataset(str(folder))
    (folder / "Annotations/a.xml").write_text("<html/>")
    with pytest.raises(DatasetError, match="not <annotation>"):
        open_dataset(str(folder))
    (folder / "Annotations/a.xml").write_text(xml("a", (30, 40), box))
    with pytest.raises(DatasetError, match="is 40x30 pixels, but the annotation file says 30x40"):
        open_dataset(str(folder))


def test_lists_of_voc(tmp_path):
    box = [("dog", False, (1, 1, 9, 9))]
    files = {stem: (f"{stem}.png", (40, 30), box) for stem in ("a", "my pic", "c")}
    folder = voc(tmp_path / "set", files, listed=["a  1", "my pic -1", "c.xml"])
    listed = folder / "ImageSets/Main/train.txt"
    listed.write_bytes(b"\xef\xbb\xbf" + listed.read_bytes().replace(b"\n", b"\r\n"))
    found = open_dataset(str(folder), split="train").records
    assert [Path(r["file_name"]).stem for r in found] == ["a", "c", "my pic"]
    listed.write_text("\n")
    with pytest.raises(DatasetError, match=r"train\.txt is empty"):
        open_dataset(str(folder), split="train")
    listed.write_bytes(b"\xe4\n")
    with pytest.raises(DatasetError, match=r"train\.txt' must be a list of pictures in UTF-8"):
        open_dataset(str(folder), split="train")


def test_what_programs_write_into_voc(tmp_path, caplog):
    corners = [("dog", False, (20, 12, 11, 6))]
    files = {"a": ("a", ("inf", 30), corners), "b": ("b", (40, 30), corners)}
    folder = voc(tmp_path / "set", files)
    path = folder / "Annotations/b.xml"
    text = path.read_text().replace("<difficult>0<", "<difficult>True<")
    path.with_suffix(".XML").write_text(text)
    path.unlink()
    dataset = open_dataset(str(folder))
    assert boxes(dataset) == [[[10, 5, 10, 7]]] * 2
    assert [r["annotations"][0]["iscrowd"] for r in dataset.records] == [0, 1]
    assert "a.xml object 1, b.xml object 1: its corners are in the wrong order" in caplog.text
    assert "'a.xml': it gives no size" in caplog.text


@pytest.mark.parametrize("kind", ["encoding", "folder"])
def test_an_xml_file_that_cannot_be_opened_is_named(tmp_path, kind):
    folder = voc(tmp_path / "set", {"a": ("a", (40, 30), [])})
    path = folder / "Annotations/a.xml"
    text = '<?xml version="1.0" encoding="nope"?>' + path.read_text()
    path.unlink()
    path.mkdir() if kind == "folder" else path.write_text(text)
    with pytest.raises(DatasetError, match=r"'a\.xml' .*cannot be read\. Write it again"):
        open_dataset(str(folder))


def test_polygons_of_voc_do_not_hide_the_box(tmp_path):
    text = xml("a", (40, 30), [("dog", False, (1, 1, 9, 9))])
    polygon = "<polygon><x1>3</x1><y1>3</y1><x2>5</x2><y2>9</y2><x3></x3></polygon>"  # cut
    folder = voc(tmp_path / "set", {"a": ("a", (40, 30), [])})
    (folder / "Annotations/a.xml").write_text(text.replace("</object>", f"{polygon}</object>"))
    assert boxes(open_dataset(str(folder))) == [[[0, 0, 9, 9]]]


# --- YOLO -----------------------------------------------------------------------------------------


def yolo(folder, rows, **content):
    """A set: rows by stem (None: no label file), and what data.yaml says beside the defaults."""
    for stem, text in rows.items():
        picture(folder / "images" / f"{stem}.png")
        if text is not None:
            path = folder / "labels" / f"{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    content = {"names": ["cat", "dog"], "train": "images", **content}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "data.yaml")


BOX = "1 0.5 0.5 0.5 0.2\n"


@pytest.mark.parametrize("number", [int, str])
def test_more_than_ten_classes_of_yolo_are_in_the_order_of_their_numbers(tmp_path, number):
    names = {number(i): f"class {i}" for i in range(12)}
    dataset = open_dataset(yolo(tmp_path, {"a": "2 0.5 0.5 0.5 0.2\n"}, names=names))
    assert dataset.class_names == tuple(names.values())
    assert dataset.records[0]["annotations"][0]["category_id"] == 2


def test_rows_of_yolo_that_are_no_plain_boxes(tmp_path, caplog):
    rows = {
        "a": BOX + "\n0 0.25 0.5 0.5 0.2 0.9\n",
        "b": "0 0.25 0.5 0.5 0.5 0.5 1.0\n1 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n",
        "empty": "",
        "none": None,
    }
    dataset = open_dataset(yolo(tmp_path, rows))
    found = [np.round(each, 4).tolist() for each in boxes(dataset)]
    assert found == [
        [[10, 12, 20, 6], [0, 12, 20, 6]],
        [[10, 15, 10, 15], [4, 3, 4, 3]],
        [],
        [],
    ]
    assert "labels/a.txt row 3: its sixth number (a confidence)" in caplog.text
    assert "labels/b.txt row 1: a polygon" in caplog.text
    assert "labels/b.txt row 2: eight numbers, an oriented box or" in caplog.text
    assert "label file 'none.txt': missing" in caplog.text
    assert "empty.txt" not in caplog.text
    with pytest.raises(DatasetError, match="none of the 1 pictures has a label file"):
        open_dataset(yolo(tmp_path / "bare", {"a": None}))


def test_keypoints_of_yolo_are_not_taken_for_a_polygon(tmp_path, caplog):
    row = BOX.strip() + " 0.1 0.1 2 0.9 0.9 2\n"
    dataset = open_dataset(yolo(tmp_path, {"a": row}, kpt_shape=[2, 3]))
    np.testing.assert_allclose(boxes(dataset), [[[10, 12, 20, 6]]], atol=1e-4)
    assert "keypoints are not used" in caplog.text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("2 0.5 0.5 0.5 0.2", r"labels/a\.txt row 1 \(class 2\): its class is not one of the 2"),
        (BOX + "0 200 150 80 40", r"row 2: its numbers are not fractions"),
        (BOX + "0 0.5 0.5 0.5", r"row 2 \(Invalid YOLO annotation line"),
        ("cat 0.5 0.5 0.5 0.2", r"row 1 \('cat'\): its class must be a whole number"),
        ("0.5 0.5 0.5 0.5 0.2", r"row 1 \('0\.5'\): its class must be a whole number"),
        ("0 0.5 nan 0.5 0.2", r"row 1 \('nan'\): it must be finite numbers"),
        ("0 0.5 1e400 0.5 0.2", r"row 1 \('1e400'\): it must be finite numbers"),
        (f"{'9' * 400} 0.5 0.5 0.5 0.2", r"row 1 .*its class must be a whole number"),
        ("0,0.5,0.5,0.5,0.2", r"row 1 .*it has commas\. Write decimal points, and spaces"),
        ("0 0,5 0,5 0,5 0,2", r"row 1 .*it has commas"),
    ],
)
def test_faults_of_yolo_are_named_by_file_and_row(tmp_path, rows, words):
    with pytest.raises(DatasetError, match=words):
        open_dataset(yolo(tmp_path, {"a": rows}))


def test_a_row_that_leaves_the_picture_is_clipped_and_said(tmp_path, caplog):
    dataset = open_dataset(yolo(tmp_path, {"a": "0 0.9 0.5 0.5 0.2"}))
    np.testing.assert_allclose(boxes(dataset), [[[26, 12, 14, 6]]], atol=1e-4)
    assert "labels/a.txt row 1" in caplog.text
    assert "leaves the image; clipped" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"names": {0: "cat", 2: "dog"}}, "keys of 'names' must be 0 to 1"),
        ({"names": "cat"}, "'names' must be a list"),
        (
            {"names": [True, False]},
            "each of 'names' must be a string, got true. Put it in quotes",
        ),
        ({"names": ["cat", None]}, "each of 'names' must be a string, got null"),
        ({"names": ["cat", ["dog"]]}, r"each of 'names' must be a string, got \['dog'\]"),
        ({"train": "images/a.png"}, r"a\.png' must be a list of pictures in UTF-8"),
        ({"nc": 3}, "'nc' is 3, but there are 2 'names'"),
        ({"train": "pictures"}, "'pictures' does not exist; tried"),
        ({"train": "labels"}, "there is no picture in train"),
        ({"train": None}, r"it has the parts \(none\), but not 'train'"),
        ({"kpt_shape": 17}, "'kpt_shape' must be"),
    ],
)
def test_faults_of_data_yaml(tmp_path, content, words):
    path = yolo(tmp_path, {"a": BOX}, **content)
    with pytest.raises(DatasetError, match=words):
        open_dataset(path, split="train")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 50000 values, which no data.yaml has"),
        ("a: " + "[" * 100_000, "more than 40 levels deep"),
        ("a: &a [*a]", "more than 40 levels deep"),
        ("a: '" + "x" * (2 << 20) + "'", "larger than 1 MB"),
        ("names: [a]\nnames: [b]", "the key 'names' is there twice"),
        ("names: !!python/name:os.system ''", "could not determine a constructor"),
        ("names: !!bool a", "does not match its tag"),
        ("names: !!timestamp a", "does not match its tag"),
        ("names: !!int [a]", "expected a scalar node"),
    ],
)
def test_what_no_data_yaml_holds_is_refused_at_once(tmp_path, text, words):
    path = Path(yolo(tmp_path, {"a": BOX}))
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(DatasetError) as error:
        open_dataset(str(path), split="train")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert time.monotonic() - start < 20


def test_data_yaml_is_taken_as_it_is_written(tmp_path):
    path = Path(yolo(tmp_path, {"a": BOX}))
    (tmp_path / "007").mkdir()
    (tmp_path / "images").rename(tmp_path / "007/images")
    (tmp_path / "labels").rename(tmp_path / "007/labels")
    path.write_text(
        "x: &x {names: [007, 1:30, 2024-01-01]}\n<<: *x\nnc: 3\npath: 007\ntrain: images"
    )
    dataset = open_dataset(str(path))
    assert dataset.class_names == ("007", "1:30", "2024-01-01") and dataset.num_objects == 1


def test_a_folder_without_data_yaml_says_so(tmp_path):
    with pytest.raises(DatasetError, match=r"has none of data\.yaml"):
        open_dataset(str(tmp_path), format="yolo")
    path = yolo(tmp_path, {"a": BOX}, nc="2")  # as text, with the right number
    assert open_dataset(path).num_objects == 1


def test_where_pictures_of_yolo_are(tmp_path):
    names = {1: "dog", 0: "cat"}
    path = yolo(tmp_path, {"x/a": BOX, "y/b": BOX, "z/c": BOX}, names=names)
    assert open_dataset(path).class_names == ("cat", "dog")

    def stems(**content):
        yolo(tmp_path, {}, names=names, **content)
        os.utime(path, ns=(1, stems.count))
        stems.count += 1
        found = open_dataset(str(tmp_path), split="val").records
        return "".join(Path(record["file_name"]).stem for record in found)

    stems.count = 1
    assert stems(val=["images/x", "images/z"]) == "ac"
    assert stems(path="images", val="y") == "b"
    assert stems(valid="../images/z") == "c"  # as exports write it
    (tmp_path / "list.txt").write_text(f"./images/y/b.png\n{tmp_path}/images/x/a.png\n\n")
    assert stems(val="list.txt") == "ab"
    with pytest.raises(DatasetError, match=r"names the folders of its pictures.*dataset\.path"):
        open_dataset(path, str(tmp_path / "images"), split="val")


def test_fractions_are_of_the_picture_as_it_is_shown(tmp_path):
    path = yolo(tmp_path, {"a": BOX})
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "images/a.png").unlink()
    picture(tmp_path / "images/a.jpg", exif=exif)
    dataset = open_dataset(path)
    assert (dataset.records[0]["width"], dataset.records[0]["height"]) == (30, 40)
    np.testing.assert_allclose(boxes(dataset), [[[7.5, 16, 15, 8]]], atol=1e-4)
    assert DetectionMapper([])(dataset.records[0], None)["image"].shape == (3, 40, 30)


def test_an_unreadable_picture_is_an_error_or_left_out(tmp_path):
    path = yolo(tmp_path, {"a": BOX, "b": BOX})
    (tmp_path / "images/a.png").write_bytes(b"gone")
    with pytest.raises(DatasetError, match=r"'a\.png' .*cannot be read"):
        open_dataset(path)
    assert len(open_dataset(path, skip_broken_images=True).records) == 1


def test_what_is_needed_is_named_where_it_is_not_installed(other, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision.dataset.formats", None)
    with pytest.raises(DatasetError, match=r"needs the package supervision.*sparsedet\[formats\]"):
        open_dataset(str(other), split="train")
