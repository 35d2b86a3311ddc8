"""The documentation builds without a warning, and has what its pages promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from sparsedet import list_components
from tests.house.source import ROOT


def test_every_project_is_linked():
    text = (ROOT / "docs/reproducing.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(\.\./projects/(\w+)/README\.md\)", text))
    assert linked == {path.parent.name for path in ROOT.glob("projects/*/README.md")}


def test_every_family_has_its_shapes():
    text = (ROOT / "docs/components.md").read_text(encoding="utf-8")
    sections = dict(
        re.findall(r"^## (\w+)\n\n(.+?)\n\n<!-- components: \1 -->$", text, re.M | re.S)
    )
    assert list(sections) == list(list_components())
    for family, text in sections.items():
        assert re.search(r"`\[\w.* \w.*\]`", text), f"{family} has no shapes"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is built; any warning is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_components_lead_to_their_arguments(site):
    page = (site / "components.html").read_text(encoding="utf-8")
    for family, names in list_components().items():
        own = (site / f"api/{family}.html").read_text(encoding="utf-8")
        for name in names:
            anchor = re.search(rf'href="api/{family}\.html#(sparsedet\.[\w.]+\.{name})"', page)
            assert anchor, f"{name} has no link"
            assert f'id="{anchor[1]}"' in own
    assert "<code>logits</code> <code>[B N]</code>" in page, "the shapes of TokenScores"


@pytest.mark.slow
def test_the_search_finds_a_message_in_its_paragraph(site):
    docs = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    found = [
        each["location"]
        for each in docs
        if "there is no checkpoint to resume in" in unescape(each["text"])
        and "Set train.model_ema.enabled=False" in unescape(each["text"])
    ]
    assert found == ["troubleshooting.html#a-run-cannot-be-resumed-or-its-folder-is-in-use"]


@pytest.mark.slow
def test_no_page_asks_another_host(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', text), path
