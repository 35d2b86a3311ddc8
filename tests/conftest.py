"""What all tests share: a fixed seed, reference data that may be absent, the GPU marker."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageDraw

ROOT = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes of tests, which share the cores
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` on machines without one."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# nohup ignores the one, a shell's job in the background the other, and runs would do so as well
for _number, _usual in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the repository (``../shared``); tests that need it skip without."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the reference data in ../shared, which is not here")
    return path


@pytest.fixture(scope="module")
def quick_processes() -> Iterator[None]:
    """Processes that need not import torch again: starting them takes longer than their work."""
    multiprocessing.set_forkserver_preload(["sparsedet.engine", "tests.modeling.small"])
    module = importlib.import_module("sparsedet.engine.launch")  # `engine` has a function so named
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_START_METHOD", "forkserver")
        yield


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on a figure."""
    written: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def note(self, xy, text, *arguments, **options):
        written.append(text)
        return draw(self, xy, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return written
