"""What a glance shows of a set, what is worth a look, and whom the report sends to it."""

from __future__ import annotations

import shlex

import pytest

from sparsedet.config import LazyConfig, get_config, instantiate
from sparsedet.data import open_dataset
from sparsedet.survey import Survey
from sparsedet.survey.looking import Seen, wanted_ranges
from sparsedet.survey.settings import Looking, read_settings
from sparsedet.survey.suggest import suggest
from tests.survey.made import make_part, make_set

LOOKS = "glance_and_look_photos"  # tiles of 256, a glance of 1/4, a look ratio of 0.2
LOOKING = Looking(4, 100, 16, 0.2, "model.regions.look_ratio", levels=4)


def suggested(folder, pictures, config=LOOKS, *overrides):
    cfg = LazyConfig.apply_overrides(get_config(config), list(overrides))
    return suggest([make_part(folder, pictures)], read_settings(cfg))


def survey(folder, pictures, config=LOOKS, *overrides) -> Survey:
    cfg = LazyConfig.apply_overrides(get_config(config), ["dataset.num_classes=1", *overrides])
    dataset = open_dataset(make_set(folder, pictures))
    return Survey.of({"training": (dataset, instantiate(cfg.dataloader.train.mapper))}, cfg)


def test_tiles_that_hold_a_hidden_object_are_counted(tmp_path):
    """Boxes of 20 pixels need a look, those of 90 do not; two of the first kind share a tile."""
    boxes = [(20, 20, 0), (20, 20, 0), (90, 90, 0), (20, 20, 0)]
    part = make_part(tmp_path, [(250, 400, boxes), (100, 100, [(90, 90, 0)])])
    part.centers[:4] = [(10, 10), (90, 99), (150, 150), (249, 399)]
    seen = Seen(part, LOOKING, scale=part.pictures[:, 0] * 0 + 1)
    assert seen.hidden.tolist() == [True, True, False, True, False]
    assert seen.tiles.tolist() == pytest.approx([2 / 12, 0])  # 3 x 4 tiles
    twice = Seen(part, LOOKING, scale=part.pictures[:, 0] * 0 + 2)  # 5 x 8 tiles
    assert twice.tiles.tolist() == pytest.approx([3 / 40, 0])
    assert seen.share_without_trace(4) == 0 and seen.share_without_trace(8) == 3 / 5


@pytest.mark.parametrize("config", [LOOKS, "glance_and_look_r50_2560_12ep"])
def test_ranges_are_those_of_the_configs(config):
    settings = read_settings(get_config(config))
    whole, glance = ([list(map(int, pair)) for pair in each.pairs] for each in settings.ranges)
    bound = settings.looking.bound
    assert wanted_ranges(bound, 6, glance=False) == whole
    assert wanted_ranges(bound, 4, glance=True) == glance


def test_a_finer_glance_for_objects_that_leave_no_trace(tmp_path):
    found = suggested(tmp_path, [(2250, 4000, [(10, 10, 0)] * 5)] * 4)
    values = {each.key: each.value for each in found.overrides}
    assert values["model.regions.glance_factor"] == 2
    assert "100%" in found.overrides[0].reason
    words = shlex.split(str(found))
    cfg = LazyConfig.apply_overrides(get_config(LOOKS), [*words, "dataset.num_classes=1"])
    cfg.model.backbone.weights = None
    model = instantiate(cfg.model)
    assert model.strides == (8, 16, 32, 64, 128)
    terms = [*model.criterion.unmatched, *model.criterion.regions]
    assert [len(term.size_ranges) for term in terms] == [5, 4]
    assert not suggested(tmp_path, [(2250, 4000, [(10, 10, 0)] * 5)] * 4, LOOKS, *words).overrides


@pytest.mark.parametrize("per_picture, ratio", [(1, None), (100, 0.8), (144, 1.0)])
def test_the_look_ratio_follows_the_tiles_that_need_a_look(tmp_path, per_picture, ratio):
    """Of 9 x 16 tiles of 256 pixels, so many hold a box of 40."""
    part = make_part(tmp_path, [(2250, 4000, [(40, 40, 0)] * per_picture)] * 4)
    place = [(128 + 256 * (n // 16), 128 + 256 * (n % 16)) for n in range(per_picture)]
    part.centers[:] = [(min(y, 2249), min(x, 3999)) for y, x in place] * 4
    cfg = LazyConfig.apply_overrides(get_config(LOOKS), ["model.regions.look_ratio=0.1"])
    found = suggest([part], read_settings(cfg))
    (got,) = [each.value for each in found.overrides if "look_ratio" in each.key] or [None]
    expected = {1: None, 100: 0.85, 144: 1.0}[per_picture]
    assert got == expected


def test_an_adaptive_choice_has_its_own_key(tmp_path):
    adaptive = "model.regions.selector={_target_: AdaptiveSelector, keep_ratio: 0.9}"
    pictures = [(2250, 4000, [(40, 40, 0)])] * 4
    found = suggested(tmp_path, pictures, LOOKS, "model.regions.look_ratio=null", adaptive)
    (look,) = [each for each in found.overrides if "regions" in each.key]
    assert (look.key, look.value) == ("model.regions.selector.keep_ratio", 0.05)


def test_sides_are_not_suggested_where_pictures_keep_their_sizes(tmp_path):
    settings = read_settings(get_config(LOOKS))
    assert settings.test_short_side is settings.max_size is settings.short_sides is None
    assert read_settings(get_config("photos")).test_short_side == 240


# --- words


def test_the_report_says_what_a_glance_shows(tmp_path):
    report = survey(tmp_path, [(2250, 4000, [(40, 20, 0)])] * 4).report()
    assert (
        "in the glance (the picture at 1/4), the longer side of a box has 10  10  10 pixels"
        in report
    )
    assert "100% of the boxes are below 16 pixels there, and their tiles must be chosen" in report
    assert "such boxes lie in 0.7% of the tiles of 256 pixels on average" in report
    assert "glance" not in survey(tmp_path, [(240, 320, [(40, 20, 0)])] * 4, "photos").report()


@pytest.mark.parametrize(
    ("box", "overrides", "says"),
    [
        (40, (), None),
        (10, (), "below 3 pixels in the glance (the picture at 1/4)"),
        (90, (), "choosing tiles only costs time"),
        (40, ("model.regions.look_ratio=0.001",), "Add model.regions.look_ratio=0.05"),
    ],
)
def test_what_a_glance_and_a_look_lose_is_said(tmp_path, box, overrides, says):
    found = survey(tmp_path, [(2250, 4000, [(box, box, 0)] * 3)] * 4, LOOKS, *overrides).misfits()
    assert [text for text in found if says is None or says not in text] == []
    assert len(found) == (says is not None)


@pytest.mark.parametrize(
    ("picture", "config", "said"),
    [
        ((2250, 4000, [(40, 40, 0)] * 3), "photos", True),
        ((2250, 4000, [(40, 40, 0)] * 3), LOOKS, False),
        ((2250, 4000, [(1200, 1200, 0)] * 3), "photos", False),  # large objects
        ((600, 800, [(12, 12, 0)] * 3), "photos", False),  # small pictures
    ],
)
def test_sets_of_small_objects_in_large_pictures_are_told_of_a_model_that_looks(
    tmp_path, picture, config, said
):
    found = "\n".join(survey(tmp_path, [picture] * 4, config).misfits())
    assert ("The configs of projects/large_images process such pictures" in found) == said
