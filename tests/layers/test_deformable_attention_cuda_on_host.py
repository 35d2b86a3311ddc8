"""The CUDA kernels, compiled for the host: needs a C++ compiler, no GPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sparsedet.layers import ms_deform_attn_reference
from tests.layers.deformable_inputs import Inputs, gradients, make_inputs, make_order

SOURCE = Path(__file__).with_name("cuda_on_host.cpp")
SEVEN_LEVELS = tuple((2 + n, 9 - n) for n in range(7))


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
    library = ctypes.CDLL(str(target))
    library.sum_by_integers.restype = ctypes.c_float
    return library


@dataclass
class Kind:
    """Which of the kernels, and how the queries are tiled."""

    vector: bool = False
    columns: int = 1
    points: int = 0
    by_integers: bool = False
    by_level: bool = False
    order: torch.Tensor | None = None


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def numbers(kind: type, values) -> ctypes.Array:
    values = list(values)
    return (kind * len(values))(*values)


def run(
    library: ctypes.CDLL, inputs: Inputs, grad_output: torch.Tensor, kind: Kind | None = None
) -> list[torch.Tensor]:
    """Output and gradients of value, locations and weights."""
    kind = kind or Kind()
    value = inputs.value.detach()
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = inputs.locations.shape
    nan = float("nan")
    results = [
        value.new_full((batch, queries, heads * channels), nan),
        torch.empty_like(value).zero_(),
        *(torch.full_like(x, nan) for x in (inputs.locations.detach(), inputs.weights.detach())),
    ]
    assert results[1].stride() == value.stride()
    options = [4 if kind.vector else 1, kind.columns, kind.points, kind.by_level]
    vectors_add = channels % 4 == 0 and value.stride(3) == 1
    before = [numbers(ctypes.c_int32, [*options, vectors_add, kind.by_integers])]
    before += [
        numbers(ctypes.c_int64, sizes)
        for sizes in (
            (batch, heads, channels, queries, levels, points),
            value.stride(),
            (n for shape in inputs.shapes for n in shape),
        )
    ]
    order = None if kind.order is None else pointer(kind.order)
    function = library.run_double if value.dtype == torch.float64 else library.run_float
    code = function(
        *before,
        *(pointer(x) for x in (value, inputs.locations, inputs.weights)),
        order,
        *(pointer(x) for x in (results[0], grad_output, *results[1:])),
    )
    assert code == 0, "some thread waits at a barrier for ever"
    return results


def assert_agrees(library, inputs: Inputs, tolerance: float, kind: Kind | None = None) -> None:
    precise = inputs.to(torch.float64)
    expected = ms_deform_attn_reference(*precise.arguments)
    grad_output = torch.randn(expected.shape, dtype=inputs.value.dtype)
    wanted = [expected, *gradients(ms_deform_attn_reference, precise, grad_output)]
    for ours, theirs in zip(run(library, inputs, grad_output, kind), wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"queries": 1, "shapes": ((1, 1), (4, 6))},
        {"shapes": ((1, 9), (8, 1), (1, 1))},
        {"shapes": SEVEN_LEVELS},
        {"channels": 24, "heads": 2, "points": 5},
        {"channels": 70, "batch": 3},
        {"queries": 70, "heads": 1, "batch": 1, "channels": 1},
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
    assert_agrees(library, inputs, tolerance)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("levels", "points"), [(1, 4), (4, 4), (5, 4), (2, 3), (3, 1)])
@pytest.mark.parametrize("channels", [4, 12, 16, 32, 48])
def test_vectors(library, columns, levels, points, channels):
    shapes = SEVEN_LEVELS[:levels]
    inputs = make_inputs(shapes, 1, 5, 2, channels, points, dtype=torch.float32)
    unrolled = points if points == 4 else 0
    assert_agrees(library, inputs, 1e-4, Kind(vector=True, columns=columns, points=unrolled))


@pytest.mark.parametrize("by_integers", [False, True])
@pytest.mark.parametrize("tiling", ["by_level", "ordered", "as_they_come"])
def test_tilings(library, tiling, by_integers):
    shapes = ((9, 19), (5, 8), (1, 3))
    tokens = sum(height * width for height, width in shapes)
    inputs = make_inputs(shapes, 2, tokens, 2, 4, 2, dtype=torch.float32)
    kind = Kind(by_integers=by_integers, by_level=tiling == "by_level")
    if tiling == "ordered":
        kind.order = make_order(inputs)
    assert_agrees(library, inputs, 1e-4, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_of_integers_do_not_depend_on_the_order(library, dtype):
    inputs = make_inputs(queries=150, heads=2, channels=12, dtype=dtype)
    grad_output = torch.randn(2, 150, 24, dtype=dtype)
    plain = run(library, inputs, grad_output, Kind(by_integers=True))
    for _ in range(3):
        kind = Kind(by_integers=True, order=make_order(inputs))
        again = run(library, inputs, grad_output, kind)
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1.0, 1e6, 1e30])
def test_accuracy_of_sums_of_integers(library, scale):
    count = 1000
    factors = torch.rand(count)
    terms = torch.randn(count) * scale
    total = library.sum_by_integers(pointer(factors), pointer(terms), ctypes.c_int64(count))
    exact = (factors.double() * terms.double()).sum().item()
    # each term to 2^-29 of the largest factor times the largest number, and rounding to float32
    bound = count * 2**-29 * terms.abs().max().item() * factors.max().item()
    assert abs(total - exact) <= bound + abs(exact) * 2**-23


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_sums_of_integers_do_not_hide_what_is_not_finite(library, bad):
    factors, terms = torch.rand(10), torch.randn(10)
    terms[3] = bad
    total = library.sum_by_integers(pointer(factors), pointer(terms), ctypes.c_int64(10))
    assert total != total
    assert library.sum_by_integers(pointer(factors), pointer(terms * 0), ctypes.c_int64(3)) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -7.5])
@pytest.mark.parametrize("vector", [False, True])
def test_wild_locations_read_nothing(library, bad, vector):
    inputs = make_inputs(dtype=torch.float32)
    inputs.locations = torch.full_like(inputs.locations, bad).requires_grad_()
    for result in run(library, inputs, torch.ones(2, 6, 12), Kind(vector=vector)):
        assert torch.equal(result, torch.zeros_like(result))


def test_nothing_is_read_beside_value(library):
    inputs = make_inputs(batch=1, queries=50, channels=4, dtype=torch.float32)
    tokens = inputs.value.shape[1]
    inputs.locations = (inputs.locations.detach() * 4 - 1.5).requires_grad_()
    guarded = torch.full((3, tokens + 2, 5, 12), float("nan"))
    guarded[1:2, 1:-1, 1:4, 4:8] = inputs.value.detach()
    memory = guarded[1:2, 1:-1, 1:4, 4:8]
    output = run_forward(library, inputs, memory)
    assert torch.equal(output, run_forward(library, inputs, inputs.value.detach()))


def run_forward(library, inputs: Inputs, value: torch.Tensor) -> torch.Tensor:
    """The gradients are not looked at: that of value would not lie in memory as value does."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = inputs.locations.shape
    output = value.new_empty(batch, queries, heads * channels)
    others = [
        torch.zeros_like(output),
        torch.zeros(batch * value.stride(0) + value.numel() * 12),
        *(torch.empty_like(x) for x in (inputs.locations, inputs.weights)),
    ]
    library.run_float(
        numbers(ctypes.c_int32, (1, 1, 0, 0, 0, 0)),
        numbers(ctypes.c_int64, (batch, heads, channels, queries, levels, points)),
        numbers(ctypes.c_int64, value.stride()),
        numbers(ctypes.c_int64, (n for shape in inputs.shapes for n in shape)),
        *(pointer(x) for x in (value, inputs.locations, inputs.weights)),
        None,
        *(pointer(x) for x in (output, *others)),
    )
    return output


