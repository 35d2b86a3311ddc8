"""What the page on sharing shows can be run as it stands."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from sparsedet.cli.main import main
from tests.house.test_readme import blocks
from tests.hub.fake_hub import TOKEN, FakeHub


def test_every_block(
    hub: FakeHub, run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(run, "output/quickstart")
    shutil.copy(run / "val/turned.jpg", "photo.jpg")
    shutil.copytree(run / "val", "val")
    shutil.copy(run / "val.json", "val.json")
    page = root / "docs/sharing.md"
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [shlex.split(line)[1:] for line in text.splitlines()]
    assert [words[0] for words in lines] == ["publish"] * 2 + ["predict"] * 2 + [
        "eval",
        "train",
        "analyze",
    ]
    for words in lines:
        if words[0] != "train":  # which tests/hub/test_folder.py begins
            assert main(words) == 0, words
    shutil.rmtree("shared")
    namespace: dict = {}
    for block in blocks(page, "python"):
        exec(block, namespace)
    assert namespace["predictor"].class_names == ("cat", "dog", "owl")
    assert "| GFLOPs | ms |" in Path("shared/mine/README.md").read_text(), "analyze was called"
