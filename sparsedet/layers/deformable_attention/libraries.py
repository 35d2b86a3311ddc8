"""The compiled libraries of the package: which exist, and whether they fit this torch."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parents[2]
_KINDS = {"cpu": "CPU", "cuda": "CUDA"}
_SOURCE = "install sparsedet from its source where torch is installed"
_MEND = {
    "cpu": f"To build them, install a C++ compiler and {_SOURCE}.",
    "cuda": f"To build them, install nvcc, set SPARSEDET_BUILD_CUDA=1 and {_SOURCE}.",
}


class MissingKernelWarning(UserWarning):
    """Deformable attention runs in plain PyTorch since no compiled kernel covers the device."""


def load_libraries() -> set[str]:
    """Load the libraries that were built with the package, if any (see setup.py).

    Returns:
        Device types whose library does not fit this torch, after a `MissingKernelWarning`.
    """
    unfit = set()
    for device_type, library in _libraries():
        built = _record(device_type)
        try:
            _check_cuda(built.get("cuda"))
            torch.ops.load_library(library)
        except OSError as error:
            unfit.add(device_type)
            made_for = _versions(built.get("torch", "(unknown)"), built.get("cuda"))
            warnings.warn(
                f"sparsedet: {library.name} was built for {made_for} and does not fit "
                f"{_versions(torch.__version__, torch.version.cuda)}: {error.__cause__ or error}. "
                f"Plain PyTorch runs instead (slower, more memory). To fix this, {_SOURCE}.",
                MissingKernelWarning,
                stacklevel=3,
            )
    return unfit


def why_missing(device_type: str) -> str:
    """One or two sentences that say why a device has no kernel and how to get one."""
    left_out = _record(device_type).get("left_out")
    mend = _MEND.get(device_type, "Only the CPU and CUDA have compiled kernels.")
    if sys.platform == "win32":
        mend = "There are none for Windows yet."
    return f"The installation left them out: {left_out}. {mend}" if left_out else mend


def _libraries() -> Iterator[tuple[str, Path]]:
    for device_type in ("cpu", "cuda") if torch.version.cuda else ("cpu",):
        for path in sorted(_PACKAGE.glob(f"_C_{device_type}*.so")):
            yield device_type, path


def _record(device_type: str) -> dict[str, Any]:
    """The record of setup.py for a library: its versions, or why it was left out."""
    path = _PACKAGE / "_kernels.json"
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8")).get(_KINDS.get(device_type), {})


def _check_cuda(built: str | None) -> None:
    """Refuse kernels for another CUDA, which load if the machine also has that CUDA."""
    own = torch.version.cuda
    if built and own and built.split(".")[0] != own.split(".")[0]:
        raise OSError("the major versions of CUDA differ")


def _versions(version: str, cuda: str | None) -> str:
    return f"torch {version} with CUDA {cuda}" if cuda else f"torch {version}"
