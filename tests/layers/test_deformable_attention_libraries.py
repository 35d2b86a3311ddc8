"""The compiled libraries: which are loaded, and what is said where there is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsedet.layers.deformable_attention import libraries

BUILT = {"torch": "2.99.0", "cuda": None}
CUDA_12 = {"torch": "2.99.0+cu128", "cuda": "12.8"}


HERE = f"does not fit torch {torch.__version__} with CUDA 13.0: "


@pytest.mark.parametrize(
    ("built", "record", "messages"),
    [
        ((), None, [["no compiled deformable attention for cpu", "To build them, install a C++"]]),
        (
            (),
            {"CPU": {"left_out": "g++ failed: error: no x.h"}},
            [["for cpu", "The installation left them out: g++ failed: error: no x.h. To build"]],
        ),
        (
            ("cpu",),
            {"CPU": BUILT},
            [["_C_cpu.abi3.so was built for torch 2.99.0 and ", HERE, "file too short"]],
        ),
        (("cpu",), None, [["_C_cpu.abi3.so was built for torch (unknown) and ", HERE]]),
        (
            ("cpu", "cuda"),
            {"CPU": BUILT, "CUDA": CUDA_12},
            [
                ["_C_cpu.abi3.so"],
                ["for torch 2.99.0+cu128 with CUDA 12.8 and ", HERE, "major versions of CUDA diff"],
            ],
        ),
    ],
    ids=["none", "left out", "of another torch", "without record", "of another CUDA"],
)
def test_without_kernels_the_reference_serves_and_says_so_once(
    built: tuple[str, ...], record: dict | None, messages: list[list[str]], tmp_path: Path
):
    package = Path(libraries.__file__).parents[2]
    (tmp_path / "sparsedet").mkdir()
    shutil.copytree(package / "layers", tmp_path / "sparsedet" / "layers")
    shutil.copy(package / "__init__.py", tmp_path / "sparsedet")
    if record is not None:
        (tmp_path / "sparsedet/_kernels.json").write_text(json.dumps(record))
    for kind in built:
        (tmp_path / f"sparsedet/_C_{kind}.abi3.so").write_text("no library")
    script = """
import warnings, torch
torch.version.cuda = "13.0"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from sparsedet.layers import deformable_attention as d
    value, weights = torch.randn(1, 6, 1, 2, requires_grad=True), torch.ones(1, 4, 1, 1, 1)
    arguments = value, [(2, 3)], torch.rand(1, 4, 1, 1, 1, 2), weights
    for _ in range(2):
        output = d.ms_deform_attn(*arguments)
        output.sum().backward()
    assert torch.equal(output, d.ms_deform_attn_reference(*arguments))
assert not d.has_compiled_kernel("cpu")
for one in caught:
    if issubclass(one.category, d.MissingKernelWarning):
        print(one.message)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    said = result.stdout.strip().splitlines()
    assert len(said) == len(messages)
    for message, fragments in zip(said, messages, strict=True):
        assert all(each in message for each in fragments), message
