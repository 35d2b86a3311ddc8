"""Random shapes, layouts and locations: compiled CPU kernels stay in what they are given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedet.layers import has_compiled_kernel, ms_deform_attn, ms_deform_attn_reference
from tests.layers.deformable_inputs import Inputs, gradients, make_inputs

pytestmark = pytest.mark.skipif(
    not has_compiled_kernel("cpu"), reason="sparsedet is installed without compiled kernels"
)

WILD = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -3.0, 0.0, 0.5, 1.0]
SIZES = st.fixed_dictionaries(
    {
        "shapes": st.lists(st.tuples(*[st.integers(1, 9)] * 2), min_size=1, max_size=7).map(tuple),
        "batch": st.integers(0, 3),
        "queries": st.sampled_from([1, 2, 5, 40]),
        "heads": st.integers(1, 4),
        "channels": st.sampled_from([1, 3, 8, 16, 20, 24, 32, 40, 48, 63, 80]),
        "points": st.integers(1, 5),
    }
)


def amid_nan(value: torch.Tensor, head_major: bool) -> torch.Tensor:
    """The same numbers; around each row of channels and each map of tokens there is NaN."""
    batch, tokens, heads, channels = value.shape
    sizes = (batch, heads, tokens) if head_major else (batch, tokens, heads)
    frame = torch.full((*(size + 2 for size in sizes), channels + 1), float("nan"))
    frame = frame.to(value.dtype)
    inner = frame[1:-1, 1:-1, 1:-1, :channels]
    inner = inner.transpose(1, 2) if head_major else inner
    inner.copy_(value.detach())
    return inner.requires_grad_()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    sizes=SIZES,
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
    head_major=st.booleans(),
    spread=st.sampled_from([0.5, 1.0, 4.0]),
    wild=st.sampled_from(WILD),
    instruction_set=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_fuzzed(sizes, dtype, head_major, spread, wild, instruction_set, seed):
    torch.manual_seed(seed)
    inputs = make_inputs(**sizes, dtype=dtype)
    locations = (inputs.locations.detach() - 0.5) * spread + 0.5
    locations[torch.rand(locations.shape) < 0.1] = wild
    inputs = Inputs(
        amid_nan(inputs.value, head_major),
        inputs.shapes,
        locations.requires_grad_(),
        inputs.weights,
    )
    limit = torch.ops.sparsedet._limit_instruction_set
    limit(instruction_set)
    try:
        output = ms_deform_attn(*inputs.arguments)
        grad_output = torch.randn(output.shape).to(dtype)
        found = gradients(ms_deform_attn, inputs, grad_output)
    finally:
        limit(2)
    precise = inputs.to(torch.float64)
    expected = ms_deform_attn_reference(*precise.arguments)
    relative = {torch.float32: 1e-4, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(output.double(), expected, rtol=relative, atol=1e-4)
    # Where a location is within rounding of a cell border, float32 may take the other slope; so the
    # gradients of locations are only asked to be finite, and zero where nothing is read.
    assert all(grad.isfinite().all() for grad in found)
    outside = ~(locations.detach().isfinite() & (locations.detach().abs() < 3)).all(-1)
    assert not found[1][outside].any()
    wanted = gradients(ms_deform_attn_reference, precise, grad_output)
    for ours, theirs in ((found[0], wanted[0]), (found[2], wanted[2])):
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours.double(), theirs, rtol=relative, atol=1e-4 * scale)
