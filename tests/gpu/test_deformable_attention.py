"""The CUDA kernels against the reference in float64."""

from __future__ import annotations

import contextlib

import pytest
import torch

from sparsedet.layers import (
    MultiScaleDeformableAttention,
    has_compiled_kernel,
    ms_deform_attn,
    ms_deform_attn_reference,
    tile_order,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not has_compiled_kernel("cuda"), reason="sparsedet is installed without CUDA kernels"
    ),
]

SEVEN_LEVELS = tuple((2 + n, 9 - n) for n in range(7))
SIXTY_FOUR_LEVELS = tuple((1 + n % 3, 2) for n in range(64))
FOUR_LEVELS = ((25, 42), (13, 21), (7, 11), (4, 6))
TOKENS = sum(height * width for height, width in FOUR_LEVELS)
# levels, images, queries, heads, channels of a head, points
SIZES = {
    "small": (((5, 7), (3, 4)), 2, 6, 3, 4, 3),
    "one_query": (((1, 1), (4, 6)), 1, 1, 1, 1, 1),
    "no_query": (((5, 7),), 2, 0, 3, 4, 3),
    "one_token": (((1, 1),), 2, 5, 2, 32, 4),
    "one_row_one_column": (((1, 9), (8, 1)), 2, 40, 2, 32, 4),
    "seven_levels": (SEVEN_LEVELS, 2, 33, 2, 20, 3),
    "sixty_four_levels": (SIXTY_FOUR_LEVELS, 1, 17, 2, 8, 1),
    "usual": (FOUR_LEVELS, 2, 313, 8, 32, 4),
    "all_tokens": (FOUR_LEVELS, 2, TOKENS, 8, 32, 4),
    "five_levels": ((*FOUR_LEVELS, (2, 3)), 2, 71, 8, 32, 4),
    "three_points": (FOUR_LEVELS, 2, 71, 8, 32, 3),
    "many_points": (FOUR_LEVELS[1:], 1, 71, 2, 32, 37),
    "16_channels": (FOUR_LEVELS[1:], 2, 71, 3, 16, 4),
    "24_channels": (FOUR_LEVELS[1:], 2, 71, 3, 24, 4),
    "48_channels": (FOUR_LEVELS[1:], 2, 71, 3, 48, 4),
    "64_channels": (FOUR_LEVELS[1:], 2, 71, 3, 64, 4),
    "127_channels": (((9, 11),), 3, 71, 2, 127, 5),
    "many_images": (((5, 7), (3, 4)), 301, 3, 2, 8, 2),
}
# Relative, and absolute in units of the largest number where sums may cancel. The kernels sum in
# float32 where the values have less; what is stored is rounded once, to 11 or 8 bits.
BOUNDS = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (2**-11, 1e-4),
    torch.bfloat16: (2**-8, 1e-4),
}


def make(shapes, batch, queries, heads, channels, points, dtype=torch.float32):
    """Through float32 and the dtype, so that the reference is given the same numbers."""
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = sum(height * width for height, width in shapes)
    samples = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, tokens, heads, channels, device="cuda").to(dtype)
    locations = (torch.rand(*samples, 2, device="cuda") * 1.4 - 0.2).to(precise)
    locations = off_the_kinks(locations, shapes)
    weights = torch.randn(samples, device="cuda").flatten(3).softmax(-1).view(samples).to(precise)
    return [x.requires_grad_() for x in (value, locations, weights)]


def off_the_kinks(locations, shapes):
    """Moved off the lines between cells, where the gradient jumps and rounding chooses the side."""
    cells = locations.new_tensor([(width, height) for height, width in shapes])[:, None]
    index = locations * cells - 0.5
    near = (index - index.round()).abs() < 1e-3
    return torch.where(near, locations + 0.01 / cells, locations)


def make_order(batch: int, queries: int) -> torch.Tensor:
    return torch.rand(batch, queries, device="cuda").argsort(1)


