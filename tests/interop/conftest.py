"""The guests, where they are installed: `make interop DETECTRON2=... DETREX=...`."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from sparsedet.data.shapes import write_shapes
from tests.interop.on_cpu import without_cuda


def _guest(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs {name} ({error}): make interop, see docs/interop.md")


@pytest.fixture(scope="session")
def detectron2() -> ModuleType:
    """detectron2; tests that need it skip without."""
    return _guest("detectron2")


@pytest.fixture(scope="session")
def detrex(detectron2: ModuleType) -> Iterator[ModuleType]:
    """detrex, made to run on a CPU; tests that need it skip without."""
    with ExitStack() as stack:
        for patch in without_cuda():
            stack.enter_context(patch)
        yield _guest("detrex")


@pytest.fixture(scope="session")
def run_guest_tool(root: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a file of a guest's clone, such as `tools/train_net.py`, on the CPU.

    Called with the guest's module, the path in its clone, arguments and `cwd`.
    """

    def run(guest: ModuleType, tool: str, *arguments: str, cwd: Path):
        path = Path(guest.__file__).resolve().parents[1] / tool
        if not path.is_file():
            pytest.skip(f"needs a clone of {guest.__name__}: {tool} is not part of its package")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *_own_path()])}
        return subprocess.run(
            [sys.executable, str(root / "tests/interop/on_cpu.py"), str(path), *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


def _own_path() -> list[str]:
    given = os.environ.get("PYTHONPATH", "")
    return [given] if given else []


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small set of shapes under `datasets/shapes`."""
    folder = tmp_path_factory.mktemp("guests")
    write_shapes(folder / "datasets/shapes", num_train=24, num_val=8)
    return folder
