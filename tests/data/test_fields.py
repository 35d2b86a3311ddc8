"""Fields of Pascal VOC and YOLO: numbers, flags and names by the same rules as those of COCO."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsedet.data import DatasetError, open_dataset
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
