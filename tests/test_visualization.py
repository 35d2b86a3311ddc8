"""Which pixels a token lights, and what a figure says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from sparsedet.modeling import PooledTokens
from sparsedet.modeling.stages import (
    DetectorOutput,
    ObjectTokens,
    PartialMap,
    Prediction,
    TokenScores,
    TokenSelection,
    flatten_maps,
)
from sparsedet.structures import Boxes, Instances
from sparsedet.visualization import (
    LevelTokens,
    cells_to_pixels,
    class_color,
    draw_detections,
    draw_kept_tokens,
    draw_layer_tokens,
    draw_scores,
    layer_figure,
    level_figure,
    token_figure,
    token_levels,
)

STRIDES = (8, 16)
# the second image has 3 x 4 cells of the padded 4 x 6 on level 1, and 2 x 2 of 2 x 3 on level 2
SIZES = ((32, 48), (20, 27))


def make_output(
    *selections: TokenSelection, scored: bool = True, objects: tuple[ObjectTokens, ...] = ()
) -> DetectorOutput:
    maps = [torch.zeros(2, 4, 4, 6), torch.zeros(2, 4, 2, 3)]
    pos = torch.zeros(2, 30, 4)
    features = flatten_maps(maps, lambda *_: pos, strides=STRIDES, image_sizes=SIZES)
    scores = TokenScores(torch.arange(2.0 * 30).view(2, 30)) if scored else None
    prediction = Prediction(torch.zeros(2, 1, 3), torch.rand(2, 1, 4))
    return DetectorOutput(
        (prediction,), features, features, selections, scores=scores, objects=objects
    )


def select(first: list[int], second: list[int]) -> TokenSelection:
    """A selection of tokens 29, 28, ... as fillers where the second image keeps fewer."""
    fillers = list(range(29, 29 - len(first) + len(second), -1))
    valid = [[True] * len(first), [True] * len(second) + [False] * len(fillers)]
    counts = (len(first), len(second))
    return TokenSelection(counts, torch.tensor([first, second + fillers]), torch.tensor(valid))


def detections(*scores: float, size: tuple[int, int] = (40, 54)) -> Instances:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 36.0]] * len(scores)).view(-1, 4)
    classes = torch.zeros(len(scores), dtype=torch.long)
    return Instances(
        size, pred_boxes=Boxes(boxes), scores=torch.tensor(scores), pred_classes=classes
    )


def test_tokens_are_found_in_their_cells() -> None:
    """Rows are as wide as the padded map; fillers and padding are not shown."""
    output = make_output(select([7, 0, 26], [7, 24]))
    first, second = token_levels(output, 0), token_levels(output, 1)
    assert [level.kept.shape for level in first] == [(1, 4, 6), (1, 2, 3)]
    assert [level.kept.shape for level in second] == [(1, 3, 4), (1, 2, 2)]
    assert np.argwhere(first[0].kept[0]).tolist() == [[0, 0], [1, 1]]
    assert np.argwhere(first[1].kept[0]).tolist() == [[0, 2]]
    assert np.argwhere(second[0].kept[0]).tolist() == [[1, 1]]
    assert np.argwhere(second[1].kept[0]).tolist() == [[0, 0]]
    assert second[0].scores is not None
    assert second[0].scores[2].tolist() == [42.0, 43.0, 44.0, 45.0]


def test_dense_encoders_keep_every_token_but_padding() -> None:
    output = make_output(TokenSelection((30, 16)), scored=False)
    assert all(level.kept.all() and level.scores is None for level in token_levels(output, 1))
    assert [level.counts for level in token_levels(output, 1)] == [(12,), (4,)]


def test_absent_cells_are_no_tokens_and_black(words: list[str]) -> None:
    output = make_output(select([0, 7], [7, 8]), scored=False)
    cells = torch.arange(12).expand(2, -1)
    valid = cells < torch.tensor([[12], [8]])
    fine = PartialMap(torch.zeros(2, 12, 4), cells, valid, (4, 6), (12, 8), True)
    features = flatten_maps(
        [fine, torch.zeros(2, 4, 2, 3)],
        lambda *_: torch.zeros(2, 18, 4),
        strides=STRIDES,
        image_sizes=SIZES,
    )
    output = replace(output, features=features, memory=features)
    fine, coarse = token_levels(output)
    assert (fine.num_tokens, fine.num_cells) == (12, 24) and coarse.there is None
    white = Image.new("RGB", (48, 32), "white")
    shown = np.asarray(draw_kept_tokens(white, fine, SIZES[0]))
    assert not shown[16:].any() and shown[:16].any(-1).all()
    token_figure(white, output, detections(size=(32, 48)))
    assert "level 1, stride 8, 50.0 % processed" in words and "level 2, stride 16" in words
    output = replace(output, selections=(features.all_tokens,))
    token_figure(white, output, detections(size=(32, 48)))
    assert "dense encoder: all 18 tokens in each of 1 layers" in words


@pytest.mark.parametrize("scale", [1, 3])
def test_a_cell_covers_its_stride_also_where_the_image_ends(scale: int) -> None:
    cells = np.arange(12).reshape(3, 4)
    size = (20 * scale, 27 * scale)
    pixels = cells_to_pixels(cells, stride=8, image_size=(20, 27), size=size)
    for row in range(3):
        for column in range(4):
            window = pixels[8 * scale * row : 8 * scale * (row + 1)]
            window = window[:, 8 * scale * column : 8 * scale * (column + 1)]
            assert (window == cells[row, column]).all()
    assert (pixels == 11).sum() == 4 * 3 * scale**2


def test_scales_that_fit_no_cell_leave_none_out() -> None:
    cells = np.arange(24).reshape(4, 6)
    pixels = cells_to_pixels(cells, stride=8, image_size=(32, 48), size=(17, 23))
    assert pixels.shape == (17, 23)
    assert set(pixels.ravel()) == set(cells.ravel())
    assert (np.diff(pixels) >= 0).all() and (np.diff(pixels, axis=0) >= 0).all()


@pytest.mark.parametrize("scale", [1, 2])  # with lines between the cells, and without
def test_kept_cells_are_lit_and_no_other_pixel(scale: int) -> None:
    kept = np.zeros((1, 4, 6), dtype=bool)
    kept[0, 1, 2] = kept[0, 3, 5] = True
    picture = Image.new("RGB", (24 * scale, 16 * scale), (100, 150, 200))
    shown = np.asarray(draw_kept_tokens(picture, LevelTokens(8, kept), (32, 48)))
    lit = np.zeros(shown.shape[:2], dtype=bool)
    cell = 4 * scale
    lit[cell : 2 * cell, 2 * cell : 3 * cell] = True
    lit[3 * cell :, 5 * cell :] = True
    assert (shown[~lit] == (30, 45, 60)).all()
    assert (shown[lit].max(-1) > 100).all()


def test_the_color_says_how_many_layers_keep_a_cell() -> None:
    kept = np.zeros((3, 2, 2), dtype=bool)
    kept[:, 0, 0] = kept[:2, 0, 1] = kept[1:, 1, 0] = True
    picture = Image.new("RGB", (4, 4), (128, 128, 128))
    shown = np.asarray(draw_kept_tokens(picture, LevelTokens(16, kept), (32, 32)))
    colors = {tuple(shown[y, x]) for y, x in ((0, 0), (0, 2), (3, 3))}
    assert len(colors) == 3
    assert (shown[0, 2] == shown[2, 0]).all()  # two layers, though not the same two


def test_dots_are_in_the_cells_of_object_tokens_of_any_layer() -> None:
    kept, objects = np.ones((2, 4, 6), dtype=bool), np.zeros((2, 4, 6), dtype=bool)
    objects[0, 1, 2] = objects[1, 3, 5] = True
    picture = Image.new("RGB", (240, 160), (100, 150, 200))
    plain, dotted = (
        np.asarray(draw_kept_tokens(picture, LevelTokens(8, kept, None, x), (30, 45)))
        for x in (None, objects)
    )
    changed = (plain != dotted).any(-1)
    rows, columns = np.nonzero(changed)  # a cell is 42.7 pixels wide; the input ends in the last
    middles = {(64, 107), (144, 227)}
    assert all(changed[middle] for middle in middles)
    distances = [np.hypot(rows - y, columns - x) for y, x in middles]
    assert np.minimum(*distances).max() < 7, "small, though the cells are large"


def test_objects_are_found_in_their_cells() -> None:
    """Recorded among the kept tokens; a filler is none."""
    kept = select([7, 0, 26], [7, 24])
    rows = TokenSelection(
        (2, 1), torch.tensor([[2, 0], [1, 2]]), torch.tensor([[1, 1], [1, 0]]) > 0
    )
    output = make_output(kept, objects=(ObjectTokens(kept, rows),))
    first, second = token_levels(output, 0), token_levels(output, 1)
    assert first[0].objects is not None and first[1].objects is not None
    assert np.argwhere(first[0].objects[0]).tolist() == [[1, 1]]
    assert np.argwhere(first[1].objects[0]).tolist() == [[0, 2]]
    assert [level.objects.sum() for level in second] == [0, 1]
    assert all(level.objects is None for level in token_levels(make_output(kept)))


def test_a_layer_shows_the_finest_level_that_it_keeps() -> None:
    fine, coarse = np.zeros((2, 4, 6), dtype=bool), np.zeros((2, 2, 3), dtype=bool)
    fine[0, 0, 0] = coarse[0, 0, 0] = coarse[0, 0, 2] = True
    none = np.zeros_like(coarse)
    levels = (LevelTokens(8, fine, None, fine), LevelTokens(16, coarse, None, none))
    picture = Image.new("RGB", (24, 16), (128, 128, 128))  # too small for lines between the cells
    shown = np.asarray(draw_layer_tokens(picture, levels, 0, (32, 48)))
    finest, coarser, dim = shown[2, 2], shown[6, 6], shown[14, 2]
    assert len({tuple(color) for color in (finest, coarser, dim)}) == 3
    assert (shown[:4, :4] == finest).all() and (shown[:8, 16:] == coarser).all()
    assert (shown[4:8, :4] == coarser).all() and (shown[8:] == dim).all()
    assert (np.asarray(draw_layer_tokens(picture, levels, 1, (32, 48))) == dim).all()
    objects = np.asarray(draw_layer_tokens(picture, levels, 0, (32, 48), objects=True))
    assert (objects[:4, :4] == finest).all() and (objects[:, 8:] == dim).all()
    large = np.asarray(draw_layer_tokens(picture.resize((48, 32)), levels, 0, (32, 48)))
    assert (large[2:6, 2:6] == finest).all() and (large[7, 2:6] != finest).any(-1).all()
    assert (large[10:14, 2:14] == coarser).all(), "the cells of a level are whole"


def test_scores_share_one_scale() -> None:
    picture = Image.new("RGB", (4, 2))
    low, high = (
        LevelTokens(16, np.ones((1, 1, 2), dtype=bool), np.array([scores]))
        for scores in ([0.0, 4.0], [4.0, 8.0])
    )
    shown = [np.asarray(draw_scores(picture, each, (16, 32), (0, 8))) for each in (low, high)]
    assert (shown[0][0, 3] == shown[1][0, 0]).all()
    assert shown[1][0, 3].sum() > shown[1][0, 0].sum()


def test_detections_are_scaled_and_below_the_threshold_left_out() -> None:
    picture = Image.new("RGB", (108, 80))
    drawn = np.asarray(draw_detections(picture, detections(0.9), score_threshold=0.5))
    edge = drawn[72, 20:60]  # the lower side of the box, at twice the size
    assert (edge == edge[0]).all() and edge[0].any()
    assert not drawn[74:].any() and not drawn[:, :18].any()
    none = draw_detections(picture, detections(0.4), score_threshold=0.5)
    assert not np.asarray(none).any()


@pytest.mark.parametrize(("times", "line"), [(1, 1), (10, 2), (40, 9)])
def test_lines_are_in_proportion_to_the_picture(times: int, line: int) -> None:
    picture = Image.new("RGB", (108 * times, 80 * times))
    drawn = np.asarray(draw_detections(picture, detections(0.9), score_threshold=0.5)).any(-1)
    across = drawn[50 * times]  # left and right side of the box
    assert across.sum() == 2 * line


def test_lines_do_not_hide_small_objects() -> None:
    picture = Image.new("RGB", (108 * 40, 80 * 40))
    small = Instances(
        (40, 54),
        pred_boxes=Boxes([[30.0, 20.0, 30.6, 20.6]]),  # 48 pixels of the picture
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([0]),
    )
    drawn = np.asarray(draw_detections(picture, small, score_threshold=0.5)).any(-1)
    assert drawn[round(20.3 * 80)].sum() == 2 * 4
    assert drawn[: (20 * 80)].any(1).sum() < 48  # rows of the label


def test_colors_belong_to_classes() -> None:
    colors = [class_color(label) for label in range(40)]
    assert len(set(colors)) == 40
    assert colors == [class_color(label) for label in range(40)]
    gaps = [np.abs(np.subtract(a, b)).sum() for a, b in pairwise(colors)]
    assert min(gaps) > 60


def test_figures_name_classes_and_count_tokens(words: list[str]) -> None:
    same = select([7, 0, 26], [7])
    figure = token_figure(
        Image.new("RGB", (54, 40)),
        make_output(same, same),
        detections(0.9, 0.2),
        class_names=["cat"],
        title="a.png",
    )
    text = "\n".join(words)
    assert "cat 0.90" in text and "0.20" not in text
    assert "a.png   54 x 40 pixels, model input 48 x 32" in text
    assert "1 detection, score >= 0.3" in text
    assert "level 1, stride 8" in text and "2 of 24 kept (8.3 %)" in text
    assert "1 of 6 kept (16.7 %)" in text
    assert "tokens kept: 10.0 % of 30, the same ones in each of 2 encoder layers" in text
    assert "kept by" not in text
    assert np.asarray(figure).std() > 0


def test_figures_of_a_cascade_have_a_legend(words: list[str]) -> None:
    best = select([7, 0, 26], [7])
    output = make_output(best, best.prefix([1, 1]))
    token_figure(Image.new("RGB", (48, 32)), output, detections(), show_scores=True)
    text = "\n".join(words)
    assert "kept by layer: 2, 1 of 24" in text
    assert "mean of 2 encoder layers;  kept by\n1\n2\nlayers" in text
    assert "0 detections, score >= 0.3" in text
    assert "score logits, 0.0 (violet)\nto 29.0 (yellow)" in text


def test_figures_of_layers_count_kept_tokens_and_objects(words: list[str]) -> None:
    kept, rows = select([7, 0, 26], [7]), TokenSelection((2, 1), torch.tensor([[0, 1], [0, 1]]))
    output = make_output(kept, kept.prefix([1, 1]))
    plain = layer_figure(Image.new("RGB", (48, 32)), output, detections(0.9))
    assert words[:2] == ["encoder layer 1", "3 of 30 kept (10.0 %)"]
    assert "1 of 30 kept (3.3 %)" in words and "1 detection, score >= 0.3" in words
    assert "object tokens of layer 1" not in words
    output = make_output(kept, kept, objects=(ObjectTokens(kept, rows),) * 2)
    dual = layer_figure(Image.new("RGB", (48, 32)), output, detections(0.9))
    assert "object tokens of layer 2" in words and "2 attend to each other" in words
    assert dual.height > plain.height


def test_figures_of_levels_put_models_side_by_side(words: list[str]) -> None:
    one, other = make_output(select([7, 0, 26], [7])), make_output(TokenSelection((30, 16)))
    picture = Image.new("RGB", (48, 32))
    level_figure(picture, {"sparse": one, "dense": other}, title="a.png")
    assert words[:8:2] == [
        "sparse: level 1, stride 8",
        "dense: level 1, stride 8",
        "sparse: level 2, stride 16",
        "dense: level 2, stride 16",
    ]
    assert words[1:4:2] == ["2 of 24 kept (8.3 %)", "24 of 24 kept (100.0 %)"]
    coarse = make_output(TokenSelection((30, 16)))
    features = replace(coarse.features, strides=(16, 32))
    with pytest.raises(ValueError, match=r"same strides.*\(8, 16\).*\(16, 32\)"):
        level_figure(picture, {"fine": one, "coarse": replace(coarse, features=features)})


def test_figures_of_dense_encoders_say_so(words: list[str]) -> None:
    output = make_output(*[TokenSelection((30, 16))] * 2, scored=False)
    arguments = (Image.new("RGB", (27, 20)), output, detections(0.5))
    plain = token_figure(*arguments, image=1)
    assert "dense encoder: all 16 tokens in each of 2 layers" in words
    assert "class 0 0.50" in words
    assert token_figure(*arguments, image=1, show_scores=True).size == plain.size


def test_figures_say_into_how_many_tokens_the_others_are_pooled(words: list[str]) -> None:
    """The first image has two pooled tokens, the second no cell left to pool."""
    kept, rows = select([7, 0, 26], [7, 24]), torch.zeros(2, 2, 4)
    valid = torch.tensor([[True, True], [False, False]])
    output = make_output(kept, kept)
    pooled = PooledTokens(rows, rows, torch.zeros(2, 2, 30), valid, kept)
    output = replace(output, memory=replace(output.memory, pooled=pooled))
    shares = ("tokens kept: 10.0 % of 30", "tokens kept: 12.5 % of 16")
    for image, others in enumerate(("; the others pooled into 2", "")):
        summary = f"{shares[image]}, the same ones in each of 2 encoder layers{others}"
        pictures = (Image.new("RGB", SIZES[image][::-1]), output)
        token_figure(*pictures, detections(), image=image)
        assert words[-1] == summary
        layer_figure(*pictures, detections(), image=image)
        assert f"{summary};  color: the finest level with a kept token:" in words
        level_figure(pictures[0], {"pnp": output}, image=image)
        assert words[-1] == f"pnp: {summary}  "


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (900, 2)])
def test_figures_of_extreme_images(size: tuple[int, int]) -> None:
    cells = (-(-size[0] // 8), -(-size[1] // 8))
    maps = [torch.zeros(1, 4, *cells)]
    pos = maps[0].flatten(2).transpose(1, 2)
    features = flatten_maps(maps, lambda *_: pos, strides=(8,), image_sizes=(size,))
    prediction = Prediction(torch.zeros(1, 1, 1), torch.rand(1, 1, 4))
    selection = TokenSelection((cells[0] * cells[1],))
    output = DetectorOutput((prediction,), features, features, (selection,))
    figure = token_figure(Image.new("RGB", size[::-1]), output, detections(0.9, size=size))
    assert max(figure.size) < 4000


def test_a_label_without_room_above_leaves_the_box_in_sight() -> None:
    """At the upper border it goes below the box; a dark box stays dark."""
    box = torch.tensor([[10.0, 2.0, 60.0, 42.0]])
    found = Instances((400, 600), pred_boxes=Boxes(box), scores=torch.ones(1))
    found.pred_classes = torch.zeros(1, dtype=torch.long)
    drawn = np.asarray(draw_detections(Image.new("RGB", (600, 400)), found, class_names=["a"]))
    assert not drawn[10:36, 16:54].any()
    assert drawn[44:52, 12:].any()
