"""`sparsedet check-data`: what it counts, of what, and when it refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsedet.cli import check_data
from sparsedet.cli.main import main
from sparsedet.config import LazyConfig
from sparsedet.data.shapes import write_shapes
from tests.data.written import write_voc, write_yolo
from tests.survey.made import make_set


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Takes the place of the user's own."""
    path = tmp_path / "cache/pictures.sqlite"
    monkeypatch.setattr(check_data, "_DEFAULT_CACHE", path)
    return path


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    write_shapes(tmp_path / "shapes", num_train=3, num_val=1)
    return tmp_path / "shapes"


def words(shapes: Path) -> list[str]:
    source = shapes / "annotations/instances_train.json"
    return ["check-data", str(source), "--images", str(shapes / "train")]


def row(out: str, title: str) -> list[str]:
    return next(line for line in out.splitlines() if line.startswith(title)).split()


def test_it_counts_what_the_file_holds(shapes, capsys):
    source = shapes / "annotations/instances_train.json"
    content = json.loads(source.read_text())
    content["annotations"][0]["iscrowd"] = 1
    taken = content["annotations"][-1]["image_id"]
    content["annotations"] = [e for e in content["annotations"] if e["image_id"] != taken]
    source.write_text(json.dumps(content))
    assert main(words(shapes)) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{source}: coco, 3 images (pictures read)"
    for category in content["categories"]:
        own = [e for e in content["annotations"] if e["category_id"] == category["id"]]
        boxes = [e for e in own if not e["iscrowd"]]
        counts = len(boxes), len(own) - len(boxes), len({e["image_id"] for e in boxes})
        assert row(out, category["name"])[1:] == [str(count) for count in counts]
    assert row(out, "boxes")[-1] == str(len(content["annotations"]) - 1)
    assert row(out, "ignore regions")[-1] == "1"
    assert row(out, "pictures without a box")[-1] == "1"
    per_image = [
        sum(e["image_id"] == image["id"] and not e["iscrowd"] for e in content["annotations"])
        for image in content["images"]
    ]
    assert row(out, "most boxes in a picture")[-1] == str(max(per_image))


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_all_parts_of_a_set_are_reported(shapes, tmp_path, capsys, kind):
    write = {"coco": lambda *_: shapes, "yolo": write_yolo, "voc": write_voc}[kind]
    source = str(write(tmp_path / kind, shapes))
    assert main(["check-data", source]) == 0
    out = capsys.readouterr().out
    assert f"{kind}, 3 images (pictures read)" in out and f"{kind}, 1 images (pictures read)" in out
    assert "training boxes  training pictures  validation boxes  validation pictures" in out
    assert row(out, "pictures ")[1:] == ["3", "1"]
    assert main(["check-data", source, "--split", "val"]) == 0
    assert row(capsys.readouterr().out, "pictures ")[1:] == ["1"]


def test_the_data_of_a_config_at_its_sizes(shapes, capsys):
    run = ["check-data", "quickstart", f"dataset.path={shapes}"]
    assert main([*run, "dataset.test_short_side=320", "dataset.max_size=640"]) == 0
    out = capsys.readouterr().out
    sides = [line.split()[-3:] for line in out.splitlines() if "at the model's input" in line]
    assert sides[0] == ["320"] * 3, "the validation pictures"
    assert row(out, "pictures ")[1:] == ["3", "1"]
    assert main([*run, "--split", "val"]) == 2
    assert "--split needs a SOURCE" in capsys.readouterr().err


def test_another_config_for_a_data_set(shapes, capsys):
    assert main(["check-data", str(shapes), "--config-file", "quickstart"]) == 0
    assert (
        "100 detections per picture and class in the evaluation; a picture has"
        in capsys.readouterr().out
    )
    assert main(["check-data", str(shapes), "--config-file", "focus_detr_r50_12ep"]) == 0
    assert "900 queries, 300 detections per picture" in capsys.readouterr().out


