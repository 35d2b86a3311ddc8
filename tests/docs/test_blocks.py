"""Blocks of the pages run as they stand, in one folder with small files of the names they use."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest

from sparsedet import get_config
from tests.docs.running import (
    ABSENT,
    commands,
    fitted,
    is_known,
    is_left_out,
    lines_of,
    run_page,
    start_script,
)
from tests.docs.world import provide, write_world
from tests.house.source import ROOT, name
from tests.house.test_readme import BLOCK, PAGES, blocks
from tests.hub.fake_hub import TOKEN, hub_for
from tests.processes import wait_for

PYTHON = ["index", "token_sparsity", "components", "data", "predict", "published_weights"]
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
SHELL_ELSEWHERE = {"docs/deployment.md": "tests/docs/test_deployment.py"}
SHELL = [page for page in PAGES if name(page) not in SHELL_ELSEWHERE and lines_of(page)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("supervision", "onnxruntime", "faster_coco_eval", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEDET_HOME", str(tmp_path / "home"))
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
@pytest.mark.parametrize("page", ["index", "data", "predict", "published_weights"])
def test_python_blocks_run(page, world):
    shutil.copy(world / "mine/train.json", world / "train.json")
    path = ROOT / f"docs/{page}.md"
    for weights in re.findall(r'Predictor\("(\w+)"', "".join(blocks(path, "python"))):
        provide(["--model", weights])
    run_python(path, {})


def test_a_block_for_a_config_changes_it():
    cfg = get_config("photos")
    before = len(cfg.dataloader.train.mapper.transforms)
    run_python(ROOT / "docs/photographs.md", dict(cfg))
    assert len(cfg.dataloader.train.mapper.transforms) == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("page", SHELL, ids=name)
def test_shell_blocks_run(page, world, monkeypatch, quick_processes):
    with hub_for(world / "hub", monkeypatch):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        run_page(page)


@pytest.mark.slow
def test_the_script_for_slurm_requeues_its_job_after_a_signal(world):
    lines = lines_of(ROOT / "docs/training_at_scale.md")
    (script,) = [fitted(line) for line in lines if "scontrol requeue" in line]
    endless = ("train.max_iter=100000", "train.eval_epochs=0", "train.log_period=1")
    (job,), folder = start_script(script, *endless)
    wait_for(folder / "metrics.json", 300)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 0
    assert Path("requeued").read_text(encoding="utf-8") == "17\n"
    assert (folder / "last_checkpoint").is_file() and not (folder / "results.json").exists()


def test_no_shell_is_left_out():
    """A line of a shell block is one that the tests run, or the reason is given."""
    lines = [line for page in PAGES for text in blocks(page, "bash") for line in commands(text)]
    unknown = [line for line in lines if not is_left_out(line) and not is_known(line)]
    assert not unknown
    for pattern in ABSENT:
        assert any(re.match(pattern, line) for line in lines), f"no page has {pattern}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_found(page):
    text = page.read_text(encoding="utf-8")
    found = [block["language"] for block in BLOCK.finditer(text)]
    assert 2 * len(found) == text.count("```")
    assert set(found) <= {"bash", "python", "text"}


def test_no_python_is_left_out():
    here = {f"docs/{page}.md" for page in [*PYTHON, "photographs"]}
    for page in PAGES:
        if blocks(page, "python"):
            assert name(page) in here | ELSEWHERE.keys(), f"nothing runs the Python of {name(page)}"
    for page, test in [*ELSEWHERE.items(), *SHELL_ELSEWHERE.items()]:
        text = (ROOT / test).read_text(encoding="utf-8")
        assert Path(page).name in text, f"{test} runs {page}"


def test_reasons_for_leaving_out_are_given():
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if block["skip"]:
                assert re.search(r"not run: \w+ \w+", block["skip"]), name(page)
