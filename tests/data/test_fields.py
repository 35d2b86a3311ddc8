"""Fields of Pascal VOC and YOLO: numbers, flags and names by the same rules as those of COCO."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparsedet.data import DatasetError, StorageError, open_dataset
from sparsedet.data.validate import Findings
from sparsedet.data.validate.references import References
from tests.data.test_formats import BOX, boxes, voc, yolo


@pytest.mark.parametrize(
    ("text", "ignored"), [("1.0", 1), ("0.0", 0), ("", 0), ("no", 0), ("maybe", None), ("2", None)]
)
def test_difficult_is_a_flag_and_no_other_text(tmp_path, text, ignored):
    folder = voc(tmp_path / "set", {"a": ("a", (40, 30), [("dog", False, (1, 1, 9, 9))])})
    path = folder / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<difficult>0<", f"<difficult>{text}<"))
    if ignored is None:
        with pytest.raises(DatasetError, match=rf"object 1 \(difficult '{text}'\).* 0 or 1"):
            open_dataset(str(folder))
    else:
        assert open_dataset(str(folder)).records[0]["annotations"][0]["iscrowd"] == ignored


@pytest.mark.parametrize(("width", "said"), [("40.0", False), ("40.5", True), ("9" * 400, True)])
def test_sizes_of_voc_are_whole_numbers(tmp_path, caplog, width, said):
    folder = voc(tmp_path / "set", {"a": ("a", (width, 30), [("dog", False, (1.5, 1, "9.0", 9))])})
    if len(width) > 9:
        with pytest.raises(DatasetError, match="must be positive whole numbers"):
            open_dataset(str(folder))
        return
    dataset = open_dataset(str(folder))
    assert dataset.records[0]["width"] == 40
    assert boxes(dataset) == [[[0.5, 0, 8.5, 9]]]
    assert ("it gives no size in whole pixels" in caplog.text) == said


@pytest.mark.parametrize("value", ["1_0", "1e400", "9" * 400, "nan", "1e30"])
def test_corners_of_voc_are_numbers_of_pixels(tmp_path, value):
    folder = voc(tmp_path / "set", {"a": ("a", (40, 30), [("dog", False, (1, 1, value, 9))])})
    with pytest.raises(DatasetError, match=r"a\.xml object 1 \(xmax '.*must be numbers of pixels"):
        open_dataset(str(folder))


def test_a_class_may_be_written_as_a_decimal_number(tmp_path):
    rows = "1.000000e+00\t0.5\t0.5\t0.5\t0.2\n0.0 0.5 0.5 0.5 0.2\n"
    found = open_dataset(yolo(tmp_path, {"a": rows})).records[0]["annotations"]
    assert [entry["category_id"] for entry in found] == [1, 0]


def test_names_are_those_that_are_written(tmp_path):
    path = Path(yolo(tmp_path, {"a": BOX}))
    content = path.read_text().replace("- cat", "- 007").replace("- dog", "- 1:30")
    path.write_text(content + "nc: 2.0\n")
    assert open_dataset(str(path)).class_names == ("007", "1:30")


def test_blanks_around_a_name_of_voc_are_layout(tmp_path):
    objects = [("  dog\n", False, (1, 1, 9, 9)), ("dog", False, (1, 1, 5, 5))]
    folder = voc(tmp_path / "set", {"a": ("a", (40, 30), objects)})
    assert open_dataset(str(folder)).class_names == ("dog",)


def test_corners_of_voc_that_are_fractions_are_refused(tmp_path):
    objects = [("dog", False, (0.1, 0.2, 0.5, 0.9)), ("dog", False, (0.1, 0.2, 1.0, 0.3))]
    folder = voc(tmp_path / "set", {"a": ("a", (40, 30), objects)})
    with pytest.raises(DatasetError, match="no corner is above 1, so they look like fractions"):
        open_dataset(str(folder))


def test_a_link_that_leads_back_gives_no_picture_twice(tmp_path, caplog):
    path = yolo(tmp_path, {"a": BOX, "b": BOX})
    (tmp_path / "images/again").symlink_to(".")
    assert len(open_dataset(path).records) == 2
    assert not caplog.messages


def test_a_folder_of_yolo_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    path = yolo(tmp_path, {"a": BOX, "b": BOX})
    (tmp_path / "images/closed").mkdir()
    scan = os.scandir

    def closed(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(StorageError, match=r"closed' cannot be reached \(permission denied\)"):
        open_dataset(path)


def test_labels_whose_picture_is_of_another_kind_are_told(tmp_path, caplog):
    path = yolo(tmp_path, {"a": BOX, "b": BOX, "c": BOX})
    (tmp_path / "images/b.png").rename(tmp_path / "images/b.heic")
    (tmp_path / "labels/classes.txt").write_text("cat")
    assert len(open_dataset(path).records) == 2
    (message,) = caplog.messages
    assert "label file 'b.txt': it has no picture in a supported format; left out" in message
    caplog.clear()
    (tmp_path / "list.txt").write_text("images/a.png\n")
    assert len(open_dataset(yolo(tmp_path, {"a": BOX}, train="list.txt")).records) == 1
    assert not caplog.messages, "the list takes a part on purpose"


def test_a_list_whose_pictures_are_elsewhere_is_told(tmp_path):
    (tmp_path / "list.txt").write_text("data/images/a.png\n")
    path = yolo(tmp_path, {"a": BOX}, train="list.txt")
    with pytest.raises(DatasetError, match=r"none of its 1 pictures exists.*data/images/a\.png"):
        open_dataset(path)


def test_names_that_unfold_to_gigabytes_are_refused_in_a_short_sentence(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, "names: *a11", "train: images"]))
    with pytest.raises(DatasetError, match=r"more than 50000 values|must be a string") as error:
        open_dataset(tmp_path / "data.yaml")
    assert len(str(error.value)) < 3000


@pytest.mark.parametrize(
    ("ids", "value", "found", "warned"),
    [
        ((1, 2), "1", 1, True),
        ((1, 2), "01", 1, True),  # as a number
        ((1, 2), 1.0, 1, False),
        (("1", "2"), 1, "1", True),
        (("1", "2"), "01", None, False),  # another text
        (("1", "2"), "3", None, False),
        (("1", "01"), 1, None, False),  # which of the two?
        ((1, "1"), "1", "1", False),
        ((1, "1"), 1, 1, False),
    ],
)
def test_what_an_id_refers_to(ids, value, found, warned):
    findings = Findings("set.json", raises=False)
    references = References("image_id", "images", ids=ids)
    assert references.find(value, "annotation 7", findings) == found
    assert bool(findings.groups) == warned