def test_words_that_are_neither_data_nor_config(shapes, capsys):
    for given, said in (
        ([], "No data set is given"),
        (["dataset.path=x"], "No data set is given"),
        ([str(shapes), "more"], "'more' is unexpected"),
        (["fotos"], "'fotos'"),
        ([str(shapes), "dataset.max_sized=3"], "dataset.max_size"),
    ):
        assert main(["check-data", *given]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and said in error[0], given


def test_a_set_that_training_would_refuse_is_refused(shapes, capsys):
    picture = next((shapes / "train").iterdir())
    picture.write_bytes(b"no picture")
    assert main(words(shapes)) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and picture.name in error[0]
    assert main([*words(shapes), "--skip-broken"]) == 0
    assert "2 images (pictures read)" in capsys.readouterr().out


def test_long_lists_of_classes_are_cut_and_the_rest_is_counted(tmp_path, capsys):
    names = [f"class{i:02d}" for i in range(60)]
    boxes = [(30, 30, i) for i in range(60) for _ in range(1 + i)]
    source = make_set(tmp_path, [(240, 320, boxes)], names)
    assert main(["check-data", str(source)]) == 0
    out = capsys.readouterr().out
    shown = re.findall(r"^(class\d\d) +(\d+)", out, re.MULTILINE)
    assert shown == [(names[i], str(i + 1)) for i in [*range(59, 47, -1), *range(4, -1, -1)]]
    hidden = sum(i + 1 for i in range(5, 48))
    assert re.search(rf"^\.\.\. 43 more classes +{hidden} ", out, re.MULTILINE)


def test_what_does_not_fit_is_said_once(tmp_path, capsys):
    source = make_set(tmp_path, [(240, 320, [(30, 30, 0)] * 180)])
    assert main(["check-data", str(source)]) == 0
    out = capsys.readouterr().out
    warnings = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert len([line for line in warnings if "num_queries" in line]) == 1
    assert "30 of 180 objects" in next(line for line in warnings if "num_queries" in line)


def test_the_suggested_line_trains_and_the_log_says_what_the_model_sees(tmp_path, capsys):
    write_shapes(tmp_path / "shapes", num_train=4, num_val=1)
    data = f"dataset.path={tmp_path / 'shapes'}"
    given = ["quickstart", data, "dataset.test_short_side=64", "dataset.max_size=96"]
    given += ["dataset.short_sides=[56,64]", "model.query_initializer.num_queries=5"]
    assert main(["check-data", *given, "--suggest"]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    suggested = shlex.split(line)
    assert any(word.startswith("dataset.test_short_side=") for word in suggested)
    assert "model.query_initializer.num_queries=" in line
    for word in suggested:
        assert f"{word.partition('=')[0]}: " in captured.err, "each has its reason"
    output = tmp_path / "run"
    few = ["train.max_iter=1", "dataloader.train.num_workers=0", "train.tensorboard=false"]
    few += ["dataloader.train.total_batch_size=2", f"train.output_dir={output}"]
    assert main(["train", *given, *suggested, *few]) == 0
    written = LazyConfig.load(output / "config.yaml")
    for word in suggested:
        key, _, value = word.partition("=")
        node = written
        for part in key.split("."):
            node = node[int(part)] if part.isdigit() else node[part]
        assert str(node).replace(" ", "") == value
    log = (output / "log.txt").read_text()
    assert "training boxes  training pictures" in log
    assert "1 iterations of 2 pictures, 0.5 epochs of 4 pictures" in log
    assert re.search(r"device cpu with \d+ threads, [\d.]+ million parameters", log)
    assert "iteration 1/1" in log


def test_where_nothing_is_to_change_the_line_is_empty(tmp_path, capsys):
    source = make_set(tmp_path, [(240, 320, [(48, 48, 0), (30, 30, 0), (120, 100, 0)])])
    assert main(["check-data", str(source), "--suggest"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "already fit the data" in captured.err


def test_the_preview_is_a_picture_of_augmented_samples(shapes, tmp_path, capsys):
    first, second, other = (tmp_path / f"{name}.png" for name in "abc")
    for path, seed in ((first, 0), (second, 0), (other, 1)):
        run = ["check-data", "quickstart", f"dataset.path={shapes}", f"train.seed={seed}"]
        assert main([*run, "--preview", "5", "--output", str(path)]) == 0
        assert f"5 samples of {shapes}/annotations/instances_train.json" in capsys.readouterr().err
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    sheet = np.asarray(Image.open(first).convert("RGB"))
    assert sheet.shape[1] == 3 * 480 + 4 * 12
    for column in range(3):  # pictures in the first row, and two in the second
        left = 12 + column * 492
        second_row = sheet[-400:-20, left : left + 480]
        assert (sheet[100:400, left : left + 480] != 255).mean() > 0.9
        assert ((second_row != 255).mean() > 0.9) == (column < 2)
    assert main(["check-data", str(shapes), "--preview", "0"]) == 2
    assert "must be at least 1, got 0" in capsys.readouterr().err


def test_a_preview_needs_pictures(shapes, tmp_path, capsys):
    source = shapes / "annotations/instances_train.json"
    output = tmp_path / "sheet.png"
    assert main(["check-data", str(source), "--preview", "2", "--output", str(output)]) == 2
    assert "--preview needs the pictures" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("sheet.jpg", r"is not a \.png file. Name a file that ends in \.png"),
        (".", r"is a folder. Name a file that ends in \.png"),
        ("file/sheet.png", "cannot be written: .*file: Not a directory"),
        ("/proc/sheet.png", "cannot be written"),
    ],
)
def test_where_the_sheet_cannot_go_is_said_before_the_set_is_read(tmp_path, capsys, output, says):
    (tmp_path / "file").touch()
    given = ["check-data", "absent.json", "--preview", "1", "--output", str(tmp_path / output)]
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(says, err)
    assert err.count("\n") == 1


def test_a_place_for_a_sheet_that_is_not_asked_for(shapes, capsys):
    assert main([*words(shapes), "--output", "sheet.png"]) == 2
    assert "Add --preview" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "dataloader.train.total_batch_size=0",
        "train.accumulation_steps=0",
        "train.max_iter=-3",
        "model.query_initializer.num_queries=0",
    ],
)
@pytest.mark.parametrize("option", [[], ["--suggest"]])
def test_numbers_that_no_training_has(shapes, capsys, override, option):
    assert main([*words(shapes), override, *option]) == 2
    key, value = override.split("=")
    assert f"{key} must be at least 1, got {value}" in capsys.readouterr().err


