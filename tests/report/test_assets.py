"""The scripts and styles of pages keep the rules that Python keeps, and read no text as HTML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsedet.report.explorer import _SCRIPTS
from tests.house.source import LIBRARY

ASSETS = LIBRARY / "report/assets"
FILES = sorted(path for path in ASSETS.rglob("*") if path.is_file())
FUNCTION = re.compile(r"^(?:async )?function (\w+).*?^}", re.M | re.S)


def test_every_script_is_used() -> None:
    assert {path.stem for path in FILES if path.parent.name == "explorer"} >= set(_SCRIPTS)
    scripts = {path.stem for path in FILES if path.suffix == ".js"}
    assert scripts == {*_SCRIPTS, "page"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii() and len(text.splitlines()) <= 500
    for found in FUNCTION.finditer(text):
        assert found[0].count("\n") <= 41, f"{path.name}: {found[1]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_names_of_files_and_classes_are_never_html(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert not re.search(banned, text)
    assert path.name == "page.html" or "<script" not in text
    assert "</script" not in text or path.name == "page.html"
