"""What is suggested fits the data, says what it costs, and is a line that a config takes."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from sparsedet.config import LazyConfig, get_config
from sparsedet.survey.settings import read_settings
from sparsedet.survey.suggest import Suggestion, limited_scales, suggest
from tests.survey.made import make_part


def suggestion_for(folder, pictures, config="photos", *overrides) -> Suggestion:
    cfg = LazyConfig.apply_overrides(get_config(config), list(overrides))
    return suggest([make_part(folder, pictures)], read_settings(cfg))


def values(suggestion: Suggestion) -> dict:
    return {override.key: override.value for override in suggestion.overrides}


def reason(suggestion: Suggestion, key: str) -> str:
    return next(each.reason for each in suggestion.overrides if each.key == key)


def test_small_objects_in_large_pictures_get_more_pixels_and_the_price_is_said(tmp_path):
    pictures = [(1080, 1920, [(50, 50, 0)] * 4)] * 8
    found = suggestion_for(tmp_path, pictures)
    side, limit = values(found)["dataset.test_short_side"], values(found)["dataset.max_size"]
    scale = min(side / 1080, limit / 1920)
    assert 50 * scale >= found.goal == 16
    assert 50 * (side - 16) / 1080 < 16, "a smaller side would do"
    assert f"{(scale * 1080 / 240) ** 2:.2g} times" in reason(found, "dataset.test_short_side")
    spread = values(found)["dataset.short_sides"]
    assert spread[0] < side < spread[-1] and len(spread) == 5


def test_what_is_too_dear_is_not_suggested(tmp_path):
    pictures = [(2250, 4000, [(24, 24, 0)] * 4)] * 4
    found = suggestion_for(tmp_path, pictures)
    assert found.sizes.tenth < found.goal
    assert found.sizes.pixels <= 4 * 240 * 320
    assert found.sizes.pixels > 3 * 240 * 320


def test_pictures_are_not_blown_up_where_objects_are_large(tmp_path):
    found = suggestion_for(tmp_path, [(96, 128, [(60, 60, 0)])] * 4)
    assert values(found)["dataset.test_short_side"] == 96
    assert "enlarges" in reason(found, "dataset.test_short_side")
    small = suggestion_for(tmp_path, [(96, 128, [(8, 8, 0)])] * 4)
    assert small.sizes.short_side >= 192, "here enlarging has a reason"


def test_panoramas_are_limited_by_what_they_are(tmp_path):
    pictures = [(250, 2500, [(60, 60, 0)] * 3)] * 4
    found = suggestion_for(tmp_path, pictures)
    scale = limited_scales(np.array([[250.0, 2500.0]]), *found.sizes.sides)[0]
    assert 60 * scale >= 16
    assert values(found)["dataset.max_size"] > 600
    assert found.sizes.short_side <= 250 * scale + 16, "a short side that no picture reaches"


def test_dense_pictures_get_queries_and_detections(tmp_path):
    found = suggestion_for(tmp_path, [(240, 320, [(20, 20, 0)] * 260)])
    assert values(found)["model.query_initializer.num_queries"] == 400
    assert values(found)["model.max_detections"] == 400
    few = suggestion_for(tmp_path, [(240, 320, [(20, 20, 0)] * 60)])
    assert "model.query_initializer.num_queries" not in values(few)


@pytest.mark.parametrize("longer, first", [(30, 16), (40, None), (48, None), (76, 40), (200, 48)])
def test_the_median_object_belongs_to_the_middle_levels(tmp_path, longer, first):
    found = suggestion_for(tmp_path, [(240, 320, [(longer, longer, 0)] * 3)])
    got = values(found).get("model.criterion.unmatched.0.size_ranges")
    if first is None:
        assert got is None, "the config's begin at 24"
    else:
        ranges = [[-1, first], [first // 2, 2 * first], [first, 4 * first], [2 * first, 999999]]
        assert got == ranges


def test_many_pictures_take_more_iterations(tmp_path):
    length = "train.max_iter=500", "dataloader.train.total_batch_size=8"
    found = suggestion_for(tmp_path, [(240, 320, [(48, 48, 0)])] * 1000, "photos", *length)
    assert values(found)["train.max_iter"] == 1250
    assert values(found)["train.eval_period"] == 130
    fewer = suggestion_for(tmp_path, [(240, 320, [(48, 48, 0)])] * 400, "photos", *length)
    assert "train.max_iter" not in values(fewer)


@pytest.mark.parametrize(
    "sides, bounds",
    [
        ([10, 40, 120], None),  # COCO's tell them apart
        ([4, 8, 16] * 3, [36, 100]),  # all are small to COCO
        ([9, 10, 10], None),  # nothing to tell apart
    ],
)
def test_area_bounds_move_where_all_objects_are_of_one_size(tmp_path, sides, bounds):
    found = suggestion_for(tmp_path, [(240, 320, [(side, side, 0) for side in sides])])
    got = values(found).get("dataloader.evaluator.area_bounds")
    if bounds is None:
        assert got is None
    else:
        small, large = (bound**0.5 for bound in got)
        assert 4 <= small < large <= 16


def test_bounds_of_another_set_give_way_to_those_of_coco(tmp_path):
    boxes = [(60, 60, 0)] * 4 + [(120, 120, 0)] * 4
    found = suggestion_for(tmp_path, [(240, 320, boxes)], "quickstart")
    assert values(found)["dataloader.evaluator.area_bounds"] == [1024, 9216]


def test_what_fits_is_left_alone(tmp_path):
    assert not suggestion_for(tmp_path, [(240, 320, [(48, 48, 0), (30, 30, 0)])]).overrides


@pytest.mark.parametrize("config", ["photos", "quickstart", "focus_detr_r50_12ep"])
def test_the_line_is_taken_by_the_config_and_leaves_nothing_to_suggest(tmp_path, config):
    pictures = [(720, 960, [(60 + 9 * (i % 3), 60, 0) for i in range(220)])] * 3
    found = suggestion_for(tmp_path, pictures, config)
    words = shlex.split(str(found))
    assert words
    assert not suggestion_for(tmp_path, pictures, config, *words).overrides
