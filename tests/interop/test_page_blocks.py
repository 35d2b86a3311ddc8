"""The blocks of docs/interop.md on what this environment has can be run as they stand."""

from __future__ import annotations

import re
import sys

import pytest

SECTIONS = {"transformers": ("transformers",), "Code that calls the original op": ()}


@pytest.mark.parametrize("section", SECTIONS)
def test_blocks_of_the_page_run(section, root, tmp_path, monkeypatch):
    for package in SECTIONS[section]:
        pytest.importorskip(package, reason=f"needs {package}: pip install 'sparsedet[parity]'")
    monkeypatch.chdir(tmp_path)
    text = (root / "docs/interop.md").read_text(encoding="utf-8")
    part = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert part, f"docs/interop.md has no section {section}"
    blocks = re.findall(r"^```python\n(.*?)^```", part[1], re.M | re.S)
    assert blocks
    before, namespace = set(sys.modules), {"__name__": "__main__"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/interop.md, {section}, block {number}", "exec"), namespace)
    if "MultiScaleDeformableAttention" not in before:
        sys.modules.pop("MultiScaleDeformableAttention", None)
