"""Detectors of every family are explained; what one of them lacks is said in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsedet import LazyCall, Predictor
from sparsedet.modeling import LevelScheduleSelector
from sparsedet.report import explain
from tests.predictor.trained import config
from tests.report.made import Opened, blocks, draw_picture, small, write_detector

CELLS = ("kept", "scores", "objects", "tiles")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(draw_picture(tmp_path_factory.mktemp("pictures") / "a.png", (96, 128)))


def page_of(folder: Path, predictor: Predictor, picture: Path, **options) -> tuple[dict, Opened]:
    """What the page says of a model, and the data of its only picture."""
    explain(predictor, picture, folder / "page.html", **{"repetitions": 0, **options})
    data = blocks(folder / "page.html")
    return data["explorer"]["models"][0], Opened(data["picture-0"]["views"][0])


def changed(folder: Path, **parts) -> Predictor:
    """A small Focus-DETR with other parts."""
    cfg = config(folder)
    cfg.model.selector.layer_ratios = None
    for name, part in parts.items():
        cfg.model[name] = part
    return Predictor(write_detector(folder, cfg), device="cpu")


def test_queries_that_see_everything_have_maps(tmp_path):
    """DETR: a map is the softmax of the query of that detection, which its box tells.

    The map is one column wider than the picture.
    """
    picture = Path(draw_picture(tmp_path / "a.png", (96, 100)))
    predictor = Predictor(write_detector(tmp_path, small("detr_photos")), device="cpu")
    facts, view = page_of(tmp_path, predictor, picture)
    assert facts["ratios"] == [None]
    assert set(facts["missing"]) == {"scores", "objects", "tiles", "ratio", "dense"}
    assert all(sentence.endswith(".") for sentence in facts["missing"].values())
    attention = view.run(None)["attention"]
    assert attention["kind"] == "map" and attention["count"] == 25
    maps = view.array(attention["values"], "u1").reshape(25, view.cells) / 255
    np.testing.assert_array_equal(maps.max(1), 1)
    calls = []
    attend = predictor.model.decoder.layers[-1].cross_attention
    hook = attend.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    found, output = predictor.explain(picture)
    hook.remove()
    x, pos, tokens, tokens_pos = (each[0] for each in calls[0][:4])
    query, key = (
        (inputs @ weight.T + bias).unflatten(-1, (attend.num_heads, -1))
        for inputs, weight, bias in zip(
            (x + pos, tokens + tokens_pos),
            attend.in_proj_weight.chunk(3),
            attend.in_proj_bias.chunk(3),
            strict=False,
        )
    )
    logits = torch.einsum("qmc,nmc->mqn", query, key) / query.shape[-1] ** 0.5
    expected = logits.masked_fill(~calls[0][4][0], -torch.inf).softmax(-1).mean(0)
    boxes = output.decoder[-1].boxes[0]
    for index in range(25):
        left, top, right, bottom = found.boxes_xyxy[index] / (100, 96, 100, 96)
        own = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
        row = expected[(boxes - own).abs().sum(1).argmin()].unflatten(0, (6, 8))[:, :7].flatten()
        np.testing.assert_allclose(maps[index], row / row.max(), atol=0.01)


def test_pooled_tokens_are_spread_over_the_cells_they_stand_for(tmp_path, picture):
    predictor = Predictor(write_detector(tmp_path, small("pnp_detr_photos")), device="cpu")
    facts, view = page_of(tmp_path, predictor, picture, ratios=(0.5,))
    own = predictor.model.selector.keep_ratio
    assert facts["ratios"] == sorted([own, 0.5, 1.0])
    for ratio in facts["ratios"]:
        _, output = predictor.explain(picture, keep_ratio=ratio)
        assert view.run(ratio)["pooled"] == output.memory.pooled.counts[0]
        maps = view.array(view.run(ratio)["attention"]["values"], "u1")
        assert maps.reshape(25, view.cells).max(1).tolist() == [255] * 25


def test_torchvision_has_detections_and_a_cost_alone(tmp_path, picture):
    predictor = Predictor(write_detector(tmp_path, small("faster_rcnn_photos")), device="cpu")
    facts, view = page_of(tmp_path, predictor, picture)
    assert {*CELLS, "attention", "ratio", "dense"} == set(facts["missing"])
    sentence = "TorchvisionDetector has no tokens to look at: only its detections and its cost"
    assert facts["missing"]["kept"].startswith(sentence)
    (run,) = view.view["passes"]
    found = predictor(picture, score_threshold=0.05)
    np.testing.assert_allclose(run["detections"]["scores"], found.scores[:100], atol=1e-4)
    assert {"backbone", "neck", "rpn", "roi_heads"} == set(run["cost"]["gflops"])
    assert view.view["levels"] == [] and view.view["input"] is None


@pytest.mark.slow
def test_an_exported_file_has_detections_alone(tmp_path, picture):
    path = tmp_path / "detector.pt2"
    changed(tmp_path).export(path, (64, 96))
    facts, view = page_of(tmp_path, Predictor(path), picture, repetitions=1)
    assert facts["missing"]["kept"].startswith("ExportedDetector has no tokens to look at: only")
    (run,) = view.view["passes"]
    assert run["cost"]["gflops"] is None and list(run["cost"]["ms"]) == ["whole"]
    found = Predictor(path)(picture, score_threshold=0.05)
    np.testing.assert_allclose(run["detections"]["scores"], found.scores[:100], atol=1e-4)


def test_tiles_are_those_that_the_model_looked_at(tmp_path):
    predictor = Predictor(write_detector(tmp_path, small("glance_and_look_photos")), device="cpu")
    picture = Path(draw_picture(tmp_path / "large.png", (600, 1000)))
    predictor.model.scorer.register_forward_hook(
        lambda _, inputs, scores: replace(scores, logits=scores.logits - 10)
    )
    facts, view = page_of(tmp_path, predictor, picture, ratios=())
    assert "tiles" not in facts["missing"]
    tiles, shown = predictor(picture).tiles, view.view["tiles"]
    assert shown["looked"] == tiles.looked.int().tolist() and 0 < sum(shown["looked"]) < len(tiles)
    boxes = np.array(shown["boxes"]) * (1000, 600, 1000, 600)
    np.testing.assert_allclose(boxes, tiles.boxes.tensor, atol=0.02)
    np.testing.assert_allclose(shown["scores"], tiles.scores, atol=1e-3)
    there = view.bits(view.view["there"])
    tokens = sum(level["tokens"] for level in view.view["levels"])
    assert there.sum() == tokens < view.cells
    for run in view.view["passes"]:
        assert not (view.bits(run["kept"][0]) & ~there).any()
        assert (view.array(run["scores"]["values"], "u1")[~there] == 0).all()


def test_a_schedule_of_levels_has_no_ratio_but_a_dense_form(tmp_path, picture):
    cfg = small("dino_photos")
    cfg.model.selector = LazyCall(LevelScheduleSelector)(levels=[[1, 2, 3], [0, 1, 2, 3]])
    predictor = Predictor(write_detector(tmp_path, cfg), device="cpu")
    facts, view = page_of(tmp_path, predictor, picture)
    assert facts["ratios"] == [None, 1.0]
    assert facts["missing"]["ratio"].startswith("LevelScheduleSelector has no keep ratio")
    assert "dense" not in facts["missing"]
    first = view.view["levels"][0]["tokens"]
    assert view.run(None)["counts"][0][0] == 0 and view.run(None)["counts"][1][0] == first
    assert view.run(1.0)["counts"][0][0] == first
    assert type(predictor.model.selector).__name__ == "LevelScheduleSelector"


def test_several_models_share_the_ratios_and_keep_their_classes(tmp_path, picture):
    first, second = changed(tmp_path / "a"), changed(tmp_path / "b")
    second.model.selector.keep_ratio = 0.7
    explain({"x": first, "y": second}, picture, tmp_path / "page.html", ratios=(), repetitions=0)
    data = blocks(tmp_path / "page.html")
    assert [each["name"] for each in data["explorer"]["models"]] == ["x", "y"]
    assert [each["ratios"] for each in data["explorer"]["models"]] == [[0.25, 0.7, 1.0]] * 2
    assert [each["ownRatio"] for each in data["explorer"]["models"]] == [0.25, 0.7]
    views = [Opened(view) for view in data["picture-0"]["views"]]
    assert views[0].run(0.7)["counts"] == views[1].run(0.7)["counts"]
