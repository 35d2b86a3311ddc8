"""`sparsedet explain`: what it writes, what it leaves out, and what it refuses at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsedet.cli.main import main
from tests.predictor.trained import config
from tests.report.made import blocks, draw_picture, write_detector


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_detector(folder, config(folder))
    (folder / "pictures" / "more").mkdir(parents=True)
    draw_picture(folder / "pictures" / "a.png", (64, 80))
    draw_picture(folder / "pictures" / "more" / "b.png", (64, 80))
    return folder


def test_it_writes_a_page_of_folders_and_several_models(run, tmp_path, capsys):
    (tmp_path / "other.pth").write_bytes((run / "model_best.pth").read_bytes())
    words = [str(run / "model_best.pth"), str(run / "pictures"), "--beside"]
    words += [f"{run / 'config.yaml'}:{tmp_path / 'other.pth'}", "--ratios", "0.1"]
    words += ["--output", str(tmp_path / "out"), "--repetitions", "0", "--device", "cpu"]
    assert main(["explain", *words]) == 0
    page = tmp_path / "out" / "explorer.html"
    assert capsys.readouterr().out.startswith(f"{page}: 2 pictures, 0.")
    facts = blocks(page)["explorer"]
    assert [each["name"] for each in facts["pictures"]] == ["a.png", "b.png"]
    names = [each["name"] for each in facts["models"]]
    assert [name.rpartition("/")[2] for name in names] == ["model_best.pth", "other.pth"]
    assert {tuple(each["ratios"]) for each in facts["models"]} == {(0.1, 0.25, 1.0)}
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["explorer.html"]


def test_pictures_that_cannot_be_read_are_named_and_counted(run, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    words = [str(run / "model_best.pth"), str(run / "pictures" / "a.png")]
    words += [str(tmp_path / "broken.jpg"), "--output", str(tmp_path / "out"), "--ratios", "0.1"]
    assert main(["explain", *words, "--repetitions", "0"]) == 1
    printed = capsys.readouterr()
    assert "1 picture, " in printed.out
    assert "broken.jpg" in printed.err
    assert "error: 1 of 2 pictures were left out." in printed.err
    words = [str(run / "model_best.pth"), str(tmp_path / "broken.jpg"), "--output"]
    assert main(["explain", *words, str(tmp_path / "none")]) == 2
    assert "error: none of the pictures can be read" in capsys.readouterr().err
    assert not any((tmp_path / "none").glob("*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["W"], "No picture is given for"),
        (["W", "nowhere.png"], "there is no file 'nowhere.png'"),
        (["W", "A", "--ratios", "0"], "--ratios must be numbers in (0, 1], got '0'"),
        (["W", "A", "--output", "A"], "a.png is a file. Name a folder."),
        (["W", "A", "--output", "film.mp4/b"], "film.mp4, which is a file. Name a folder."),
        (["W", "film.mp4"], "film.mp4 is not a picture. `sparsedet predict` takes videos."),
        (
            ["W", "A", "--beside", "W"],
            "model_best.pth is given twice. Name other weights for --beside.",
        ),
        (
            ["W", "A", "--score-threshold", "7"],
            "error: --score-threshold must be in [0, 1], got 7.0",
        ),
        (["W", "A", "--repetitions", "-2"], "error: --repetitions must be at least 0, got -2"),
        (["focus_detr_r50_36e", "A"], "Nearest: focus_detr_r50_36ep"),
        (["nowhere.pth", "A"], "nowhere.pth"),
    ],
)
def test_wrong_input_is_one_sentence(run, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film.mp4").write_bytes(b"")
    names = {"W": str(run / "model_best.pth"), "A": str(run / "pictures" / "a.png")}
    assert main(["explain", *(names.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("error: ") == 1
    assert not (tmp_path / "output" / "explorer" / "explorer.html").exists()


def test_too_many_pictures_are_refused(run, tmp_path, capsys):
    for number in range(101):
        (tmp_path / f"{number}.png").write_bytes(b"")
    assert main(["explain", str(run / "model_best.pth"), str(tmp_path)]) == 2
    assert "101 pictures are too many for one page" in capsys.readouterr().err
