"""`sparsedet predict`, whole: pictures and videos in, pictures, videos and rows out."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsedet.cli.main import main
from sparsedet.predictor import Predictor
from sparsedet.predictor.video import VideoWriter, count_frames, read_frames
from tests.predictor.trained import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def predict(run: Path, output: Path, *words: str) -> int:
    weights = str(run / "model_best.pth")
    return main(["predict", weights, "--device", "cpu", "--output", str(output), *words])


def rows(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "predictions.json").read_text())


def test_a_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(run, tmp_path, str(run / "val"), "--score-threshold", "0") == 0
    found = rows(tmp_path)
    files = sorted((run / "val").iterdir())
    assert len(found) == 60 * len(files)
    assert list(dict.fromkeys(row["file_name"] for row in found)) == [str(each) for each in files]
    assert [row["image_id"] for row in found[::60]] == list(range(1, len(files) + 1))
    expected = Predictor(run / "model_best.pth", device="cpu")(files, score_threshold=0)
    for index, each in enumerate(expected):
        own = found[60 * index : 60 * index + 60]
        assert [row["score"] for row in own] == pytest.approx(each.scores.tolist(), abs=1e-5)
        assert own[0].keys() == {
            "image_id",
            "category_id",
            "category_name",
            "bbox",
            "score",
            "file_name",
        }
    drawn = {path.name for path in tmp_path.iterdir()} - {"predictions.json"}
    assert drawn == {path.name for path in files}
    with Image.open(tmp_path / "turned.jpg") as picture:
        assert picture.size == (4 * 90, 4 * 120)
    assert f"420 objects in 7 pictures; results are in {tmp_path}" in capsys.readouterr().out


def test_broken_files_are_named_and_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "in" / name).write_bytes(b"no picture")
    words = [str(tmp_path / "in"), str(run / "val" / "plain.png")]
    assert predict(run, tmp_path / "out", *words, "--score-threshold=0") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert ["a.png" in errors[0], "b.jpg" in errors[1]] == [True, True]
    assert errors[2].endswith("2 of 3 files were left out.")
    assert {row["file_name"] for row in rows(tmp_path / "out")} == {words[1]}
    assert (tmp_path / "out" / "plain.png").is_file()


def test_names_that_occur_twice(run: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / folder / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "one" / "a.jpg")
    words = [str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "one" / "a.png")]
    assert predict(run, tmp_path / "out", *words, "--tokens") == 0
    names = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("out/**/*.*")}
    pictures = {"a.jpg", "a_2.png", "a_3.png"}
    tokens = {"tokens/a.png", "tokens/a_2.png", "tokens/a_3.png"}
    assert names == pictures | tokens | {"predictions.json"}


def test_what_lies_in_a_folder_beside_pictures(run: Path, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    (inside / "album.jpg").mkdir(parents=True)
    for name in ("a.png", "A.png", "album.jpg/b.png"):
        Image.new("RGB", (40, 30)).save(inside / name)
    assert predict(run, tmp_path / "out", str(inside)) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"predictions.json"}
    assert len({name.lower() for name in names}) == 3  # also where a.png is A.png


def test_pictures_behind_links_are_not_written_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").symlink_to(run / "val" / "plain.png")
    assert predict(run, tmp_path, str(tmp_path / "a.png")) == 2
    assert "the folder of the pictures" in capsys.readouterr().err
    assert (tmp_path / "a.png").is_symlink()


def test_a_video(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    clip = tmp_path / "clip.mp4"
    generator = np.random.default_rng(0)
    with VideoWriter(clip, Fraction(10)) as writer:
        for _ in range(5):
            writer.write(
                Image.fromarray(generator.integers(256, size=(320, 480, 3), dtype=np.uint8))
            )
    words = [str(clip), str(run / "val" / "plain.png"), "--score-threshold", "0"]
    assert predict(run, tmp_path / "out", *words) == 0
    found = rows(tmp_path / "out")
    frames = [row.get("frame") for row in found[::60]]
    assert frames == [0, 1, 2, 3, 4, None]
    assert count_frames(str(tmp_path / "out" / "clip.mp4")) == 5
    shown = next(read_frames(str(tmp_path / "out" / "clip.mp4"))).float()
    plain = next(read_frames(str(clip))).float()
    assert (shown - plain).abs().mean() > 5  # boxes are drawn


def test_tiles_and_keep_ratio(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    picture = str(run / "val" / "plain.png")
    options = ["--tiles", "60", "--overlap", "0.5", "--whole", "--score-threshold", "0"]
    assert predict(run, tmp_path, picture, *options, "--keep-ratio", "0.1") == 0
    predictor = Predictor(run / "model_best.pth", device="cpu", tiles=60, overlap=0.5, whole=True)
    expected = predictor(picture, keep_ratio=0.1, score_threshold=0)
    scores = [row["score"] for row in rows(tmp_path)]
    assert scores == pytest.approx(expected.scores.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}/none.png"], "there is no file"),
        (["{run}/val/*.bmp"], "no file matches"),
        (["{run}/val", "--keep-ratio", "2"], "keep_ratio must be in (0, 1]"),
        (["{run}/val", "--score-threshold", "-1"], "score_threshold must be in [0, 1]"),
        (["{run}/val", "--device", "tpu7"], "device must be auto or a device"),
        (["{run}/val", "--output", "{run}/val"], "the folder of the pictures"),
        (["{run}/val", "--tokens", "--tiles", "50"], "Leave out --tiles or --tokens"),
        (["{run}/val", "--output", "{run}/val.json"], "val.json is a file. Name a folder"),
        (["{run}/val", "--output", "{run}/val.json/a"], "val.json, which is a file. Name a folder"),
        (["{run}/val", "--whole"], "whole needs tiles"),
        (["{run}/val", "--overlap", "0.2"], "--overlap needs --tiles"),
        (["{run}/val", "--config-file", "{run}/none.yaml"], "none.yaml"),
    ],
)
def test_bad_input_is_one_sentence(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    before = sorted(run.rglob("*"))
    assert predict(run, tmp_path / "out", *(word.format(run=run) for word in words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "out").exists() and sorted(run.rglob("*")) == before
