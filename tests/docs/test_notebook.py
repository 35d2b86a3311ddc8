"""The notebook is kept without outputs, and runs from its first cell to its last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path("docs/notebooks/one_tour.ipynb")
LONG = "ITERATIONS = 200"


@pytest.fixture(scope="module")
def cells(root: Path) -> list[dict]:
    return json.loads((root / NOTEBOOK).read_text(encoding="utf-8"))["cells"]


def test_it_is_kept_without_outputs(cells):
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
def test_it_runs(root, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(root))
    book = nbformat.read(root / NOTEBOOK, as_version=4)
    assert sum(LONG in cell.source for cell in book.cells) == 1
    for cell in book.cells:
        cell.source = cell.source.replace(LONG, "ITERATIONS = 2")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=600, resources=resources).execute()
    printed = "".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", ()))
    assert "error:" not in printed
    for made in ("output/own/results.json", "explorer.html", "detector.pt2"):
        assert (tmp_path / "tour" / made).is_file(), printed
