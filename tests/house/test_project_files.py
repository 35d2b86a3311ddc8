"""What stands beside the code, for those who host, cite and change it, says what is so."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsedet import __version__
from tests.house.source import ROOT, files, name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

WORKFLOW = ROOT / ".github/workflows/ci.yml"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [line for step in job["steps"] for line in step.get("run", "").splitlines()]


def test_every_python_that_is_promised_runs_the_same_as_here(project, jobs):
    promised = [
        each.rpartition(" ")[2]
        for each in project["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", each)
    ]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
    assert commands(jobs["tests"]) == [".ci/run"]
    run = ROOT / ".ci/run"
    assert run.stat().st_mode & 0o111
    assert re.findall(r"^make (\w+)", run.read_text(), re.M) == ["test", "lint", "docs"]


def test_the_workflow_names_what_exists(jobs):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    used = [line.split()[1:] for job in jobs.values() for line in commands(job) if "make " in line]
    targets = [word.replace(".venv", "$(VENV)") for words in used for word in words]
    assert {"wheel", "wheel-pure", "wheel-cuda", "sdist", "test-wheel"} <= set(targets)
    for target in targets:
        assert f"\n{target}:" in makefile, target
    text = WORKFLOW.read_text(encoding="utf-8")
    for path in re.findall(r"\btests/[\w/.]+", text):
        assert (ROOT / path).exists(), path


def test_packages_are_kept_under_the_name_that_is_fetched(jobs):
    steps = [step for job in jobs.values() for step in job["steps"] if "artifact" in str(step)]
    kept = {each["with"]["name"] for each in steps if "upload" in each["uses"]}
    fetched = {each["with"]["name"] for each in steps if "download" in each["uses"]}
    assert fetched and fetched <= kept


def test_forms_ask_one_thing_each():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys(), name(path)
        ids = [each["id"] for each in form["body"]]
        assert len(ids) == len(set(ids)), name(path)


def test_the_citation_is_of_this_version_and_of_papers_on_our_pages(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
    assert [each["name"] for each in citation["authors"]] == [
        each["name"] for each in project["authors"]
    ]
    pages = [path.read_text(encoding="utf-8") for path in files("projects", suffix="README.md")]
    for paper in citation["references"]:
        number = paper["doi"].removeprefix("10.48550/arXiv.")
        (page,) = (text for text in pages if text.split("\n\n")[1].find(number) >= 0)
        about = " ".join(page.split("\n\n")[1].split())
        assert paper["title"] in about
        assert about.startswith(paper["authors"][0]["family-names"])
        assert str(paper["year"]) in about


def test_the_newest_notes_are_those_of_this_version():
    """Until it is released they have no date, and neither has the citation."""
    notes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, when = re.findall(r"^## \[(.+?)\] - (.+)$", notes, re.M)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert version == __version__.removesuffix(".dev0")
    if __version__.endswith(".dev0"):
        assert when == "Unreleased" and "date-released" not in citation
    else:
        assert when == str(citation["date-released"])


def test_addresses_are_those_of_the_pages(project):
    text = "".join(path.read_text(encoding="utf-8") for path in pages())
    for address in project["urls"].values():
        assert address in text


def pages() -> list[Path]:
    return [ROOT / "README.md", *files("docs", "projects", suffix=".md")]