def test_size_ranges_that_are_no_pairs(shapes, capsys):
    assert main([*words(shapes), "model.criterion.unmatched.0.size_ranges=[[1]]"]) == 2
    assert "size_ranges must be pairs [low, high]" in capsys.readouterr().err


@pytest.mark.parametrize("crowd", [False, True])
def test_without_a_box_nothing_is_said_to_fit(shapes, capsys, crowd):
    source = shapes / "annotations/instances_train.json"
    content = json.loads(source.read_text())
    content["annotations"] = [{**entry, "iscrowd": 1} for entry in content["annotations"] if crowd]
    source.write_text(json.dumps(content))
    for option in ([], ["--suggest"]):
        assert main([*words(shapes), *option]) == 0
        out, err = capsys.readouterr()
        assert "There are no boxes" in out + err
        assert ("only ignore regions" in out + err) == crowd
        assert "the settings already fit" not in err


def spoil(shapes: Path, **changes) -> None:
    """Changes the first annotation of the training part."""
    source = shapes / "annotations/instances_train.json"
    content = json.loads(source.read_text())
    content["annotations"][0].update(changes)
    source.write_text(json.dumps(content))


def test_exit_codes_tell_clean_from_usable_from_refused(shapes, capsys):
    assert main([*words(shapes), "--strict"]) == 0
    assert "no findings" in capsys.readouterr().out
    spoil(shapes, ignore=1)  # said, and nothing is lost
    assert main([*words(shapes), "--strict"]) == 0
    assert row(capsys.readouterr().out, "kept")[:2] == ["kept", "1"]
    spoil(shapes, bbox=[5, 5, 0, 9])
    assert main(words(shapes)) == 0
    assert main([*words(shapes), "--strict"]) == 1
    assert row(capsys.readouterr().out, "left out")[:3] == ["left", "out", "1"]
    spoil(shapes, bbox="none")
    assert main([*words(shapes), "--strict"]) == 2
    out, err = capsys.readouterr()
    assert row(out, "refused")[:2] == ["refused", "1"]
    assert "could be used" in out.splitlines()[0]
    assert err.count("\n") == 1 and "'bbox' must be" in err


