"""Files and folders of formats that are not read: the error names them and says how to go on."""

from __future__ import annotations

import json

import pytest

from sparsedet.data import DatasetError, open_dataset
from tests.data.written import xml

BOX = "1 0.5 0.5 0.5 0.2\n"

OTHERS = {
    "boxes.csv": ("image,x,y,w,h", "is a CSV table.*Export it as COCO"),
    "a.xml": (xml("a", None, []), "one XML file, and Pascal VOC has one for each picture"),
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
        (("a.png",), "holds pictures alone"),
        (("a.png", "a.txt"), r"holds pictures and text files.*data\.yaml"),
        (("a.png", "a.json"), "such as LabelMe's"),
        (("notes.md",), "holds no annotations that are known"),
    ],
)
def test_folders_that_are_no_set(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(DatasetError, match=words):
        open_dataset(str(tmp_path))