def assert_close(found, wanted, dtype) -> None:
    relative, absolute = BOUNDS[dtype]
    scale = max(1.0, wanted.abs().max().item() if wanted.numel() else 1.0)
    torch.testing.assert_close(found.double(), wanted, rtol=relative, atol=absolute * scale)


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool = True):
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_agrees(shapes, tensors, *, deterministic: bool = False, **options) -> None:
    """Compare output and gradients with those of the reference in float64."""
    dtype = tensors[0].dtype
    precise = [x.detach().double().requires_grad_() for x in tensors]
    output = ms_deform_attn(tensors[0], shapes, *tensors[1:], **options)
    expected = ms_deform_attn_reference(precise[0], shapes, *precise[1:])
    assert output.dtype == dtype
    assert_close(output, expected, dtype)
    grad_output = torch.randn_like(output)
    with deterministic_algorithms(deterministic):  # the reference has no such gradient
        found = torch.autograd.grad(output, tensors, grad_output)
    wanted = torch.autograd.grad(expected, precise, grad_output.double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, dtype)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_agrees_with_the_reference(sizes, dtype, deterministic):
    assert_agrees(sizes[0], make(*sizes, dtype), deterministic=deterministic)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(
    "layout", ["head_major", "strided_channels", "expanded", "one_head_for_all", "sliced", "odd"]
)
def test_value_may_have_any_strides(layout, dtype):
    sizes = (((5, 7), (3, 4)), 2, 50, 4, 32, 4)
    value, locations, weights = (x.detach() for x in make(*sizes, dtype))
    value = {
        "head_major": lambda: value.transpose(1, 2).contiguous().transpose(1, 2),
        "strided_channels": lambda: value.repeat_interleave(2, -1)[..., ::2],
        "expanded": lambda: value[:1].expand(2, -1, -1, -1),
        "one_head_for_all": lambda: value[:, :, :1].expand(-1, -1, 4, -1),
        "sliced": lambda: torch.cat([value, value], 3)[..., 16:48],
        "odd": lambda: torch.cat([value, value], 3)[..., 1:33],
    }[layout]()
    assert not value.is_contiguous()
    assert_agrees(sizes[0], [x.requires_grad_() for x in (value, locations, weights)])


def test_other_arguments_may_have_any_strides():
    sizes = SIZES["usual"]
    value, locations, weights = make(*sizes)
    expected = ms_deform_attn(value, sizes[0], locations, weights)
    shifted = torch.empty(locations.numel() + 1, device="cuda")[1:].view(locations.shape)
    shifted.copy_(locations.detach())  # not at a multiple of a vector's size
    output = ms_deform_attn(
        value, sizes[0], shifted, weights.detach().transpose(1, 4).contiguous().transpose(1, 4)
    )
    assert torch.equal(output, expected)
    output.sum().backward()  # its gradient is one number, expanded
    assert value.grad is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -7.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_wild_locations_read_nothing(bad, dtype):
    for sizes in (SIZES["small"], SIZES["usual"]):
        value, locations, weights = make(*sizes, dtype)
        locations = torch.full_like(locations, bad).requires_grad_()
        output = ms_deform_attn(value, sizes[0], locations, weights)
        assert not output.any()
        for grad in torch.autograd.grad(output.sum(), (value, locations, weights)):
            assert not grad.any()


def test_nothing_is_read_beside_value():
    sizes = (((5, 7), (3, 4)), 1, 50, 3, 32, 4)
    value, locations, weights = (x.detach() for x in make(*sizes))
    guarded = torch.full((3, value.shape[1] + 2, 5, 64), float("nan"), device="cuda")
    guarded[1:2, 1:-1, 1:4, 4:36] = value
    far = locations * 4 - 1.5
    output = ms_deform_attn(guarded[1:2, 1:-1, 1:4, 4:36], sizes[0], far, weights)
    assert torch.equal(output, ms_deform_attn(value, sizes[0], far, weights))


@pytest.mark.parametrize("deterministic", [False, True])
def test_gradcheck(deterministic):
    shapes = ((3, 4), (2, 2))
    tensors = make(shapes, 1, 2, 2, 3, 2, torch.float64)
    with deterministic_algorithms(deterministic):
        assert torch.autograd.gradcheck(
            lambda value, locations, weights: ms_deform_attn(value, shapes, locations, weights),
            tensors,
            nondet_tol=0.0 if deterministic else 1e-12,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["usual", "all_tokens"])
def test_query_order_changes_no_number(name, dtype):
    sizes = SIZES[name]
    tensors = make(*sizes, dtype)
    order = make_order(*sizes[1:3])
    output = ms_deform_attn(tensors[0], sizes[0], *tensors[1:])
    ordered = ms_deform_attn(tensors[0], sizes[0], *tensors[1:], query_order=order)
    assert torch.equal(ordered, output)
    assert_agrees(sizes[0], tensors, query_order=order)


def test_kept_tokens_in_tiles():
    tokens = torch.rand(2, TOKENS, device="cuda").argsort(1)[:, :400]
    sizes = (FOUR_LEVELS, 2, 400, 8, 32, 4)
    assert_agrees(FOUR_LEVELS, make(*sizes), query_order=tile_order(tokens, FOUR_LEVELS))