def test_a_wrong_order_stays_within_bounds(library):
    inputs = make_inputs(queries=6, dtype=torch.float32)
    order = torch.tensor([[0, 1, 2, 3, 4, 2**40], [-1, 1, 2, 3, 4, 5]])
    grad_output = torch.randn(2, 6, 12)
    output = run(library, inputs, grad_output, Kind(order=order))[0]
    expected = run(library, inputs, grad_output)[0]
    assert torch.equal(output[0, :5], expected[0, :5])
    assert torch.equal(output[1], expected[1])


@pytest.mark.parametrize(
    "shapes",
    [
        ((100, 167), (50, 84), (25, 42), (13, 21)),
        ((1, 1),),
        ((8, 8), (7, 9), (1, 65), (65, 1), (16, 24)),
        SEVEN_LEVELS,
        ((1, 1),) * 64,
    ],
    ids=str,
)
@pytest.mark.parametrize("by_level", [False, True])
@pytest.mark.parametrize("images_and_heads", [1, 64])
def test_every_query_falls_into_one_tile(library, shapes, by_level, images_and_heads):
    flat = numbers(ctypes.c_int64, (n for shape in shapes for n in shape))
    tokens = sum(height * width for height, width in shapes)
    count = torch.zeros(tokens, dtype=torch.int32)
    largest = ctypes.c_int32()
    tiles = library.count_queries(
        flat,
        len(shapes),
        tokens,
        int(by_level),
        ctypes.c_int64(images_and_heads),
        pointer(count),
        ctypes.byref(largest),
    )
    assert torch.equal(count, torch.ones_like(count))
    assert largest.value <= 64
    if by_level:
        assert tiles == sum(-(-height // 8) * -(-width // 8) for height, width in shapes)
    else:
        assert tiles in (-(-tokens // 64), -(-tokens // 32))
