"""A run of random weights, and its predictor, for the tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsedet import Predictor
from tests.predictor.trained import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(run / "model_best.pth", device="cpu")
