"""What the tests of several processes share."""

from __future__ import annotations

import importlib
import multiprocessing

import pytest


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import torch again: starting them takes longer than their work."""
    multiprocessing.set_forkserver_preload(["sparsedet.engine", "tests.modeling.small"])
    module = importlib.import_module("sparsedet.engine.launch")  # `engine` has a function so named
    monkeypatch.setattr(module, "_START_METHOD", "forkserver")
