"""Blocks of the pages run as they stand, in one folder with small files of the names they use."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from sparsedet import get_config
from tests.docs.running import run_lines, write_world
from tests.house.source import ROOT, files, name
from tests.house.test_readme import BLOCK, blocks

PYTHON = ["index", "token_sparsity", "components", "data", "predict", "published_weights"]
SHELL = [
    "index",
    "own_scorer",
    "token_sparsity",
    "components",
    "large_pictures",
    "configs",
    "data",
    "evaluation",
    "photographs",
    "predict",
]
# Tests that run the Python of other pages.
ELSEWHERE = {
    "README.md": "tests/house/test_readme.py",
    "docs/configs.md": "tests/house/test_readme.py",
    "docs/deployment.md": "tests/docs/test_deployment.py",
    "docs/explain.md": "tests/docs/test_explain.py",
    "docs/report.md": "tests/docs/test_report.py",
    "docs/interop.md": "tests/interop/test_page_blocks.py",
    "docs/own_scorer.md": "tests/docs/test_own_scorer.py",
    "docs/sharing.md": "tests/hub/test_page.py",
    "projects/sparse_detr/README.md": "tests/projects/test_configs.py",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("supervision")
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


def run_python(page: Path, namespace: dict) -> None:
    """Run the blocks of a page; what they print is what the page says."""
    for number, text in enumerate(blocks(page, "python"), 1):
        exec(compile(text, f"{name(page)}, Python block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", ["token_sparsity", "components"])
def test_what_a_page_prints_is_what_it_says(page, capsys):
    path = ROOT / f"docs/{page}.md"
    run_python(path, {})
    (said,) = blocks(path, "text")
    assert capsys.readouterr().out == said


@pytest.mark.slow
@pytest.mark.parametrize("page", ["data", "predict", "published_weights"])
def test_python_blocks_run(page, world):
    shutil.copy(world / "mine/train.json", world / "train.json")
    run_python(ROOT / f"docs/{page}.md", {})


def test_a_block_for_a_config_changes_it():
    cfg = get_config("photos")
    before = len(cfg.dataloader.train.mapper.transforms)
    run_python(ROOT / "docs/photographs.md", dict(cfg))
    assert len(cfg.dataloader.train.mapper.transforms) == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("page", SHELL)
def test_shell_blocks_run(page, world):
    own = blocks(ROOT / "docs/own_scorer.md", "python")
    (world / "own.py").write_text(own[0], encoding="utf-8")
    assert run_lines(ROOT / f"docs/{page}.md")


def test_no_python_is_left_out():
    here = {f"docs/{page}.md" for page in [*PYTHON, "photographs"]}
    for page in [ROOT / "README.md", *files("docs", "projects", suffix=".md")]:
        if blocks(page, "python"):
            assert name(page) in here | ELSEWHERE.keys(), f"nothing runs the Python of {name(page)}"
    for page, test in ELSEWHERE.items():
        text = (ROOT / test).read_text(encoding="utf-8")
        assert Path(page).name in text, f"{test} runs {page}"


def test_reasons_for_leaving_out_are_given():
    for page in [ROOT / "README.md", *files("docs", "projects", suffix=".md")]:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if block["skip"]:
                assert re.search(r"not run: \w+ \w+", block["skip"]), name(page)
