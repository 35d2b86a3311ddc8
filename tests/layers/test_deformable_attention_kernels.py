"""The compiled CPU kernels against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from sparsedet.layers import (
    has_compiled_kernel,
    ms_deform_attn,
    ms_deform_attn_reference,
)
from sparsedet.layers.deformable_attention import operator
from tests.layers.deformable_inputs import LEVELS, OP, Inputs, gradients, make_inputs, make_order

pytestmark = pytest.mark.skipif(
    not has_compiled_kernel("cpu"), reason="sparsedet is installed without compiled kernels"
)

SEVEN_LEVELS = tuple((2 + n, 9 - n) for n in range(7))
SIZES = {
    "one_query": {"queries": 1},
    "no_query": {"queries": 0},
    "no_image": {"batch": 0},
    "no_point": {"points": 0},
    "one_token": {"shapes": ((1, 1),)},
    "levels_of_one_token": {"shapes": ((1, 1), (4, 6), (1, 1))},
    "one_row_one_column": {"shapes": ((1, 9), (8, 1))},
    "seven_levels": {"shapes": SEVEN_LEVELS, "points": 3},
    "one_head_one_channel": {"heads": 1, "channels": 1},
    "20_channels": {"channels": 20},
    "24_channels": {"channels": 24, "points": 4},
    "32_channels": {"channels": 32, "heads": 8, "points": 4},
    "64_channels": {"channels": 64},
    "127_channels": {"channels": 127, "heads": 2},
    "more_than_a_block_of_queries": {"queries": 300, "channels": 32},
    "320_channels": {"channels": 320, "heads": 1},
    "many_images": {"batch": 7, "queries": 3},
    "many_points": {"points": 37},
}


INSTRUCTION_SETS = {"portable": 0, "avx2": 1, "avx512": 2}


@pytest.fixture(autouse=True)
def compiled_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operator's default kernel fail, so that only the compiled one can pass."""

    def default_kernel(*_args):
        raise AssertionError("the default kernel ran, not the compiled one")

    monkeypatch.setattr(operator, "_warn_of_missing_kernel", default_kernel)
    monkeypatch.setattr(operator, "reference_backward", default_kernel)


@pytest.fixture(params=INSTRUCTION_SETS.values(), ids=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest):
    """Run a test with each instruction set that the processor has."""
    limit = torch.ops.sparsedet._limit_instruction_set
    try:
        if limit(request.param) != request.param:
            pytest.skip("the processor does not have it")
        yield
    finally:
        limit(max(INSTRUCTION_SETS.values()))


def assert_agrees(inputs: Inputs, dtype: torch.dtype, relative: float, absolute: float) -> None:
    """Compare output and gradients with those of the reference in float64."""
    ours, theirs = inputs.to(dtype), inputs.to(dtype).to(torch.float64)
    output, expected = ms_deform_attn(*ours.arguments), ms_deform_attn_reference(*theirs.arguments)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=relative, atol=absolute)
    grad_output = torch.randn(expected.shape).to(dtype)
    found = gradients(ms_deform_attn, ours, grad_output)
    wanted = gradients(ms_deform_attn_reference, theirs, grad_output)
    for ours_grad, theirs_grad, tensor in zip(found, wanted, ours.tensors, strict=True):
        assert ours_grad.dtype == tensor.dtype
        scale = max(1.0, theirs_grad.abs().max().item() if theirs_grad.numel() else 1.0)
        torch.testing.assert_close(
            ours_grad.double(), theirs_grad, rtol=relative, atol=absolute * scale
        )


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"),
    [
        (torch.float64, 1e-10, 1e-12),
        (torch.float32, 1e-4, 1e-5),
        # The sums are those of float32; what is stored is rounded once, to 11 or 8 bits.
        (torch.float16, 2**-11, 1e-4),
        (torch.bfloat16, 2**-8, 1e-4),
    ],
    ids=str,
)
@pytest.mark.usefixtures("instruction_set")
def test_agrees_with_the_reference(sizes, dtype, relative, absolute):
    assert_agrees(make_inputs(**sizes), dtype, relative, absolute)


