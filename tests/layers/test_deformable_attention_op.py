"""The operator as torch sees it: schema, fake kernel, gradient, compile, export, autocast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.layers import (
    MultiScaleDeformableAttention,
    ms_deform_attn,
    ms_deform_attn_reference,
)
from sparsedet.layers.deformable_attention import operator, reference
from tests.layers.deformable_inputs import LEVELS, OP, gradients, make_inputs, make_order
from tests.scripts import load_script

BACKWARD = torch.ops.sparsedet.ms_deform_attn_backward.default


# opcheck itself looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [6, 0])
def test_opcheck(dtype, queries):
    inputs = make_inputs(queries=queries, dtype=dtype)
    torch.library.opcheck(OP, inputs.flat)
    torch.library.opcheck(OP, (*inputs.flat, make_order(inputs)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_of_a_head_major_value():
    value, *rest = make_inputs(dtype=torch.float32).flat
    value = value.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    torch.library.opcheck(OP, (value, *rest))


def test_opcheck_of_the_backward():
    flat = [x.detach() if isinstance(x, torch.Tensor) else x for x in make_inputs().flat]
    flat[0] = flat[0].transpose(1, 2).contiguous().transpose(1, 2)
    flat[2] = flat[2].transpose(1, 2).contiguous().transpose(1, 2)
    grad_output = torch.randn(2, 6, 12, dtype=torch.float64)
    torch.library.opcheck(BACKWARD, (grad_output, *flat))
    torch.library.opcheck(BACKWARD, (grad_output, *flat, make_order(make_inputs()), True))


def test_query_order_changes_no_number():
    inputs = make_inputs(queries=70)
    order = make_order(inputs)
    output = ms_deform_attn(*inputs.arguments)
    assert torch.equal(ms_deform_attn(*inputs.arguments, query_order=order), output)
    grad_output = torch.randn_like(output)
    wanted = gradients(ms_deform_attn, inputs, grad_output)
    found = gradients(ms_deform_attn, inputs, grad_output, query_order=order)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_backward_is_told_to_be_deterministic(monkeypatch):
    told = []

    def recorded(grad_output, value, shapes, locations, weights, order, deterministic):
        told.append((order, deterministic))
        return BACKWARD(grad_output, value, shapes, locations, weights, order, deterministic)

    monkeypatch.setattr(operator, "BACKWARD", recorded)
    inputs = make_inputs()
    order = make_order(inputs)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            ms_deform_attn(*inputs.arguments, query_order=order).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        passed, flag = told.pop()
        assert torch.equal(passed, order) and flag is deterministic


def test_default_kernels_agree_with_autograd_through_the_reference():
    inputs = make_inputs()
    shapes = list(inputs.shapes)
    output = ms_deform_attn_reference(*inputs.arguments)
    grad_output = torch.randn_like(output)
    arguments = inputs.value, shapes, inputs.locations, inputs.weights
    with torch.no_grad():
        torch.testing.assert_close(reference.reference_forward(*arguments), output)
        found = reference.reference_backward(grad_output, *arguments)
    wanted = gradients(ms_deform_attn_reference, inputs, grad_output)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_second_derivative_raises():
    inputs = make_inputs()
    output = ms_deform_attn(*inputs.arguments)
    (grad,) = torch.autograd.grad(output.sum(), inputs.value, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_second_definition_raises():
    with pytest.raises(RuntimeError, match="sparsedet"):
        load_script(Path(operator.__file__))


class Pyramid(nn.Module):
    """Attention from every token of two maps to all of them, the sizes taken from the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(32, 4, num_levels=2, num_points=3)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        shapes = [(x.shape[2], x.shape[3]) for x in (fine, coarse)]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in (fine, coarse)], 1)
        reference = tokens[..., :2].sigmoid()[:, :, None].expand(-1, -1, 2, -1)
        return self.attention(tokens, reference, tokens, shapes)


def maps(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 32, height, width), torch.randn(batch, 32, height - 2, width - 3)


def randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


def test_compiles_without_graph_break():
    torch._dynamo.reset()
    model = randomized(Pyramid())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for sizes in ((2, 8, 9), (3, 5, 11)):
        inputs = maps(*sizes)
        found, wanted = compiled(*inputs), model(*inputs)
        torch.testing.assert_close(found, wanted)
        weight = model.attention.sampling_offsets.weight
        for output in (found, wanted):
            output.square().sum().backward()
        assert weight.grad is not None
        doubled, weight.grad = weight.grad, None
        wanted = model(*inputs)
        wanted.square().sum().backward()
        torch.testing.assert_close(doubled, 2 * weight.grad)
        model.zero_grad()


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    model = randomized(Pyramid())
    inputs = maps(2, 8, 9)
    found = torch.compile(model, fullgraph=True)(*inputs)
    torch.testing.assert_close(found, model(*inputs))


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_dynamic_shapes(strict):
    model = randomized(Pyramid()).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    sizes = [torch.export.Dim(name, min=4, max=64) for name in ("h", "w", "coarse_h", "coarse_w")]
    program = torch.export.export(
        model,
        maps(2, 8, 9),
        dynamic_shapes=(
            {0: batch, 2: sizes[0], 3: sizes[1]},
            {0: batch, 2: sizes[2], 3: sizes[3]},
        ),
        strict=strict,
    )
    assert any(node.target is OP for node in program.graph.nodes)
    for case in ((1, 8, 9), (3, 12, 7)):
        inputs = maps(*case)
        torch.testing.assert_close(program.module()(*inputs), model(*inputs))


def test_operator_under_autocast_keeps_locations_in_float32():
    inputs = make_inputs(dtype=torch.bfloat16)
    value, flat, locations, weights = inputs.flat
    with torch.autocast("cpu", torch.bfloat16):
        output = OP(value, flat, locations.double(), weights.bfloat16())
        ordered = OP(value, flat, locations.double(), weights.bfloat16(), make_order(inputs))
        assert ms_deform_attn(*make_inputs(dtype=torch.float32).arguments).dtype == torch.float32
    expected = OP(value, flat, locations, weights.bfloat16().float())
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    assert torch.equal(ordered, expected)


def test_module_under_autocast():
    model = randomized(Pyramid())
    inputs = maps(2, 8, 9)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs)
        assert output.dtype == torch.bfloat16
        tokens = torch.randn(2, 5, 32)
        _, locations, weights = model.attention(
            tokens,
            torch.rand(2, 5, 2, 2),
            torch.randn(2, 47, 32),
            LEVELS,
            return_sampling=True,
        )
    assert locations.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 5, 4))
    torch.testing.assert_close(output.float(), model(*inputs), rtol=0.05, atol=0.02)
    output.float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
