"""Files and folders of formats that are not read: the error names them and says how to go on."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path

import pytest

from sparsedet.data import DatasetError, open_dataset
from tests.data.written import xml

BOX = "1 0.5 0.5 0.5 0.2\n"

OTHERS = {
    "boxes.csv": ("image,x,y,w,h", "is a CSV table.*Export it as COCO"),
    "a.xml": (xml("a", None, []), "one XML file, but Pascal VOC has one for each picture"),
    "annotations.xml": ("<?xml version='1.0'?>\n<annotations>", "CVAT's own XML file.*COCO 1.0"),
    "obj.data": ("classes = 2", "a file of Darknet's YOLO.*data.yaml"),
    "via3.json": ({"project": {"vid_list": []}, "metadata": {}}, r"\(VIA\)"),
    "label_studio_min.json": ([{"image": "/a.jpg", "annotation_id": 1}], "a Label Studio file"),
    "labels.txt": (BOX, r"YOLO's labels of one picture.*data\.yaml"),
    "set.tfrecord": ("x", "is a TFRecord file"),
    "train.record-00000-of-00010": ("x", "is a TFRecord file"),
    "lines.json": ("{}\n{}\n", r"is JSON Lines \(NDJSON\)"),
    "set.parquet": ("x", "is a Parquet table"),
    "set.zip": ("x", "is an archive.*Unpack it"),
    "a.png": ("x", "is a picture"),
    "other.yaml": ("lr: 1", "has no 'names', so it is not the data.yaml"),
    "results.json": (
        [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}],
        "a list of detections.*instances_",
    ),
    "panoptic.json": (
        {"images": [], "annotations": [{"segments_info": []}], "categories": []},
        "panoptic format",
    ),
    "captions.json": ({"images": [], "annotations": [{"caption": "a cat"}]}, "file of captions"),
    "labelme.json": ({"shapes": [], "imagePath": "a.png"}, "a LabelMe file"),
    "via.json": ({"a.png1": {"filename": "a.png", "regions": []}}, r"\(VIA\)"),
    "via_project.json": ({"_via_img_metadata": {}}, r"\(VIA\)"),
    "supervisely.json": ({"objects": [], "size": {}}, "a Supervisely file"),
    "createml.json": ([{"image": "a.png", "annotations": []}], "a CreateML file"),
    "label_studio.json": ([{"data": {}, "annotations": []}], "a Label Studio file"),
    "datumaro.json": ({"items": [], "categories": {}, "info": {}}, "a Datumaro file"),
}


@pytest.mark.parametrize("name", list(OTHERS))
@pytest.mark.parametrize("format", ["auto", "coco"])
def test_other_formats_are_named_with_the_way_on(tmp_path, name, format):
    content, words = OTHERS[name]
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if (name, format) == ("other.yaml", "coco"):
        words = "is not valid JSON"
    with pytest.raises(DatasetError, match=words) as error:
        open_dataset(str(path), format=format)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a.png",), "has only pictures"),
        (("a.png", "a.txt"), r"has pictures and text files.*data\.yaml"),
        (("a.png", "a.json"), "such as LabelMe's"),
        (("notes.md",), "has no annotations of a known format"),
        (("classes.txt", "notes.json"), r"no data\.yaml\. Write one, with 'names'"),
        (("obj.data", "obj.names", "train.txt"), r"no data\.yaml"),
        (("images", "labels"), r"no data\.yaml"),
    ],
)
def test_folders_that_are_no_set(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(DatasetError, match=words):
        open_dataset(str(tmp_path))


# --- files that are not JSON, or not data sets ------------------------------------------------

PREDICTION = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
FILES = {
    "packed.json": (gzip.compress(b"{}"), r"is compressed with gzip\. Unpack it \(gunzip FILE\)"),
    "packed.json.gz": (gzip.compress(b"{}"), r"is compressed with gzip\. Unpack it \(gunzip FILE"),
    "set.tar.gz": (gzip.compress(b"{}"), "is an archive"),
    "zip.json": (b"PK\x03\x04...", r"is an archive \(zip\)\. Unpack it"),
    "zeros.json": (bytes(5000), "has only zero bytes. Write or download it again"),
    "pickled.json": (pickle.dumps({"images": []}), "is a Python pickle, which is not opened"),
    "inside.json": (
        b'{"data": {"images": [], "annotations": [], "categories": []}}',
        "'images' is missing at the top level. It is below 'data': save only that object",
    ),
    "wide.json": ("{}".encode("utf-16"), r"is UTF-16 text\. Save it as UTF-8"),
    "wide_le.json": ('{"images": []}'.encode("utf-16-le"), r"is UTF-16 text\. Save it as UTF-8"),
    "lfs.json": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "page.json": (b"\n<!DOCTYPE html><html>", r"is a web page\. Download the file itself"),
    "xml.json": (b"<?xml version='1.0'?>", "is one XML file"),
    "lines.json": (b'{"a": 1}\n{"a": 2}\n', r"JSON Lines \(NDJSON\).*Join them into one"),
    "lines.ndjson": (b'{"a": 1}\n{"a": 2}\n', r"JSON Lines \(NDJSON\).*Join them into one"),
    "one.jsonl": (b'{"a": 1}\n', r"JSON Lines \(NDJSON\)"),
    "found.jsonl": (json.dumps(PREDICTION).encode() * 1, "JSON Lines of detections.*instances_"),
    "found.json": (b"\n".join([json.dumps(PREDICTION).encode()] * 2), "JSON Lines of detections"),
    "results.json": (json.dumps([PREDICTION]).encode(), "is a list of detections.*instances_"),
    "boxes.json": (
        json.dumps([{k: v for k, v in PREDICTION.items() if k != "score"}]).encode(),
        "is a list of annotations without 'images' and 'categories'",
    ),
    "behind.json": (b'{"images": []} and so on', "has text after its JSON value"),
    "deep.json": (b"[" * 100_000, "its objects are nested too deeply"),
    "digits.json": (b'{"images": ' + b"9" * 5000 + b"}", "a number in it has thousands of digits"),
    "twice.json": (
        b'{"images": [{}], "annotations": [], "categories": [{}], "annotations": [{}]}',
        r"has 'annotations' 2 times at its top level.*Join the lists",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["set.txt", "set.json.gz", "set.jsonl", "plain"])
def test_json_is_read_whatever_it_is_called(make_set, tmp_path, name):
    annotations, images = make_set([(20, 30)])
    (tmp_path / name).write_bytes(Path(annotations).read_bytes())
    assert len(open_dataset(tmp_path / name, images, format="coco").records) == 1


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("format", ["auto", "coco"])
def test_what_is_no_instances_file_is_called_by_its_name(tmp_path, name, format):
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=words) as error:
        open_dataset(tmp_path / name, format=format)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("format", ["auto", "coco", "voc", "yolo"])
def test_a_pipe_in_place_of_annotations_is_not_waited_for(tmp_path, format):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(DatasetError, match="It is neither a file nor a folder"):
            open_dataset(path, format=format)


def test_a_file_in_place_of_vocs_folder(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DatasetError, match="annotations are a folder, but this is a file"):
        open_dataset(tmp_path / "a.json", format="voc")
