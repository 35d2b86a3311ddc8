"""Deformable attention under the signatures of other codes, against grid_sample."""

from __future__ import annotations

import importlib
import sys
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsedet import compat

LEVELS = ((5, 7), (3, 4), (2, 2))
STARTS = [0, *accumulate(h * w for h, w in LEVELS)][:-1]


def expected(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """One grid_sample per head and level, which begins where ``starts`` says."""
    heads = []
    for head in range(value.shape[2]):
        total = torch.zeros((), dtype=value.dtype)
        for level, ((h, w), start) in enumerate(zip(shapes.tolist(), starts.tolist(), strict=True)):
            tokens = value[:, start : start + h * w, head]
            grid = 2 * locations[:, :, head, level] - 1
            sampled = F.grid_sample(
                tokens.transpose(1, 2).unflatten(2, (h, w)), grid, align_corners=False
            )
            total = total + (sampled * weights[:, None, :, head, level]).sum(-1)
        heads.append(total)
    return torch.cat(heads, dim=1).transpose(1, 2)


def arguments(
    starts: list[int] = STARTS, tokens: int = 51, heads: int = 3, points: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    samples = (2, 6, heads, len(LEVELS), points)
    value = torch.randn(2, tokens, heads, 4, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(*samples, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.randn(*samples, dtype=torch.float64).flatten(3).softmax(-1).view(samples)
    return (
        value,
        torch.tensor(LEVELS),
        torch.tensor(starts),
        locations.requires_grad_(),
        weights.requires_grad_(),
    )


def gradients(output: Tensor, inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, [inputs[i] for i in (0, 3, 4)], grad)


def check_output(output, inputs):
    """It and its gradients are those of grid_sample."""
    reference = expected(*inputs)
    grad = torch.randn_like(reference)
    torch.testing.assert_close(output, reference)
    for got, want in zip(
        gradients(output, inputs, grad), gradients(reference, inputs, grad), strict=True
    ):
        torch.testing.assert_close(got, want)


LAYOUTS = [
    pytest.param({}, id="one_after_the_other"),
    pytest.param(dict(starts=[4, 45, 40], tokens=60), id="gaps_and_another_order"),
    pytest.param(dict(heads=8, points=1), id="one_point"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "function", [compat.MSDeformAttnFunction, compat.MultiScaleDeformableAttnFunction]
)
def test_apply_and_its_gradients_are_those_of_grid_sample(function, layout):
    inputs = arguments(**layout)
    output = function.apply(*inputs, 64)
    check_output(output, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_extension_gives_the_same_forward_and_backward(layout):
    inputs = arguments(**layout)
    reference = expected(*inputs)
    grad = torch.randn_like(reference)
    wanted = gradients(reference, inputs, grad)
    with torch.no_grad():
        torch.testing.assert_close(compat.ms_deform_attn_forward(*inputs, 64), reference)
        # Deformable DETR's: what is returned counts
        for got, want in zip(
            compat.ms_deform_attn_backward(*inputs, grad, 64), wanted, strict=True
        ):
            torch.testing.assert_close(got, want)
        # mmcv's: what is passed counts
        filled = [torch.full_like(inputs[i], 2) for i in (0, 3, 4)]  # gradients of before stay
        compat.ms_deform_attn_backward(*inputs, grad, *filled, im2col_step=64)
        for got, want in zip(filled, wanted, strict=True):
            torch.testing.assert_close(got - 2, want)


def test_the_form_without_level_starts():
    value, shapes, starts, locations, weights = arguments()
    want = expected(value, shapes, starts, locations, weights)
    for given in (shapes, LEVELS, shapes.numpy()):
        got = compat.multi_scale_deformable_attn_pytorch(value, given, locations, weights)
        torch.testing.assert_close(got, want)
    assert compat.ms_deform_attn_core_pytorch is compat.multi_scale_deformable_attn_pytorch


def test_values_of_half_precision_keep_their_dtype():
    value, *others = arguments()
    got = compat.MSDeformAttnFunction.apply(value.half(), *others, 64)
    assert got.dtype == torch.float16
    want = expected(value, *others)
    torch.testing.assert_close(got.double(), want, atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_are_of_the_dtypes_of_their_inputs(dtype):
    """Whatever they are summed in: mmcv adds them to tensors of these dtypes."""
    value, shapes, starts, locations, weights = (
        each.detach().to(dtype) if each.is_floating_point() else each for each in arguments()
    )
    grad = torch.ones(2, 6, 12, dtype=dtype)
    with torch.no_grad():
        grads = compat.ms_deform_attn_backward(value, shapes, starts, locations, weights, grad, 64)
    assert [each.dtype for each in grads] == [dtype] * 3


@pytest.mark.parametrize("starts", [[0, 35], [0, 35, 48], [-1, 35, 47]])
def test_levels_outside_of_the_value_are_refused(starts):
    value, shapes, _, locations, weights = arguments()
    with pytest.raises(ValueError, match=r"value_level_start_index must be .* got \["):
        compat.MSDeformAttnFunction.apply(
            value, shapes, torch.tensor(starts), locations, weights, 64
        )


THEIRS = """
import torch
import {name} as extension

class Wrapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, step):
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, step)

    @staticmethod
    def backward(ctx, grad):
        grads = extension.ms_deform_attn_backward(*ctx.saved_tensors, grad.contiguous(), 64)
        return grads[0], None, None, grads[1], grads[2], None
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of somebody else, whose modules are forgotten afterwards."""
    name = "written_for_the_extension"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path / name
    for module in set(sys.modules) - before:
        del sys.modules[module]


@pytest.mark.parametrize("name", ["MultiScaleDeformableAttention", "written_for_the_extension._C"])
def test_code_that_wraps_the_extension_runs_unchanged(package, name):
    (package / "ops.py").write_text(THEIRS.format(name=name))
    module = compat.stand_in_for_extension(name)
    assert compat.stand_in_for_extension(name) is module
    inputs = arguments()
    output = importlib.import_module(f"{package.name}.ops").Wrapped.apply(*inputs, 64)
    check_output(output, inputs)


def test_another_module_is_not_replaced():
    with pytest.raises(ValueError, match=r"must be a module that is not imported yet, got json"):
        compat.stand_in_for_extension("json")


@pytest.mark.parametrize(
    ("place", "change", "says"),
    [
        (0, lambda value: value.flatten(), "value must be of shape"),
        (0, lambda value: None, "value must be a tensor, got NoneType"),
        (1, lambda shapes: shapes.flatten(), "spatial_shapes must be"),
        (1, lambda shapes: None, "spatial_shapes must be"),
        (2, lambda starts: None, "value_level_start_index must be"),
        (2, lambda starts: ["x"] * len(starts), "value_level_start_index must be"),
        (3, lambda locations: locations[..., :1], "sampling_locations must be of shape"),
        (3, lambda locations: locations.tolist(), "sampling_locations must be a tensor, got list"),
        (4, lambda weights: weights[:, 1:], "attention_weights must be of shape"),
    ],
)
def test_arguments_that_do_not_fit_are_named_in_both_directions(place, change, says):
    inputs = list(arguments())
    grad = torch.zeros_like(expected(*inputs))
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=says):
        compat.ms_deform_attn_forward(*inputs, 64)
    with pytest.raises(ValueError, match=says):
        compat.ms_deform_attn_backward(*inputs, grad, 64)


def test_gradients_that_do_not_fit_are_refused_before_anything_is_added():
    inputs = arguments()
    grad = torch.zeros_like(expected(*inputs))
    for wrong in (grad[:, 1:], grad[..., 1:], grad.half(), None):
        with pytest.raises(ValueError, match="grad_output must be of the shape and dtype"):
            compat.ms_deform_attn_backward(*inputs, wrong, 64)
    filled = [torch.zeros_like(inputs[i]) for i in (0, 3, 4)]
    for wrong in (filled[:2], filled[::-1]):
        with pytest.raises(ValueError, match="must be three tensors of the shapes of value"):
            compat.ms_deform_attn_backward(*inputs, grad, *wrong)
