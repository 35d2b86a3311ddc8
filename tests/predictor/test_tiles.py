"""Objects at the borders of tiles are found once and whole.

The detector is one that finds every white part of a picture, exactly, and is surest of the parts
that end at a border: what joins tiles has to know better.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from sparsedet.predictor import Detections, Picture, Predictor
from sparsedet.predictor.tiles import Slicer
from tests.predictor.trained import write_checkpoint

pytest.importorskip("supervision")

Boxes = list[tuple[int, int, int, int]]


def find_white(pictures: list[Picture]) -> list[Detections]:
    found = []
    for picture in pictures:
        white = picture.pixels[0].numpy() > 0
        height, width = white.shape
        parts = ndimage.find_objects(ndimage.label(white)[0])
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in parts]
        cut = [x <= 0 or y <= 0 or r >= width or b >= height for x, y, r, b in boxes]
        scores = np.where(cut, 0.9, 0.8) if boxes else np.zeros(0)
        found.append(
            Detections(
                boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
                scores=scores.astype(np.float32),
                labels=np.zeros(len(boxes), np.int64),
                class_names=("white",),
                image_size=(height, width),
                keep_ratio=0.5,
            )
        )
    return found


def picture_of(boxes: Boxes, height: int = 400, width: int = 500) -> Picture:
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    for x, y, right, bottom in boxes:
        pixels[:, y:bottom, x:right] = 255
    return Picture(pixels, "picture.png")


def found_in(picture: Picture, **settings) -> Boxes:
    defaults = dict(overlap=0.3, whole=False, batch_size=2)
    slicer = Slicer(find_white, 100, **{**defaults, **settings})
    found = slicer(picture)
    assert found.image_size == picture.size and found.path == picture.path
    assert (np.diff(found.scores) <= 0).all()
    return sorted(tuple(int(side) for side in box) for box in found.boxes_xyxy)  # pyright: ignore


# at borders of tiles (every 70 pixels), in their corners, in none, and at those of the picture
SMALL: Boxes = [
    (60, 20, 82, 40),
    (90, 90, 110, 110),
    (165, 165, 185, 185),
    (20, 300, 40, 320),
    (480, 0, 500, 20),
    (0, 380, 20, 400),
    (237, 64, 247, 90),
]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_small_objects_are_found_once_and_whole(whole: bool, batch_size: int) -> None:
    assert found_in(picture_of(SMALL), whole=whole, batch_size=batch_size) == sorted(SMALL)


def test_wherever_a_small_object_lies() -> None:
    for x in range(0, 480, 7):
        box = (x, x // 2, x + 20, x // 2 + 20)
        assert found_in(picture_of([box])) == [box]


def test_large_objects_need_the_whole_picture() -> None:
    large = (30, 30, 330, 200)
    parts = found_in(picture_of([large]))
    assert large not in parts and parts
    others = SMALL[3:6]
    assert found_in(picture_of([large, *others]), whole=True) == sorted([large, *others])


def test_passes_that_see_an_object_differently() -> None:
    def unsteady(pictures: list[Picture]) -> list[Detections]:
        found = find_white(pictures)
        for each in found:  # 20 x 32 pixels here, 32 x 20 there: an IoU of 0.45
            each.boxes_xyxy[:, 2 + len(passes) % 2] += 12
            passes.append(each)
        return found

    passes: list[Detections] = []
    slicer = Slicer(unsteady, 100, overlap=0.8, whole=False, batch_size=1)
    assert len(slicer(picture_of([(60, 50, 80, 70)], 120, 300))) == 1


def test_classes_do_not_suppress_each_other() -> None:
    def two_classes(pictures: list[Picture]) -> list[Detections]:
        doubled = []
        for each in find_white(pictures):
            twice = {k: np.repeat(getattr(each, k), 2, 0) for k in ("boxes_xyxy", "scores")}
            labels = np.tile([0, 1], len(each))
            doubled.append(
                Detections(
                    **twice,
                    labels=labels,
                    class_names=("white", "bright"),
                    image_size=each.image_size,
                    keep_ratio=0.5,
                )
            )
        return doubled

    found = Slicer(two_classes, 100, overlap=0.3, whole=True, batch_size=2)(picture_of(SMALL))
    assert sorted(found.names) == ["bright"] * len(SMALL) + ["white"] * len(SMALL)


def test_a_picture_of_one_tile_is_looked_at_once() -> None:
    passes = []

    def counting(pictures: list[Picture]) -> list[Detections]:
        passes.extend(pictures)
        return find_white(pictures)

    Slicer(counting, 100, overlap=0.2, whole=True, batch_size=2)(picture_of([], 80, 100))
    assert len(passes) == 1
    Slicer(counting, 100, overlap=0.2, whole=True, batch_size=2)(picture_of([], 100, 180))
    assert [each.size for each in passes[1:]] == [(100, 100), (100, 100), (100, 180)]


def test_tiles_step_by_a_pixel_at_least() -> None:
    picture = picture_of([(10, 10, 30, 30)], height=101, width=102)
    assert found_in(picture, overlap=0.999) == [(10, 10, 30, 30)]


def test_nothing_to_find() -> None:
    found = Slicer(find_white, 100, overlap=0.2, whole=True, batch_size=2)(picture_of([]))
    assert len(found) == 0 and found.boxes_xyxy.shape == (0, 4) and found.keep_ratio == 0.5


def test_a_predictor_with_tiles(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path)
    array = np.random.default_rng(0).integers(256, size=(150, 200, 3), dtype=np.uint8)
    sizes: list[tuple[int, int, int]] = []
    predictor = Predictor(weights, device="cpu", tiles=100, whole=True)
    predictor.model.register_forward_pre_hook(
        lambda _, arguments: sizes.extend(tuple(s["image"].shape) for s in arguments[0])
    )
    found = predictor(array, score_threshold=0)
    assert sizes == [(3, 64, 64)] * 6 + [(3, 64, 85)]  # 3 x 2 tiles and the whole
    assert found.image_size == (150, 200)
    assert found.boxes_xyxy[:, 2].max() > 150
    assert 0 < predictor(array, keep_ratio=0.05).keep_ratio < found.keep_ratio
    for arguments, words in (
        (dict(tiles=0), r"tiles must be a number of pixels, got 0"),
        (dict(tiles=64, overlap=1.0), r"overlap must be in \[0, 1\), got 1.0"),
        (dict(tiles=64, overlap="0.2"), r"overlap must be in \[0, 1\), got '0.2'"),
    ):
        with pytest.raises(ValueError, match=words):
            Predictor(weights, **arguments)
