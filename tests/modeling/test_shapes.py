"""The shapes in the signatures hold: they are checked at run time for every pair of choices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modeling.checked_shapes import PARTS


@pytest.fixture(scope="module")
def reports(root: Path) -> dict[str, str | None]:
    pytest.importorskip("beartype")
    done = subprocess.run(
        [sys.executable, "-m", "tests.modeling.checked_shapes"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("part", PARTS)
def test_shapes_of_the_signatures(reports, part):
    assert reports[part] is None, reports[part]
