"""The blocks of docs/report.md run as they stand, and its tables are complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sparsedet.cli.main import main
from sparsedet.report.runs import findings
from sparsedet.report.runs.writing import _SECTIONS
from tests.house.test_readme import blocks
from tests.report.made_runs import make_run


@pytest.fixture
def page(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page, in a folder with the runs that it names."""
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "a", "b", "quickstart_grid/keep_ratio=0.1/seed0"):
        make_run(Path("output") / name)
    return root / "docs/report.md"


def test_python_blocks_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = blocks(page, "python")
    exec(compile(text, "docs/report.md", "exec"), {})
    assert capsys.readouterr().out == "compared.html 2 runs True\n"


def test_shell_blocks_run(page: Path, tmp_path: Path) -> None:
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("sparsedet report ")]
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")}
    assert written == {
        "compared.html",
        "output/quickstart/report.html",
        "output/quickstart_grid/keep_ratio=0.1/seed0/report.html",
    }


def test_commands_for_missing_files_are_those_of_the_page(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "output/quickstart"
    (folder / "model_best.pth").write_bytes(b"")
    for name in ("analysis.json", "data.json"):
        (folder / name).unlink()
    assert main(["report", "output/quickstart"]) == 0
    shown = (folder / "report.html").read_text(encoding="utf-8")
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    for line in lines:
        if line.startswith(("sparsedet eval", "sparsedet check-data")):
            assert line in shown, line
    assert "sparsedet analyze output/quickstart/config.yaml" in shown


def test_the_table_has_every_section(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    table = text.partition("## What the page shows")[2].partition("![")[0]
    assert re.findall(r"^\| ([A-Z][\w, ]+) \|", table, re.M) == ["Summary", *_SECTIONS]


def test_the_thresholds_are_those_of_the_rules(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert f"by {findings._RISING:g} or more over the last quarter" in text
    assert f"| by {findings._FALLEN:g} or more |" in text
    assert f"| {findings._WAITING:.0%} or more of the time |".replace("%", " %") in text
