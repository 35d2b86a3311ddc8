"""The tables of the pages are complete, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsedet import list_components
from tests.house.source import ROOT, files, name

PAGES = [
    *(ROOT / page for page in ("README.md", "CONTRIBUTING.md")),
    *files("docs", suffix=".md"),
    *files("projects", suffix="README.md"),
]
PROJECTS = [path for path in PAGES if path.parent.parent.name == "projects"]
LINK = re.compile(r"\]\(([^)#:]*)(#[^)]*)?\)")


def anchors(page: Path) -> set[str]:
    """Names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {"#" + re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def test_the_component_table_is_that_of_the_registries():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for family, components in list_components().items():
        row = re.search(rf"^\| {family} \|(.+)\|$", text, re.M)
        assert row, f"the README has no row for {family}"
        assert re.findall(r"`(\w+)`", row[1]) == components


@pytest.mark.parametrize("page", PROJECTS, ids=name)
def test_projects_name_their_configs_and_no_others(page):
    configs = {path.stem for path in (page.parent / "configs").glob("*.py")}
    text = page.read_text(encoding="utf-8")
    everywhere = {path.stem for path in (ROOT / "projects").glob("*/configs/*.py")}
    rows = set(re.findall(r"`(\w+)`", text))
    assert configs <= rows
    assert {each for each in rows if re.search(r"_\d+ep$", each)} <= everywhere


def test_every_project_has_a_page():
    assert {page.parent for page in PROJECTS} == set((ROOT / "projects").iterdir())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.is_file(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{name(page)} links to {target}{anchor}"


def test_pictures_are_small():
    for path in (ROOT / "docs").rglob("*"):
        assert path.is_dir() or path.stat().st_size < 300_000, name(path)
