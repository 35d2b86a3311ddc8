"""`sparsedet convert-data`: what it writes, what it says, and when it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsedet.cli.main import main
from sparsedet.data import open_dataset
from sparsedet.data.shapes import write_shapes
from tests.data.written import write_yolo


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    write_shapes(tmp_path / "shapes", num_train=2, num_val=1)
    return write_yolo(tmp_path / "yolo", tmp_path / "shapes") / "data.yaml"


def test_a_part_becomes_a_file_to_train_on(yolo, tmp_path, capsys):
    out = tmp_path / "out" / "val.json"
    assert main(["convert-data", str(yolo), str(out), "--split", "val"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 images with ")
    assert said[1] == f"dataset.val_json={out} dataset.val_images={yolo.parent}/images/val"
    written = open_dataset(str(out), said[1].rpartition("=")[2])
    assert list(written.records) == list(open_dataset(str(yolo), split="val").records)


def test_a_coco_file_keeps_its_ids(tmp_path, capsys):
    write_shapes(tmp_path / "shapes", num_train=2, num_val=1)
    source = tmp_path / "shapes/annotations/instances_train.json"
    content = json.loads(source.read_text())
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = [[1, 2, 9, 2, 9, 8]]
    source.write_text(json.dumps(content))
    out = tmp_path / "train.json"
    images = str(tmp_path / "shapes/train")
    assert main(["convert-data", str(source), str(out), "--images", images]) == 0
    written = json.loads(out.read_text())
    assert written["annotations"][0]["bbox"] == [1, 2, 8, 6]
    for key in ("categories", "images"):
        assert written[key] == content[key]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{yolo}", "{out}"], "it has the parts train, val, but none was chosen"),
        (["{yolo}", "{yolo}", "--split", "val"], "is also the source"),
        (["{yolo}", "{out}", "--split", "val", "--format", "pascal"], "must be auto, coco"),
        (["nowhere", "{out}"], "annotation file 'nowhere': No such file"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(yolo, tmp_path, capsys, words, sentence):
    out = tmp_path / "out.json"
    before = yolo.read_text()
    words = [word.format(yolo=yolo, out=out) for word in words]
    assert main(["convert-data", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
    assert yolo.read_text() == before
