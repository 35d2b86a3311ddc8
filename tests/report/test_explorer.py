"""The explorer page says what the model says, whatever the family, the names and the files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsedet import Predictor
from sparsedet.analysis import count_flops
from sparsedet.data import DatasetError
from sparsedet.modeling import DenseSelector
from sparsedet.report import explain
from sparsedet.report.looking import ExplainedModel
from tests.predictor.trained import config
from tests.report.made import CLASSES, Opened, blocks, draw_picture, write_detector

RATIOS = (0.1, 0.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    cfg = config(folder)
    cfg.model.selector.layer_ratios, cfg.model.decoder.num_layers = None, 2
    write_detector(folder, cfg)
    draw_picture(folder / "wide.png", (64, 100))
    draw_picture(folder / "tall.png", (300, 150), seed=1)
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder / "model_best.pth", device="cpu")


@pytest.fixture(scope="module")
def page(folder: Path, predictor: Predictor) -> dict:
    """The data of a page with two pictures."""
    pictures = [folder / "wide.png", folder / "tall.png"]
    written = explain(predictor, pictures, folder / "page.html", ratios=RATIOS, repetitions=1)
    assert written.pictures == 2
    assert written.num_bytes == (folder / "page.html").stat().st_size
    return blocks(folder / "page.html")


def opened(page: dict, picture: int = 0, model: int = 0) -> Opened:
    return Opened(page[f"picture-{picture}"]["views"][model])


def of_image(features, values: torch.Tensor) -> np.ndarray:
    """What the cells of the first image have, without those of padding."""
    levels = features.split_levels(values[None])
    shown = [
        level[0].unflatten(0, shape)[:rows, :columns].flatten()
        for level, shape, (rows, columns) in zip(
            levels, features.spatial_shapes, features.level_sizes[0], strict=True
        )
    ]
    return torch.cat(shown).numpy()


def test_kept_and_object_tokens_are_those_of_the_model(folder, predictor, page):
    """Of every ratio and layer; the picture of 64 x 100 is padded to 64 x 128."""
    view = opened(page)
    assert [each["ratio"] for each in view.view["passes"]] == [0.1, 0.25, 0.6, 1.0]
    for ratio in (0.1, 0.25, 0.6, 1.0):
        _, output = predictor.explain(folder / "wide.png", keep_ratio=ratio)
        run, features = view.run(ratio), output.features
        assert run["keptShare"] == pytest.approx(output.keep_ratios[0], abs=1e-5)
        for layer, selection in enumerate(output.selections):
            mask = of_image(features, selection.mask(features.num_tokens)[0])
            np.testing.assert_array_equal(view.bits(run["kept"][layer]), mask)
            assert sum(run["counts"][layer]) == mask.sum()
        for layer, objects in enumerate(output.objects):
            mask = of_image(features, objects.selection.mask(features.num_tokens)[0])
            np.testing.assert_array_equal(view.bits(run["objects"][layer]), mask)
    assert [(x["rows"], x["columns"]) for x in view.view["levels"]] == [(8, 13), (4, 7), (2, 4)]


def test_scores_tell_why_a_token_is_kept(folder, predictor, page):
    view = opened(page, 1)
    _, output = predictor.explain(folder / "tall.png", keep_ratio=0.1)
    logits = of_image(output.features, output.scores.logits[0])
    scores = view.run(0.1)["scores"]
    low, high = scores["bounds"]
    shown = low + view.array(scores["values"], "u1") / 255 * (high - low)
    np.testing.assert_allclose(shown, logits, atol=(high - low) / 505)
    kept = view.bits(view.run(0.1)["kept"][0])
    assert scores["lowest"][0] == pytest.approx(logits[kept].min(), abs=1e-4)
    assert (logits[~kept] <= scores["lowest"][0] + 1e-4).all()


def test_detections_are_those_of_the_predictor_also_without_selection(folder, predictor, page):
    for ratio in (0.25, 1.0):
        found = predictor(folder / "tall.png", keep_ratio=ratio, score_threshold=0.05)
        shown = opened(page, 1).run(ratio)["detections"]
        boxes = np.array(shown["boxes"]) * (150, 300, 150, 300)
        np.testing.assert_allclose(boxes, found.boxes_xyxy, atol=0.01)
        np.testing.assert_allclose(shown["scores"], found.scores, atol=1e-4)
        assert shown["labels"] == found.labels.tolist()


def test_points_are_those_where_the_query_of_a_detection_reads(folder, predictor, page):
    """The query is found by its box, which no other one has; the map is wider than the picture."""
    seen = []
    layer = predictor.model.decoder.layers[-1]
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output[1:]))
    found, output = predictor.explain(folder / "wide.png", keep_ratio=0.6)
    hook.remove()
    boxes = output.decoder[-1].boxes[0].clone()
    boxes = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), dim=1)
    view = opened(page)
    attention = view.run(0.6)["attention"]
    shape = [attention[name] for name in ("count", "heads", "levels", "samples")]
    assert shape == [25, *seen[0][1].shape[2:]]
    points = view.array(attention["points"], "<i2").reshape(*shape, 2) / attention["units"]
    weights = view.array(attention["weights"], "<u2").reshape(shape) / 65535
    np.testing.assert_allclose(weights.sum((2, 3)), 1, atol=1e-3)
    h, w = output.features.image_sizes[0]
    for index in range(5):
        own = torch.from_numpy(found.boxes_xyxy[index]) / torch.tensor([100, 64, 100, 64])
        query = (boxes.clamp(0, 1) - own).abs().sum(1).argmin()
        locations, own_weights = (each[0, query].numpy() for each in seen[0])
        np.testing.assert_allclose(weights[index], own_weights, atol=1e-4)
        for level, (rows, columns) in enumerate(output.features.spatial_shapes):
            stride = output.features.strides[level]
            expected = locations[:, level] * (columns * stride / w, rows * stride / h)
            inside = np.abs(expected) < 3
            np.testing.assert_allclose(points[index, :, level][inside], expected[inside], atol=2e-4)


def test_the_cost_is_that_of_the_pass(predictor, page):
    """Of the size of each picture and of each ratio; a heavier pass costs more in the encoder."""
    for picture, size in ((0, (64, 100)), (1, (128, 64))):
        passes = opened(page, picture).view["passes"]
        encoder = [each["cost"]["gflops"]["encoder"] for each in passes]
        assert encoder == sorted(encoder) and encoder[0] < encoder[-1]
        counted = count_flops(predictor.model, size).stages
        own = opened(page, picture).run(0.25)["cost"]
        assert own["gflops"]["encoder"] == pytest.approx(counted["encoder"], abs=1e-4)
        assert own["ms"]["encoder"] > 0
    assert predictor.model.selector.keep_ratio == 0.25


def test_a_cascade_that_refuses_ratio_one_is_dense_all_the_same(tmp_path):
    cfg = config(tmp_path)
    cfg.model.selector.keep_ratio, cfg.model.selector.layer_ratios = None, [0.6, 0.2]
    path = write_detector(tmp_path, cfg)
    draw_picture(tmp_path / "a.png", (96, 128))
    predictor = Predictor(path, device="cpu")
    own = predictor.model.selector
    assert own.keep_ratio == pytest.approx(0.4)
    model = ExplainedModel("", predictor)
    assert model.ratios((0.3, 0.9)) == [0.3, pytest.approx(0.4), 1.0]  # 0.9 means 1.35 in layer 1
    dense = model.look(predictor.read(tmp_path / "a.png"), 1.0, 5)
    assert dense.output.keep_ratios == (1.0,)
    assert predictor.model.selector is own and own.keep_ratio == pytest.approx(0.4)
    predictor.model.selector = DenseSelector()
    expected, _ = predictor.explain(tmp_path / "a.png")
    np.testing.assert_allclose(dense.found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("size", [(2000, 3000), (5000, 400)])
def test_pictures_are_as_large_as_a_screen_shows_them(predictor, tmp_path, size):
    draw_picture(tmp_path / "a.png", size)
    picture = tmp_path / "a.png"
    one = explain(predictor, picture, tmp_path / "1.html", ratios=(), repetitions=0)
    four = explain(predictor, [picture] * 4, tmp_path / "4.html", ratios=(), repetitions=0)
    assert one.num_bytes < 250_000
    assert four.num_bytes - one.num_bytes < 4 * 150_000
    assert blocks(tmp_path / "1.html")["picture-0"]["size"] == list(size)


def test_any_name_is_shown_and_ends_no_script(folder, tmp_path):
    """Of files, of classes and of models; a name whose bytes are no UTF-8 loses these alone."""
    weights = write_detector(tmp_path, config(tmp_path))
    os.makedirs(tmp_path / "<" / "b")
    names = [b"</script><script>alert(1)</script>.png", "\u732b & co.png".encode(), b"\xff.png"]
    places = [os.path.join(os.fsencode(tmp_path), b"<", b"b", names[0].replace(b"/", b"\\"))]
    places += [os.path.join(os.fsencode(tmp_path), name) for name in names[1:]]
    files = [os.fsdecode(draw_picture(each, (64, 80))) for each in places]
    predictor = Predictor(weights, device="cpu")
    explain({"<i>m": predictor}, files, tmp_path / "page.html", ratios=(), repetitions=0)
    text = (tmp_path / "page.html").read_text("utf-8")
    data = blocks(tmp_path / "page.html")
    assert text.count("<script") == text.count("</script>") == len(data) + 1 == 5
    shown = [each["name"] for each in data["explorer"]["pictures"]]
    assert shown == ["<\\script><script>alert(1)<\\script>.png", "\u732b & co.png", "\ufffd.png"]
    assert data["explorer"]["models"][0]["name"] == "<i>m"
    assert data["explorer"]["models"][0]["classes"] == CLASSES


def test_a_page_needs_nothing_from_elsewhere(folder, page):
    text = (folder / "page.html").read_text("utf-8")
    assert "://" not in text.replace("data:image/jpeg", "")
    assert "default-src 'none'" in text
    assert not [
        word for word in ('<link rel="stylesheet', "@import", "fetch(", 'src="') if word in text
    ]


def test_pictures_that_cannot_be_read_are_told_and_left_out(folder, predictor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    said: list[str] = []
    written = explain(
        predictor,
        [tmp_path / "broken.png", folder / "wide.png"],
        tmp_path / "page.html",
        ratios=(),
        repetitions=0,
        on_error=lambda error: said.append(str(error)),
    )
    assert written.pictures == 1 and "broken.png" in said[0]
    (tmp_path / "page.html").write_text("old")
    with pytest.raises(DatasetError, match="none of the pictures"):
        explain(predictor, tmp_path / "broken.png", tmp_path / "page.html", on_error=said.append)
    with pytest.raises(DatasetError, match="broken"):
        explain(predictor, tmp_path / "broken.png", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "old"
    assert {each.name for each in tmp_path.iterdir()} == {"broken.png", "page.html"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(ratios=(0.3, 1.5)), "explain.ratios must be in (0, 1], got 1.5"),
        (dict(score_threshold=2), "explain.score_threshold must be in [0, 1], got 2"),
        (dict(repetitions=-1), "explain.repetitions must be at least 0, got -1"),
    ],
)
def test_values_outside_of_their_range_are_refused(predictor, folder, tmp_path, arguments, says):
    with pytest.raises(ValueError) as error:
        explain(predictor, folder / "wide.png", tmp_path / "page.html", **arguments)
    assert says in str(error.value)
    with pytest.raises(ValueError, match="at least one predictor"):
        explain({}, folder / "wide.png", tmp_path / "page.html")
    assert not any(tmp_path.iterdir())