def test_a_wrong_order_stays_within_bounds():
    sizes = SIZES["usual"]
    tensors = make(*sizes)
    order = torch.full((2, 313), 2**40, device="cuda")
    order[1] = -5
    output = ms_deform_attn(tensors[0], sizes[0], *tensors[1:], query_order=order)
    output.sum().backward()
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["usual", "all_tokens"])
def test_deterministic_gradients_are_the_same_bits(name, dtype):
    sizes = SIZES[name]
    tensors = make(*sizes, dtype)
    grad_output = torch.randn(*sizes[1:3], 256, device="cuda").to(dtype)

    def gradients(**options):
        output = ms_deform_attn(tensors[0], sizes[0], *tensors[1:], **options)
        with deterministic_algorithms():
            return torch.autograd.grad(output, tensors, grad_output)

    first = gradients()
    for run in range(20):
        order = make_order(*sizes[1:3]) if run % 2 else None
        for a, b in zip(gradients(query_order=order), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_deterministic_gradient_does_not_hide_what_is_not_finite(bad):
    sizes = SIZES["small"]
    tensors = make(*sizes)
    output = ms_deform_attn(tensors[0], sizes[0], *tensors[1:])
    grad_output = torch.randn_like(output)
    grad_output[0, 0, 0] = bad
    with deterministic_algorithms():
        grad = torch.autograd.grad(output, tensors[0], grad_output)[0]
    assert not grad.isfinite().any()


@pytest.mark.parametrize("deterministic", [False, True])
def test_runs_in_a_graph(deterministic):
    sizes = SIZES["usual"]
    tensors = make(*sizes)
    grad_output = torch.randn(2, 313, 256, device="cuda")

    def step():
        output = ms_deform_attn(tensors[0], sizes[0], *tensors[1:])
        with deterministic_algorithms(deterministic):
            return output, *torch.autograd.grad(output, tensors, grad_output)

    with torch.cuda.stream(torch.cuda.Stream()):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    with torch.no_grad():
        for tensor in (*tensors, grad_output):
            tensor.copy_(tensor.flip(1))
    graph.replay()
    torch.cuda.synchronize()
    for found, wanted in zip(results, step(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_waits_for_the_current_stream():
    """Inputs that another stream writes late are read only when they are there."""
    sizes = SIZES["usual"]
    value, locations, weights = (x.detach() for x in make(*sizes))
    expected = ms_deform_attn(value, sizes[0], locations, weights)
    late = torch.zeros_like(value)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(value)
        output = ms_deform_attn(late, sizes[0], locations, weights)
    torch.cuda.synchronize()
    assert torch.equal(output, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_module_under_autocast(dtype):
    module = MultiScaleDeformableAttention(256, 8).to("cuda")
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.02)
    query = torch.randn(2, TOKENS, 256, device="cuda")
    reference = torch.rand(2, TOKENS, 4, 2, device="cuda")
    with torch.autocast("cuda", dtype):
        output = module(query, reference, query, FOUR_LEVELS)
    assert output.dtype == dtype
    torch.testing.assert_close(
        output.float(), module(query, reference, query, FOUR_LEVELS), rtol=0.05, atol=0.02
    )
    output.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_compiles():
    module = MultiScaleDeformableAttention(64, 4, num_levels=2, num_points=4).to("cuda")
    shapes = [(6, 9), (3, 5)]
    query = torch.randn(2, 69, 64, device="cuda")
    reference = torch.rand(2, 69, 2, 2, device="cuda")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = compiled(query, reference, query, shapes)
    wanted = module(query, reference, query, shapes)
    torch.testing.assert_close(found, wanted)
    grads = [
        torch.autograd.grad(x.square().sum(), list(module.parameters())) for x in (found, wanted)
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_indices_beyond_two_to_the_31():
    """The last tokens of a value of 2.2e9 elements, of which only these are written."""
    batch, tokens, heads, channels = 270, 62_500, 4, 32
    value = torch.empty(batch, tokens, heads, channels, dtype=torch.float16, device="cuda")
    value[-1] = torch.randn(tokens, heads, channels, device="cuda")
    assert value.numel() > 2**31
    shapes = ((250, 250),)
    locations = torch.full((batch, 1, heads, 1, 4, 2), -9.0, device="cuda")
    locations[-1] = torch.rand(1, heads, 1, 4, 2, device="cuda")
    weights = torch.rand(batch, 1, heads, 1, 4, device="cuda")
    output = ms_deform_attn(value, shapes, locations, weights)
    expected = ms_deform_attn_reference(
        value[-1:].double(), shapes, locations[-1:].double(), weights[-1:].double()
    )
    torch.testing.assert_close(output[-1:].double(), expected, rtol=2**-11, atol=1e-4)