def test_gradcheck():
    inputs = make_inputs(((3, 4), (2, 2)), batch=1, queries=2, heads=2, channels=3, points=2)
    shapes = inputs.shapes
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: ms_deform_attn(value, shapes, locations, weights),
        inputs.tensors,
    )


LAYOUTS = ["head_major", "strided_channels", "expanded", "shared_heads", "sliced"]


# Many queries read a token so often that the kernel copies what does not lie head by head.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("queries", [6, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_value_may_have_any_strides(layout, queries, dtype):
    inputs = make_inputs(queries=queries, channels=20, dtype=dtype)
    value = inputs.value.detach()
    value = {
        "head_major": lambda: value.transpose(1, 2).contiguous().transpose(1, 2),
        "strided_channels": lambda: value.repeat_interleave(2, -1)[..., ::2],
        "expanded": lambda: value[:1].expand(2, -1, -1, -1),
        "shared_heads": lambda: value[:, :, :1].expand(-1, -1, 3, -1),
        "sliced": lambda: torch.cat([value, value], 2)[:, :, 3:],
    }[layout]()
    assert not value.is_contiguous()
    value.requires_grad_()
    strided = Inputs(value, inputs.shapes, inputs.locations, inputs.weights)
    packed = Inputs(
        value.detach().clone(memory_format=torch.contiguous_format).requires_grad_(),
        *inputs.arguments[1:],
    )
    output = ms_deform_attn(*strided.arguments)
    assert torch.equal(output, ms_deform_attn(*packed.arguments))
    grad_output = torch.randn_like(output)
    found = gradients(ms_deform_attn, strided, grad_output)
    wanted = gradients(ms_deform_attn, packed, grad_output)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_other_arguments_may_have_any_strides():
    inputs = make_inputs(dtype=torch.float32)
    value, shapes, locations, weights = inputs.arguments
    output = ms_deform_attn(
        value,
        shapes,
        locations.transpose(1, 2).contiguous().transpose(1, 2),
        weights.transpose(1, 4).contiguous().transpose(1, 4),
    )
    assert torch.equal(output, ms_deform_attn(*inputs.arguments))
    output.sum().backward()  # its gradient is one number, expanded
    assert value.grad is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -7.5])
@pytest.mark.usefixtures("instruction_set")
def test_wild_locations_read_nothing(bad):
    inputs = make_inputs(channels=20, dtype=torch.float32)
    locations = inputs.locations.detach().clone()
    locations[:, :3, :, :, 0, 0] = bad
    locations[:, 2:, :, :, 1, 1] = bad
    inputs.locations = locations.requires_grad_()
    silent = inputs.weights.detach().clone()
    silent[:, :3, :, :, 0] = 0
    silent[:, 2:, :, :, 1] = 0
    calm = locations.detach().nan_to_num(0.5, 0.5, 0.5).clamp(0, 1)
    calm = torch.where(locations.isfinite() & (locations.abs() < 2), locations.detach(), calm)
    output = ms_deform_attn(*inputs.arguments)
    torch.testing.assert_close(output, ms_deform_attn(inputs.value, LEVELS, calm, silent))
    torch.testing.assert_close(output, ms_deform_attn_reference(*inputs.arguments))
    for grad in gradients(ms_deform_attn, inputs, torch.randn_like(output)):
        assert grad.isfinite().all()
    grad_locations = torch.autograd.grad(output.sum(), inputs.locations)[0]
    assert not grad_locations[:, :3, :, :, 0].any()
    assert not grad_locations[:, 2:, :, :, 1].any()


@pytest.mark.usefixtures("instruction_set")
def test_a_value_of_ones_sums_the_weights_inside():
    inputs = make_inputs(queries=50, dtype=torch.float32)
    ones = torch.ones(2, inputs.value.shape[1], 1, 1).expand(-1, -1, 3, -1)
    everywhere = inputs.locations.detach().clamp(0.25, 0.75)
    output = ms_deform_attn(ones, LEVELS, everywhere, inputs.weights)
    torch.testing.assert_close(output, torch.ones(2, 50, 3))
    some = inputs.locations.detach()
    output = ms_deform_attn(ones, LEVELS, some, inputs.weights)
    expected = ms_deform_attn_reference(ones, LEVELS, some, inputs.weights)
    assert expected.min() < 0.9
    torch.testing.assert_close(output, expected)


