"""The blocks of docs/interop.md run, where the guest that their section is about is installed.

Python blocks of a section run one after the other in one namespace. One that begins with the name
of a file, such as `# mine.py`, is that file instead, and the shell line that trains it is run with
a small set and few iterations.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from sparsedet.config import LazyConfig
from tests.house.source import ROOT

PAGE = ROOT / "docs/interop.md"
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```", re.M | re.S)
FILE = re.compile(r"# (\w+\.py)\n")
GUESTS = ("detectron2", "detrex", "transformers")


def section(guest: str) -> str:
    """The text under the heading of a guest."""
    found = re.search(rf"^## {guest}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    return found[1] if found else ""


def blocks(guest: str, language: str) -> list[str]:
    return [b["text"] for b in BLOCK.finditer(section(guest)) if b["language"] == language]


def config_files(folder: Path, guest: str) -> dict[str, Path]:
    """Writes the blocks that are files."""
    found = {}
    for text in blocks(guest, "python"):
        name = FILE.match(text)
        if name:
            found[name[1]] = folder / name[1]
            found[name[1]].write_text(text)
    return found


@pytest.mark.parametrize("guest", GUESTS)
def test_python_blocks_run(guest, request, shapes, monkeypatch):
    if not blocks(guest, "python"):
        pytest.skip(f"the page has no section about {guest}")
    if guest in ("detectron2", "detrex"):
        request.getfixturevalue(guest)
    elif importlib.util.find_spec(guest) is None:
        pytest.skip(f"needs {guest}: pip install 'sparsedet[parity]'")
    monkeypatch.chdir(shapes)
    files = config_files(shapes, guest)
    namespace: dict = {"__name__": "__main__"}
    for number, text in enumerate(blocks(guest, "python"), 1):
        if not FILE.match(text):
            exec(compile(text, f"interop.md, {guest}, block {number}", "exec"), namespace)
    for path in files.values():
        assert {"model", "dataloader", "optimizer", "train"} <= set(LazyConfig.load(path))


def test_the_shell_line_trains(detectron2, shapes, run_guest_tool):
    config_files(shapes, "detectron2")
    (text,) = blocks("detectron2", "bash")
    _, tool, *arguments = shlex.split(text.replace("\\\n", " "))
    short = [
        "train.max_iter=2",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
    ]
    place = tool.removeprefix("PATH/detectron2/")
    done = run_guest_tool(detectron2, place, *arguments, *short, cwd=shapes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (shapes / "output/model_final.pth").is_file()
