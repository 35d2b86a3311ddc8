"""The arithmetic of the CUDA kernels, compiled for the host: needs a C++ compiler, no GPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sparsedet.layers import ms_deform_attn_reference

from .deformable_inputs import Inputs, gradients, make_inputs

SOURCE = Path(__file__).with_name("cuda_on_host.cpp")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    target = tmp_path_factory.mktemp("cuda_on_host") / "library.so"
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror"]
    built = subprocess.run(
        [*command, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return ctypes.CDLL(str(target))


def run(library: ctypes.CDLL, inputs: Inputs, grad_output: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of value, locations and weights."""
    value = inputs.value.detach()
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = inputs.locations.shape
    starts = [sum(h * w for h, w in inputs.shapes[:level]) for level in range(levels)]
    table = [n for (h, w), start in zip(inputs.shapes, starts, strict=True) for n in (h, w, start)]
    results = [
        value.new_zeros(batch, queries, heads * channels),
        torch.empty_like(value).zero_(),
        *(torch.zeros_like(x) for x in (inputs.locations.detach(), inputs.weights.detach())),
    ]
    assert results[1].stride() == value.stride()
    tensors = [value, inputs.locations, inputs.weights, results[0], grad_output, *results[1:]]
    function = library.run_double if value.dtype == torch.float64 else library.run_float
    function(
        (ctypes.c_int64 * 6)(batch, heads, channels, queries, levels, points),
        (ctypes.c_int64 * 4)(*value.stride()),
        (ctypes.c_int32 * len(table))(*table),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
    )
    return results


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"queries": 1, "shapes": ((1, 1), (4, 6))},
        {"shapes": tuple((2 + n, 9 - n) for n in range(7))},
        {"channels": 24, "heads": 2, "points": 5},
        {"channels": 70, "batch": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=str
)
@pytest.mark.parametrize("head_major", [False, True])
def test_agrees_with_the_reference(library, sizes, dtype, tolerance, head_major):
    inputs = make_inputs(**sizes, dtype=dtype)
    if head_major:
        value = inputs.value.detach().transpose(1, 2).contiguous().transpose(1, 2)
        inputs.value = value.requires_grad_()
    precise = inputs.to(torch.float64)
    expected = ms_deform_attn_reference(*precise.arguments)
    grad_output = torch.randn(expected.shape, dtype=dtype)
    wanted = [expected, *gradients(ms_deform_attn_reference, precise, grad_output)]
    for ours, theirs in zip(run(library, inputs, grad_output), wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_wild_locations_read_nothing(library, bad):
    inputs = make_inputs(dtype=torch.float32)
    inputs.locations = torch.full_like(inputs.locations, bad).requires_grad_()
    for result in run(library, inputs, torch.ones(2, 6, 12))[:3]:
        assert torch.equal(result, torch.zeros_like(result))
