"""The blocks of docs/explain.md run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sparsedet.cli.main import main
from sparsedet.report.explorer import RATIOS
from tests.house.test_readme import blocks
from tests.predictor.trained import config
from tests.report.made import draw_picture, write_detector


@pytest.fixture
def page(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page, in a folder with all files that it names."""
    monkeypatch.chdir(tmp_path)
    made = write_detector(tmp_path, config(tmp_path))
    for run in ("output/quickstart", "runs/a", "runs/b"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "model_best.pth").hardlink_to(made)
    for folder in ("photos", "datasets/shapes/val"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("photo.jpg", "photos/a.jpg", "datasets/shapes/val/000001.png"):
        draw_picture(tmp_path / name, (64, 80))
    return root / "docs/explain.md"


def test_python_blocks_run(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict = {}
    for text in blocks(page, "python"):
        exec(compile(text, "docs/explain.md", "exec"), namespace)
    assert capsys.readouterr().out == "explorer.html 1 picture True\n"
    assert (tmp_path / "explorer.html").is_file()


@pytest.mark.slow
def test_shell_blocks_run(page: Path, tmp_path: Path) -> None:
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("sparsedet explain ")]
    assert len(commands) == 4
    for command in commands:
        assert main([*shlex.split(command)[1:], "--repetitions", "0", "--device", "cpu"]) == 0
    assert (tmp_path / "DIR/explorer.html").is_file()
    assert (tmp_path / "output/explorer/explorer.html").is_file()


def test_the_page_names_the_usual_ratios(page: Path) -> None:
    row = re.search(r"\(default (0[\d. ]+)\); the model's own", page.read_text(encoding="utf-8"))
    assert row and tuple(map(float, row[1].split())) == RATIOS