def test_the_report_as_json(shapes, tmp_path, capsys):
    spoil(shapes, bbox=[5, 5, 0, 9])
    run = ["check-data", str(shapes), "--json", str(tmp_path / "report.json"), "--strict"]
    assert main(run) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"version", "exit_code", "error", "parts", "survey", "misfits"}
    assert (report["exit_code"], report["error"]) == (1, None)
    training, validation = report["parts"]
    keys = ["name", "source", "format", "pictures", "usable", "images", "usable_images"]
    assert list(training) == [*keys, "annotations", "usable_annotations", "classes", "findings"]
    assert (training["name"], training["images"], validation["images"]) == ("training", 3, 1)
    assert training["annotations"] - training["usable_annotations"] == 1
    (finding,) = training["findings"]
    assert list(finding) == ["effect", "fault", "count", "entries"]
    assert (finding["effect"], finding["count"]) == ("left out", 1)
    assert validation["findings"] == []
    seen = report["survey"][0]
    assert (seen["name"], seen["pictures"]) == ("training", 3)
    assert seen["boxes"] == training["usable_annotations"]
    assert sum(each["boxes"] for each in seen["classes"]) == seen["boxes"]
    assert seen["input"]["box_size"] == sorted(seen["input"]["box_size"])
    (shapes / "annotations/instances_train.json").write_text("[")
    assert main(run) == 2
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exit_code"] == 2 and "not valid JSON" in report["error"]
    assert [part["usable"] for part in report["parts"]] == [False, True]


def test_a_report_is_written_of_what_is_no_set_at_all(tmp_path, capsys):
    assert main(["check-data", "absent.json", "--json", str(tmp_path / "report.json")]) == 2
    report = json.loads((tmp_path / "report.json").read_text())
    assert "'absent.json'" in report["error"] and report["parts"] == []


def test_a_second_run_decodes_nothing(shapes, tmp_path, capsys, cache):
    assert main(words(shapes)) == 0
    assert "pictures: 3 decoded\n" in capsys.readouterr().out
    assert main(words(shapes)) == 0
    assert "pictures: 0 decoded, 3 known from an earlier run\n" in capsys.readouterr().out
    assert main([*words(shapes), "--no-cache"]) == 0
    assert "pictures: 3 decoded\n" in capsys.readouterr().out
    assert main([*words(shapes), "--cache", str(tmp_path / "other")]) == 0
    assert "pictures: 3 decoded\n" in capsys.readouterr().out
    cache.unlink()
    assert main([*words(shapes), "--headers"]) == 0
    assert "decoded" not in capsys.readouterr().out
    assert not cache.exists()


def test_a_cleaned_copy_is_written_where_the_set_is_refused(shapes, tmp_path, capsys):
    spoil(shapes, bbox="none")
    copy = tmp_path / "copy.json"
    assert main([*words(shapes), "--fix", str(copy)]) == 0
    out, err = capsys.readouterr()
    total = len(
        json.loads((shapes / "annotations/instances_train.json").read_text())["annotations"]
    )
    assert f"{copy}: 3 of 3 images, {total - 1} of {total} annotations" in out
    assert f"dataset.train_json={copy} dataset.train_images={shapes / 'train'}" in out
    assert err == ""
    assert main(["check-data", str(copy), "--images", str(shapes / "train"), "--strict"]) == 0
    assert "no findings" in capsys.readouterr().out
    assert main([*words(shapes), "--fix", str(copy)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_cleaned_copy_is_of_one_part(shapes, tmp_path, capsys):
    copy = tmp_path / "copy.json"
    run = ["check-data", str(shapes), "--fix", str(copy)]
    for given in (run, ["check-data", "quickstart", f"dataset.path={shapes}", *run[2:]]):
        assert main(given) == 2
        assert "--fix writes one part of a set" in capsys.readouterr().err
        assert not copy.exists()
    assert main([*run, "--split", "val"]) == 0
    assert len(json.loads(copy.read_text())["images"]) == 1
    assert main([*run, "--fix", str(tmp_path / "copy.txt")]) == 2
    assert "--fix" in capsys.readouterr().err


def test_faults_of_a_config_are_listed_for_both_parts(shapes, capsys):
    spoil(shapes, bbox=[5, 5, 0, 9])
    picture = next((shapes / "val").iterdir())
    picture.write_bytes(b"no picture")
    assert main(["check-data", "quickstart", f"dataset.path={shapes}"]) == 2
    out, err = capsys.readouterr()
    assert row(out, "left out")[:3] == ["left", "out", "1"]
    assert row(out, "refused")[:2] == ["refused", "1"]
    assert picture.name in err and err.count("\n") == 1
    (next((shapes / "train").iterdir())).write_bytes(b"no picture")
    assert main(["check-data", "quickstart", f"dataset.path={shapes}"]) == 2
    assert "cannot be read; the image is left out." in capsys.readouterr().out, "as in training"
