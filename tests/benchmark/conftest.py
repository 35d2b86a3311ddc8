"""What tests of the benchmark share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsedet.cli import benchmark


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The JSON of a command line that ends with an exit code."""

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        target = tmp_path / "new" / "figures.json"
        assert benchmark.main([*words, "--json", str(target)]) == code
        return json.loads(target.read_text())

    return run