def test_nothing_is_read_beside_value():
    inputs = make_inputs(batch=1, queries=50, channels=20, dtype=torch.float32)
    tokens = inputs.value.shape[1]
    guarded = torch.full((3, tokens + 2, 5, 24), float("nan"))
    guarded[1:2, 1:-1, 1:4, 2:22] = inputs.value.detach()
    locations = inputs.locations.detach() * 4 - 1.5
    value = guarded[1:2, 1:-1, 1:4, 2:22].requires_grad_()
    output = ms_deform_attn(value, LEVELS, locations, inputs.weights)
    assert output.isfinite().all()
    expected = ms_deform_attn(value.detach().contiguous(), LEVELS, locations, inputs.weights)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("instruction_set")
def test_result_does_not_depend_on_the_number_of_threads(dtype):
    inputs = make_inputs(queries=300, heads=5, channels=24, dtype=dtype)
    grad_output = torch.randn(2, 300, 5 * 24)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            output = ms_deform_attn(*inputs.arguments).detach()
            results.append((output, *gradients(ms_deform_attn, inputs, grad_output)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_operator_refuses_what_would_read_out_of_bounds():
    value, flat, locations, weights = make_inputs(dtype=torch.float32).flat
    for arguments in (
        (value, [50, 70, 3, 4], locations, weights),
        (value[:, 1:], flat, locations, weights),
        (value, flat, locations[:1], weights),
        (value, flat, locations, weights[:, :, :, :, :1]),
        (value, flat, locations.double(), weights),
        (value, flat[:2], locations, weights),
        (value, flat, locations, weights, torch.zeros(2, 5, dtype=torch.int64)),
        (value, flat, locations, weights, torch.zeros(2, 6, dtype=torch.int32)),
    ):
        with pytest.raises(RuntimeError, match="must"):
            OP(*(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments))


@pytest.mark.parametrize("shared", [False, True])
def test_query_order_changes_no_bit(shared):
    inputs = make_inputs(queries=300, channels=32, dtype=torch.float32)
    if shared:
        value = inputs.value.detach()[:, :, :1].expand(-1, -1, 3, -1).requires_grad_()
        inputs = Inputs(value, *inputs.arguments[1:])
    order = make_order(inputs)
    output = ms_deform_attn(*inputs.arguments)
    assert torch.equal(ms_deform_attn(*inputs.arguments, query_order=order), output)
    grad_output = torch.randn_like(output)
    found = gradients(ms_deform_attn, inputs, grad_output, query_order=order)
    wanted = gradients(ms_deform_attn, inputs, grad_output)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("wrong", [-1, 6, 2])
def test_operator_refuses_an_order_that_is_no_permutation(wrong):
    inputs = make_inputs(dtype=torch.float32)
    order = torch.arange(6).repeat(2, 1)
    order[1, 3] = wrong
    with pytest.raises(RuntimeError, match="permutation"):
        ms_deform_attn(*inputs.arguments, query_order=order)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_gradient_at_cell_centers_and_borders_is_that_of_the_reference(size):
    shapes = ((size, 3), (4, size))
    inputs = make_inputs(shapes, heads=1, points=1, dtype=torch.float32)
    # Continuous indices -1, -0.5, 0 ... up to the size: exact in float32 for these sizes.
    steps = torch.arange(-2, 2 * size + 1) / 2 + 0.5
    locations = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(1, -1, 1, 1, 1, 2)
    scale = torch.tensor([[(w, h)] for h, w in shapes])
    locations = (locations.expand(2, -1, 1, 2, 1, 2) / scale).requires_grad_()
    weights = torch.rand(locations.shape[:-1], requires_grad=True)
    placed = Inputs(inputs.value, shapes, locations, weights).to(torch.float64)
    output = ms_deform_attn(*placed.arguments)
    grad_output = torch.randn_like(output)
    found = gradients(ms_deform_attn, placed, grad_output)
    wanted = gradients(ms_deform_attn_reference, placed, grad_output)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
