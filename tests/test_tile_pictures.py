"""Pictures of where a model looked: pixels, words, and the commands that draw them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsedet.cli.main import main
from sparsedet.predictor import Predictor
from sparsedet.structures import Boxes, Instances
from sparsedet.visualization import (
    draw_tile_scores,
    draw_tiles,
    layer_figure,
    level_figure,
    token_figure,
)
from tests.smoke.looking import SIZE as SIZE_OF_SET
from tests.smoke.looking import write_run

SIZE = (100, 150)  # of tiles of 40 x 40: 3 rows, 4 columns
GRAY = (100, 100, 100)
WHITE = [255, 255, 255]


def tiles(*looked: int, scores: torch.Tensor | None = None) -> Instances:
    boxes = [
        [x, y, min(x + 40, SIZE[1]), min(y + 40, SIZE[0])]
        for y in range(0, SIZE[0], 40)
        for x in range(0, SIZE[1], 40)
    ]
    mask = torch.zeros(12, dtype=torch.bool)
    mask[list(looked)] = True
    scores = torch.zeros(12) if scores is None else scores
    return Instances(SIZE, boxes=Boxes(boxes), scores=scores, looked=mask)


@pytest.mark.parametrize("times", [1, 3])
def test_ground_that_was_not_looked_at_is_dim(times: int) -> None:
    picture = Image.new("RGB", (times * SIZE[1], times * SIZE[0]), GRAY)
    shown = np.asarray(draw_tiles(picture, tiles(5, 6, 11), dim=0.5))
    for row, column, value in (
        (20, 20, 50), (60, 60, 100), (60, 100, 100), (60, 140, 50), (90, 140, 100), (90, 60, 50),
    ):  # fmt: skip
        assert shown[times * row, times * column].tolist() == [value] * 3, (row, column)
    assert np.asarray(draw_tiles(picture, tiles(5), dim=1.0))[times * 90, times * 10, 0] == 100


def test_the_outline_is_around_what_was_looked_at() -> None:
    shown = np.asarray(draw_tiles(Image.new("RGB", SIZE[::-1], GRAY), tiles(5, 6, 11)))
    for row, column in ((40, 60), (60, 40), (80, 60), (60, 120), (99, 140), (90, 120), (80, 140)):
        assert shown[row, column].tolist() == WHITE, (row, column)
    assert (shown[45:75, 70:90] == GRAY).all(), (
        "two tiles beside each other are one piece of ground"
    )
    everything = np.asarray(draw_tiles(Image.new("RGB", SIZE[::-1], GRAY), tiles(*range(12))))
    assert (everything[5:-5, 5:-5] == GRAY).all() and everything[0, 70].tolist() == WHITE


@pytest.mark.parametrize(("side", "width"), [(150, 1), (1500, 3), (4500, 9)])
def test_lines_are_in_proportion_to_the_picture(side: int, width: int) -> None:
    picture = Image.new("RGB", (side, side * 2 // 3), GRAY)
    shown = np.asarray(draw_tiles(picture, tiles(5)))
    middle = shown[round(side * 2 / 3 * 0.6)]  # a row through the tile
    white = (middle == WHITE).all(-1)
    assert white.sum() == 2 * width


def test_every_tile_has_the_color_of_its_score() -> None:
    given = torch.linspace(-2, 2, 12)
    shown = np.asarray(
        draw_tile_scores(Image.new("RGB", SIZE[::-1], GRAY), tiles(scores=given), (-2.0, 2.0))
    )
    colors = [
        tuple(shown[min(20 + 40 * r, 90), min(20 + 40 * c, 140)])
        for r in range(3)
        for c in range(4)
    ]
    assert len(set(colors)) == 12
    assert colors[0][2] > colors[0][0] and colors[11][0] > colors[11][2], "violet to yellow"


# --- whole figures


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at 3 of 12 tiles, and a picture."""
    folder = write_run(root, tmp_path_factory.mktemp("looking"))
    shutil.copy(sorted((folder.parent / "set/val").iterdir())[0], folder / "a.png")
    return folder


def test_figures_say_where_it_looked(run: Path, words: list[str]) -> None:
    predictor = Predictor(run / "model.pth", device="cpu")
    found, output = predictor.explain(run / "a.png")
    picture = Image.open(run / "a.png")
    scores = found.tiles.scores
    expected = [
        "3 of 12 tiles processed (25.0 %)",
        "of 64 x 64 pixels of the input",
        "best score in each tile",
        f"logits, {scores.min():.2f} (violet) to {scores.max():.2f} (yellow)",
    ]
    for figure in (token_figure, layer_figure):
        words.clear()
        drawn = figure(picture, output, found.instances)
        assert set(expected) <= set(words)
        assert drawn.height > drawn.width / 2, "the detections are above the panels"
    words.clear()
    token_figure(picture, output, found.instances, show_scores=True)
    assert words.index(expected[0]) > words.index("level 6, stride 256")
    level_figure(picture, {"a": output, "b": output})


def test_the_figure_of_a_large_photograph_has_the_size_of_a_page(run: Path) -> None:
    predictor = Predictor(run / "model.pth", device="cpu")
    found, output = predictor.explain(Image.new("RGB", (2000, 1125), GRAY))
    figure = token_figure(Image.new("RGB", (4000, 2250), GRAY), output, found.instances)
    assert 1500 < figure.width < 2400 and figure.height < 2400


def test_predict_outlines_where_it_looked(run: Path, tmp_path: Path) -> None:
    given = ["predict", str(run / "model.pth"), str(run / "a.png"), "--device", "cpu"]
    assert main([*given, "--output", str(tmp_path / "plain")]) == 0
    assert main([*given, "--output", str(tmp_path / "tiles"), "--tokens"]) == 0
    plain, shown = (
        np.asarray(Image.open(tmp_path / name / "a.png").convert("RGB"), dtype=float)
        for name in ("plain", "tiles")
    )
    (found,) = Predictor(run / "model.pth", device="cpu")([run / "a.png"])
    assert not len(found), "nothing hides the tiles"
    times = plain.shape[0] // SIZE_OF_SET[0]
    for box, looked in zip(
        found.tiles.boxes.tensor.int().tolist(), found.tiles.looked, strict=True
    ):
        x0, y0, x1, y1 = (times * edge for edge in box)
        inside = np.s_[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6]
        factor = 1.0 if looked else 0.6
        assert np.abs(shown[inside] - factor * plain[inside]).max() <= 1
    assert (tmp_path / "tiles/tokens/a.png").exists()


def test_visualize_counts_the_tiles(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run / "config.yaml"), "--weights", str(run / "model.pth"), str(run / "a.png")]
    assert main(["visualize", *given, "--output", str(tmp_path)]) == 0
    assert "tiles processed: 3 of 12: " in capsys.readouterr().out
