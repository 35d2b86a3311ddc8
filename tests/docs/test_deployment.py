"""The blocks of docs/deployment.md run, in their order and in one folder, with a small model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsedet import Predictor
from sparsedet.cli.main import main
from tests.docs.running import commands, run_line
from tests.house.source import ROOT
from tests.house.test_readme import blocks
from tests.predictor.trained import write_run

PAGE = "docs/deployment.md"
ALONE = "Without sparsedet"
KEEP = """
np.savez("alone.npz", onnx=onnx[2][0] / scale, torch=boxes[0].numpy() / scale, scores=onnx[0][0])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("deployment"))
    pixels = Image.open(folder / "val" / "plain.png").convert("RGB").resize((700, 500))
    turned = Image.Exif()
    turned[274] = 6
    pixels.save(folder / "photo.jpg", quality=95, exif=turned)
    (folder / "photos").mkdir()
    for number in range(3):
        pixels.rotate(30 * number).save(folder / "photos" / f"{number}.png")
    (folder / "output/photos").mkdir(parents=True)
    (folder / "output/photos/model_best.pth").hardlink_to(folder / "model_best.pth")
    return folder


@pytest.fixture(scope="module")
def files(run: Path) -> None:
    """Those that the second part of the page takes from the first."""
    for name, words in (("detector.onnx", []), ("plain.pt2", ["--no-custom-op"])):
        weights, path = str(run / "model_best.pth"), str(run / name)
        assert main(["export", weights, path, *words]) == 0


def sections(root: Path) -> dict[str, str]:
    parts = re.split(r"^#+ (.+)\n", (root / PAGE).read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SECTIONS = [name for name, text in sections(ROOT).items() if "```" in text]


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_blocks_of_the_page_run(section, run, root, monkeypatch, request):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(run)
    monkeypatch.setenv("PYTHONPATH", str(root))
    page = run / "section.md"
    page.write_text(sections(root)[section], encoding="utf-8")
    for block in blocks(page, "bash"):
        for line in commands(block):
            run_line(line)
    python = blocks(page, "python")
    if section == ALONE:
        request.getfixturevalue("files")
        check_alone(python, run)
    else:
        for block in python:
            exec(compile(block, PAGE, "exec"), {"__name__": "__main__"})


def check_alone(python: list[str], run: Path) -> None:
    """The blocks in a process that cannot import sparsedet find what the predictor finds."""
    by_onnx, by_torch = python
    lines = ["import sys", "sys.modules['sparsedet'] = None", by_onnx]
    lines += ["onnx = scores, labels, boxes", by_torch, KEEP]
    (run / "alone.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "alone.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = Predictor("detector.onnx")("photo.jpg", score_threshold=0)
    with np.load("alone.npz") as own:
        # pixels are rounded after the resize, so scores differ by a little
        np.testing.assert_allclose(own["scores"], found.scores, atol=5e-3)
        height, width = found.image_size
        boxes = own["onnx"].clip(0, [width, height] * 2)
        order = np.abs(boxes[:, None] - found.boxes_xyxy[None]).max(-1).min(1)
        assert np.median(order) < 2
        assert np.median(np.abs(own["onnx"] - own["torch"]).max(-1)) < 0.1
