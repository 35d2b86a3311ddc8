"""`sparsedet check-data`: what it counts, and when it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsedet.cli.main import main
from sparsedet.data.shapes import write_shapes
from tests.data.written import write_yolo


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    write_shapes(tmp_path / "shapes", num_train=3, num_val=1)
    return tmp_path / "shapes"


def words(shapes: Path) -> list[str]:
    source = shapes / "annotations/instances_train.json"
    return ["check-data", str(source), "--images", str(shapes / "train")]


def test_it_counts_what_the_file_holds(shapes, capsys):
    source = shapes / "annotations/instances_train.json"
    content = json.loads(source.read_text())
    content["annotations"][0]["iscrowd"] = 1
    taken = content["annotations"][-1]["image_id"]
    content["annotations"] = [e for e in content["annotations"] if e["image_id"] != taken]
    source.write_text(json.dumps(content))
    assert main(words(shapes)) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{source}: coco, 3 images (opened)"
    rows = {line.split()[0]: line.split()[1:] for line in out[2 : 3 + len(content["categories"])]}
    for category in content["categories"]:
        own = [e for e in content["annotations"] if e["category_id"] == category["id"]]
        crowds = sum(e["iscrowd"] for e in own)
        images = len({e["image_id"] for e in own})
        assert rows[category["name"]] == [str(len(own) - crowds), str(crowds), str(images)]
    assert rows["all"] == [str(len(content["annotations"]) - 1), "1", "2"]
    last = [line.split()[-3:] for line in out if line.startswith("objects in a picture")]
    per_image = sorted(
        sum(e["image_id"] == image["id"] for e in content["annotations"])
        for image in content["images"]
    )
    assert last == [[str(number) for number in per_image]]


def test_parts_of_a_yolo_set(shapes, tmp_path, capsys):
    yolo = write_yolo(tmp_path / "yolo", shapes) / "data.yaml"
    assert main(["check-data", str(yolo), "--split", "val"]) == 0
    assert ": yolo, 1 images (opened)" in capsys.readouterr().out


def test_a_set_that_training_would_refuse_is_refused(shapes, capsys):
    picture = next((shapes / "train").iterdir())
    picture.write_bytes(b"no picture")
    assert main(words(shapes)) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and picture.name in error[0]
    assert main([*words(shapes), "--skip-broken"]) == 0
    assert "2 images (opened)" in capsys.readouterr().out
