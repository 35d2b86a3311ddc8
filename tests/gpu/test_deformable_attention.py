"""The CUDA kernels against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from sparsedet.layers import has_compiled_kernel, ms_deform_attn, ms_deform_attn_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not has_compiled_kernel("cuda"), reason="sparsedet is installed without CUDA kernels"
    ),
]

SHAPES = {
    "small": (((5, 7), (3, 4)), 2, 6, 3, 4, 3),
    "one_query": (((1, 1), (4, 6)), 1, 1, 1, 1, 1),
    "no_query": (((5, 7),), 2, 0, 3, 4, 3),
    "seven_levels": (tuple((2 + n, 9 - n) for n in range(7)), 2, 33, 2, 20, 3),
    "usual": (((25, 42), (13, 21), (7, 11), (4, 6)), 2, 313, 8, 32, 4),
    "wide": (((9, 11),), 3, 71, 2, 127, 5),
}


def make(shapes, batch, queries, heads, channels, points, dtype):
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = sum(height * width for height, width in shapes)
    samples = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, tokens, heads, channels).to("cuda", dtype)
    locations = (torch.rand(*samples, 2) * 1.4 - 0.2).to("cuda", precise)
    weights = torch.randn(samples).flatten(3).softmax(-1).view(samples).to("cuda", precise)
    return [x.requires_grad_() for x in (value, locations, weights)]


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-10),
        (torch.float32, 1e-4),
        (torch.float16, 2**-10),
        (torch.bfloat16, 2**-7),
    ],
    ids=str,
)
@pytest.mark.parametrize("head_major", [False, True])
def test_agrees_with_the_reference(sizes, dtype, tolerance, head_major):
    value, locations, weights = make(*sizes, dtype)
    if head_major:
        value = value.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    precise = [x.detach().double().requires_grad_() for x in (value, locations, weights)]
    output = ms_deform_attn(value, sizes[0], locations, weights)
    expected = ms_deform_attn_reference(precise[0], sizes[0], precise[1], precise[2])
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    grad_output = torch.randn_like(output)
    found = torch.autograd.grad(output, (value, locations, weights), grad_output)
    wanted = torch.autograd.grad(expected, precise, grad_output.double())
    for ours, theirs in zip(found, wanted, strict=True):
        scale = max(1.0, theirs.abs().max().item() if theirs.numel() else 1.0)
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_wild_locations_read_nothing(bad):
    value, locations, weights = make(*SHAPES["small"], torch.float32)
    locations = torch.full_like(locations, bad).requires_grad_()
    output = ms_deform_attn(value, SHAPES["small"][0], locations, weights)
    assert not output.any()
    for grad in torch.autograd.grad(output.sum(), (value, locations, weights)):
        assert not grad.any()


def test_runs_on_the_current_stream_and_in_a_graph():
    shapes = SHAPES["usual"][0]
    value, locations, weights = (x.detach() for x in make(*SHAPES["usual"], torch.float32))
    expected = ms_deform_attn(value, shapes, locations, weights)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = ms_deform_attn(value, shapes, locations, weights)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output, expected)
