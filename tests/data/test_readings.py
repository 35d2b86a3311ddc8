"""Keys, ids and boxes that are written in another way than COCO's: what may be meant is said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsedet.data import DatasetError, open_dataset

SIZE = np.array([120, 80])


def written(tmp_path, boxes):
    """A set of one picture with these boxes; its path."""
    return save(tmp_path, document(boxes))


def document(boxes, num_images=1):
    numbers = range(1, num_images + 1)
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 80} for i in numbers],
        "annotations": [
            {"image_id": i, "category_id": 1, "bbox": box} for i in numbers for box in boxes
        ],
        "categories": [{"id": 1, "name": "a"}],
    }


def save(tmp_path, content):
    (tmp_path / "set.json").write_text(json.dumps(content))
    return str(tmp_path / "set.json")


def sound_boxes(count=200):
    """Boxes (n, 4) all over the picture, as COCO has them."""
    rng = np.random.default_rng(0)
    size = rng.uniform(5, 40, (count, 2))
    return np.hstack([rng.uniform(0, 1, (count, 2)) * (SIZE - size), size])


def test_sound_boxes_are_not_told(tmp_path, caplog):
    open_dataset(written(tmp_path, sound_boxes().tolist()))
    assert not caplog.messages


def test_centers_and_swapped_axes_are_told(tmp_path, caplog):
    boxes = sound_boxes()
    center = np.hstack([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]])
    open_dataset(written(tmp_path, center.tolist()))
    assert (
        "leave their image, but all fit if read as [center x, center y, width, height]"
        in caplog.text
    )
    caplog.clear()
    inside = boxes[boxes[:, 0] < 80][:, [1, 0, 3, 2]]  # else half of them would be lost
    open_dataset(written(tmp_path, inside.tolist()))
    assert "leave their image, but all fit if read as [y, x, height, width]" in caplog.text


def test_single_boxes_that_leave_their_image_are_told_by_themselves(tmp_path, caplog):
    boxes = sound_boxes()
    boxes[:20, 0] += 60
    open_dataset(written(tmp_path, boxes.tolist()))
    assert "clipped" in caplog.text and "all boxes" not in caplog.text


@pytest.mark.parametrize(("scale", "told"), [(0.5, True), (0.6, False)])
def test_boxes_of_a_smaller_picture_are_told(tmp_path, caplog, scale, told):
    open_dataset(written(tmp_path, (scale * sound_boxes()).tolist()))
    assert ("all boxes: they lie in the upper left" in caplog.text) == told


def test_a_few_boxes_may_lie_anywhere(tmp_path, caplog):
    open_dataset(written(tmp_path, (0.3 * sound_boxes(19)).tolist()))
    assert not caplog.messages


BOX = [10, 10, 50, 50]


@pytest.mark.parametrize(("shift", "word", "unused"), [(1, "large", 1), (-1, "small", 5)])
def test_ids_that_count_from_another_number_are_told(tmp_path, caplog, shift, word, unused):
    content = document([BOX], 5)
    for entry in content["annotations"]:
        entry["image_id"] += shift
    open_dataset(save(tmp_path, content))
    assert f"Nothing refers to {unused} in 'images', so each 'image_id' may be" in caplog.text
    assert f"one too {word}" in caplog.text


@pytest.mark.parametrize(
    ("ids", "given"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]),  # each picture has one
        ([1, 2, 3, 4, 5], [2, 3, 4, 5, 9]),
        ([1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 9]),
        ([1, 2, 3, 7, 8], [2, 3, 7, 8, 9]),  # ids of COCO have gaps
        (["1", "2", "3"], ["2", "3", "4"]),
    ],
)
def test_leftovers_of_a_larger_set_are_no_shift(tmp_path, caplog, ids, given):
    content = document([])
    content["images"] = [{"id": i, "file_name": f"{i}.png"} for i in ids]
    content["annotations"] = [{"image_id": i, "category_id": 1, "bbox": BOX} for i in given]
    open_dataset(save(tmp_path, content))
    assert "left out" in caplog.text and "Nothing refers" not in caplog.text


@pytest.mark.parametrize(
    ("entries", "key", "other"),
    [
        ("images", "file_name", "filename"),
        ("annotations", "bbox", "box"),
        ("annotations", "image_id", "imageId"),
        ("annotations", "category_id", "category"),
    ],
)
def test_a_key_that_may_be_meant_is_named(tmp_path, entries, key, other):
    content = document([BOX])
    content[entries][0][other] = content[entries][0].pop(key)
    with pytest.raises(DatasetError, match=f"Did you mean its key '{other}'"):
        open_dataset(save(tmp_path, content))
