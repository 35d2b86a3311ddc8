"""The attention module, and the messages of wrong arguments."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.layers import (
    MultiScaleDeformableAttention,
    ms_deform_attn,
    ms_deform_attn_reference,
    tile_order,
)
from sparsedet.layers.deformable_attention import module as attention_module
from sparsedet.layers.placing import whole_maps
from tests.layers.deformable_inputs import LEVELS, make_inputs, make_order

TOKENS = sum(height * width for height, width in LEVELS)


def make_module() -> MultiScaleDeformableAttention:
    module = MultiScaleDeformableAttention(32, 4, num_levels=2, num_points=3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def arguments(coordinates: int = 2) -> tuple:
    reference = torch.rand(2, 5, 2, coordinates)
    return torch.randn(2, 5, 32), reference, torch.randn(2, TOKENS, 32), LEVELS


def test_starts_as_in_the_paper():
    module = MultiScaleDeformableAttention(64, 8, num_levels=2, num_points=3)
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {
        "sampling_offsets",
        "attention_weights",
        "value_proj",
        "output_proj",
    }
    offsets = module.sampling_offsets.bias.view(8, 2, 3, 2)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(compass):
        for point in range(3):
            expected = torch.tensor(direction, dtype=torch.float32) * (point + 1)
            torch.testing.assert_close(offsets[head, 0, point], expected, rtol=0, atol=1e-5)
    assert torch.equal(offsets[:, 0], offsets[:, 1])
    for zero in (
        module.sampling_offsets.weight,
        *module.attention_weights.parameters(),
        module.value_proj.bias,
        module.output_proj.bias,
    ):
        assert not zero.any()
    _, _, weights = module(
        torch.randn(1, 4, 64), torch.rand(1, 4, 2, 2), torch.randn(1, TOKENS, 64), LEVELS,
        return_sampling=True,
    )  # fmt: skip
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_samples_where_the_paper_says(coordinates):
    module = make_module()
    query, reference, value, shapes = arguments(coordinates)
    output, locations, weights = module(query, reference, value, shapes, return_sampling=True)
    offsets = module.sampling_offsets(query).view(2, 5, 4, 2, 3, 2)
    for level, (height, width) in enumerate(LEVELS):
        for axis, size in enumerate((width, height)):
            center = reference[:, :, None, level, None, axis]
            step = 1 / size
            if coordinates == 4:
                step = reference[:, :, None, level, None, 2 + axis] / 2 / 3
            expected = center + offsets[:, :, :, level, :, axis] * step
            torch.testing.assert_close(locations[:, :, :, level, :, axis], expected)
    logits = module.attention_weights(query).view(2, 5, 4, 6)
    torch.testing.assert_close(weights, logits.softmax(-1).view(2, 5, 4, 2, 3))
    heads = module.value_proj(value).view(2, TOKENS, 4, 8)
    sampled = ms_deform_attn_reference(heads, LEVELS, locations, weights)
    torch.testing.assert_close(output, module.output_proj(sampled))
    assert torch.equal(output, module(query, reference, value, shapes))


def test_reference_reads_cell_centers_and_zero_outside():
    value = torch.arange(1.0, 13.0).view(1, 12, 1, 1)
    weights = torch.ones(1, 1, 1, 1, 1)
    for x, y, expected in (
        (1.5 / 4, 2.5 / 3, 10.0),  # centre of row 2, column 1
        (2 / 4, 0.5 / 3, 2.5),  # between columns 1 and 2 of row 0
        (0.0, 0.5 / 3, 0.5),  # half of cell 0 and half outside
        (1.2, 0.5, 0.0),
    ):
        location = torch.tensor([x, y]).view(1, 1, 1, 1, 1, 2)
        for function in (ms_deform_attn, ms_deform_attn_reference):
            output = function(value, [(3, 4)], location, weights)
            torch.testing.assert_close(output, torch.full((1, 1, 1), expected))


def test_padding_reads_as_zero_after_the_projection():
    module = make_module()
    query, reference, value, shapes = arguments()
    mask = torch.rand(2, TOKENS) < 0.5
    output = module(query, reference, value, shapes, padding_mask=mask)
    noisy = torch.where(mask[..., None], torch.full_like(value, 1e6), value)
    assert torch.equal(output, module(query, reference, noisy, shapes, padding_mask=mask))
    everything = module(query, reference, value, shapes, padding_mask=torch.ones_like(mask))
    torch.testing.assert_close(everything, module.output_proj.bias.expand_as(everything))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_gradient_reaches_every_parameter_and_input(coordinates):
    module = make_module()
    query, reference, value, shapes = arguments(coordinates)
    inputs = [x.requires_grad_() for x in (query, reference, value)]
    module(query, reference, value, shapes).square().sum().backward()
    for tensor in (*module.parameters(), *inputs):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def test_no_query():
    module = make_module()
    query, reference, value, shapes = arguments()
    output = module(query[:, :0], reference[:, :0], value, shapes)
    assert output.shape == (2, 0, 32)
    output.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, r"embed_dim must be a multiple of num_heads \(5\), got 32"),
        ({"num_levels": 0}, "num_levels must be positive, got 0"),
        ({"num_points": -1}, "num_points must be positive, got -1"),
    ],
)
def test_constructor_errors(change, message):
    sizes = {"embed_dim": 32, "num_heads": 4, "num_levels": 2, "num_points": 3}
    with pytest.raises(ValueError, match=f"MultiScaleDeformableAttention.{message}"):
        MultiScaleDeformableAttention(**{**sizes, **change})


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x[..., :7], r"query must be of shape \(B, tokens, 32\), got \(2, 5, 7\)"),
        (1, lambda x: x[:, :4], r"reference_points must be of shape \(2, 5, 2\) \+ .*\(2, 4, 2, 2"),
        (1, lambda x: x[..., :1], "reference_points must be of shape"),
        (2, lambda x: x[:, :, 0], r"value must be of shape \(B, tokens, 32\), got \(2, 47\)"),
        (2, lambda x: x[:, 1:], r"value must be of shape \(B, N, M, D\) with N the tokens of"),
        (3, lambda x: x[:1], "spatial_shapes must have 2 levels, got 1"),
    ],
)
def test_module_errors(position, change, message):
    inputs = list(arguments())
    inputs[position] = change(inputs[position])
    with pytest.raises(ValueError, match=message):
        make_module()(*inputs)


def test_padding_mask_errors():
    message = r"padding_mask must be bool or uint8 of shape \(2, 47\), got"
    for mask in (torch.zeros(2, TOKENS), torch.zeros(2, TOKENS - 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match=message):
            make_module()(*arguments(), padding_mask=mask)


def test_a_mask_of_bytes_is_a_mask():
    """Deformable DETR's first release and mmcv have such masks: 1 = padding, 2 as well."""
    module, inputs = make_module(), arguments()
    mask = torch.rand(2, TOKENS) > 0.6
    wanted = module(*inputs, padding_mask=mask)
    assert torch.equal(module(*inputs, padding_mask=2 * mask.to(torch.uint8)), wanted)
    with torch.no_grad():  # sampling first
        few = [inputs[0][:, :2], inputs[1][:, :2], *inputs[2:]]
        torch.testing.assert_close(
            module(*few, padding_mask=mask.to(torch.uint8)), wanted[:, :2], atol=1e-5, rtol=1e-4
        )


FORMS = pytest.mark.parametrize(
    "form",
    [
        list,
        lambda pairs: [list(pair) for pair in pairs],
        torch.tensor,
        lambda pairs: torch.tensor(pairs, dtype=torch.int32),
        np.array,
    ],
    ids=["pairs", "lists", "tensor", "int32", "array"],
)


@FORMS
def test_spatial_shapes_of_any_form(form):
    module, (query, reference, value, shapes) = make_module(), arguments()
    wanted = module(query, reference, value, shapes)
    assert torch.equal(module(query, reference, value, form(shapes)), wanted)
    inputs = make_inputs()
    value, shapes, *others = inputs.arguments
    for function in (ms_deform_attn, ms_deform_attn_reference):
        assert torch.equal(function(value, form(shapes), *others), function(*inputs.arguments))
    tokens = torch.arange(TOKENS)[None]
    assert torch.equal(tile_order(tokens, form(LEVELS)), tile_order(tokens, LEVELS))


def test_arguments_in_the_order_of_detrex():
    module = MultiScaleDeformableAttention(32, 4, 2, 3)
    assert (module.num_levels, module.num_points) == (2, 3)


def test_a_host_that_draws_all_matrices_anew_gets_the_start_back():
    """As detrex's and mmdet's transformers do it: by ``init_weights`` of the attention."""
    torch.manual_seed(3)
    host = nn.Sequential(MultiScaleDeformableAttention(32, 4, 2, 3), nn.Linear(32, 32))
    start = {name: value.clone() for name, value in host[0].state_dict().items()}
    for parameter in host.parameters():
        nn.init.xavier_uniform_(parameter) if parameter.dim() > 1 else nn.init.ones_(parameter)
    for module in host.modules():
        if hasattr(module, "init_weights"):
            module.init_weights()
    for name, value in host[0].state_dict().items():
        if name.endswith("proj.weight"):  # drawn again
            assert value.std() == pytest.approx(start[name].std().item(), rel=0.2)
        else:
            assert torch.equal(value, start[name]), name


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x.int(), "value must be float64, .* got torch.int32"),
        (0, lambda x: x.flatten(2), r"value must be of shape \(B, N, M, D\), got \(2, 47, 12\)"),
        (0, lambda x: x[:, 1:], r"value must be .* tokens of \[\(5, 7\), \(3, 4\)\], got \(2, 46,"),
        (1, lambda x: torch.tensor(x) / 2, "spatial_shapes must be .* pairs of positive ints"),
        (1, lambda x: torch.tensor(x).flatten(), r"spatial_shapes must be .*got \[5, 7, 3, 4\]"),
        (1, lambda x: np.array(x)[:1], "value must be of shape"),
        (1, lambda x: 5, "spatial_shapes must be .*got 5"),
        (1, lambda x: [], r"spatial_shapes must be .*got \[\]"),
        (1, lambda x: [(5, 0), (3, 4)], r"spatial_shapes must be .* got \[\(5, 0\), \(3, 4\)\]"),
        (1, lambda x: [(5.0, 7), (3, 4)], "spatial_shapes must be .* pairs of positive ints"),
        (1, lambda x: [(5, 7, 1), (3, 4)], "spatial_shapes must be .* pairs of positive ints"),
        (2, lambda x: x[..., 0], r"sampling_locations must be of shape \(2, Q, 3, 2, P, 2\), got"),
        (2, lambda x: x[:1], r"sampling_locations must be .* got \(1, 6, 3, 2, 3, 2\)"),
        (2, lambda x: x[:, :, :, :1], "sampling_locations must be of shape"),
        (2, lambda x: x.to("meta"), r"sampling_locations must be on the device of value \(cpu\)"),
        (
            3,
            lambda x: x[:, :5],
            r"attention_weights must be of shape \(2, 6, 3, 2, 3\), got \(2, 5",
        ),
        (3, lambda x: x.long(), "attention_weights must be float64, .* got torch.int64"),
    ],
)
def test_argument_errors(function, position, change, message):
    inputs = list(make_inputs(dtype=torch.float32).arguments)
    inputs[position] = change(inputs[position])
    with pytest.raises(ValueError, match=f"ms_deform_attn.{message}"):
        function(*inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.int(), "query_order must be int64, got torch.int32"),
        (lambda x: x[:, 1:], r"query_order must be of shape \(2, 6\), got \(2, 5\)"),
        (lambda x: x.to("meta"), r"query_order must be on the device of value \(cpu\), got meta"),
    ],
)
def test_query_order_errors(change, message):
    inputs = make_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=f"ms_deform_attn.{message}"):
        ms_deform_attn(*inputs.arguments, query_order=change(make_order(inputs)))


def test_tile_order_goes_through_the_levels_by_tiles():
    shapes = ((9, 17), (2, 3))
    starts = (0, 9 * 17)
    tokens = torch.stack([torch.randperm(9 * 17 + 6)[:120] for _ in range(2)])
    order = tile_order(tokens, shapes)
    assert torch.equal(order.sort(1).values, torch.arange(120).expand(2, -1))

    def place(token: int) -> tuple[int, ...]:
        level = int(token >= starts[1])
        row, column = divmod(token - starts[level], shapes[level][1])
        return level, row // 8, column // 8, row, column

    for ordered in tokens.gather(1, order).tolist():
        places = [place(token) for token in ordered]
        assert places == sorted(places)


def test_module_hands_the_query_order_on(monkeypatch):
    passed = []

    def recorded(*inputs, query_order):
        passed.append(query_order)
        return ms_deform_attn(*inputs, query_order=query_order)

    monkeypatch.setattr(f"{attention_module.__name__}.ms_deform_attn", recorded)
    module, order = make_module(), torch.rand(2, 5).argsort(1)
    inputs = arguments()
    with torch.no_grad():  # few queries are sampled first: the tokens, and what the bias counts
        assert torch.equal(module(*inputs, query_order=order), module(*inputs))
    assert passed[0] is order and passed[1] is order and passed[2:] == [None, None]
    assert torch.equal(module(*inputs, query_order=order), module(*inputs))
    assert passed[4:] == [None, None], "on a CPU the order slows the other form down"


def test_locations_and_weights_of_any_precision():
    value, shapes, locations, weights = make_inputs(dtype=torch.float32).arguments
    expected = ms_deform_attn(value, shapes, locations.half().float(), weights.double().float())
    assert torch.equal(ms_deform_attn(value, shapes, locations.half(), weights.double()), expected)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sampling_before_the_projection_gives_the_same(coordinates, padded, dtype):
    """With padding and samples outside of the maps, where the bias must not count."""
    module = make_module().to(dtype)
    query, reference, value, shapes = arguments(coordinates)
    reference = reference * 1.6 - 0.3
    mask = torch.rand(2, TOKENS) < 0.3 if padded else None
    query, value = query.to(dtype), value.to(dtype)
    locations = module._sampling_locations(query, reference, shapes)
    weights = module._weights(query)
    assert ((locations < 0) | (locations > 1)).float().mean() > 0.1
    order = torch.stack([torch.randperm(5), torch.randperm(5)])
    whole = functools.partial(whole_maps, spatial_shapes=shapes, padding_mask=mask, places=None)
    with torch.no_grad():
        first, last = (
            read(value, whole, shapes, locations, weights, order, module.num_heads)
            for read in (module._project_first, module._sample_first)
        )
    assert last.dtype == dtype
    bound = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(last, first, atol=bound, rtol=bound)


def test_few_queries_sample_first_where_no_gradient_is_asked_for(monkeypatch):
    module = make_module()
    query, reference, value, shapes = arguments()
    used = []
    for name in ("_project_first", "_sample_first"):
        read = getattr(module, name)

        def note(name, read, *args, **options):
            used.append(name)
            return read(*args, **options)

        monkeypatch.setattr(module, name, functools.partial(note, name, read))
    expected = module(query, reference, value, shapes)
    with torch.no_grad():
        many = module(query.repeat(1, 4, 1), reference.repeat(1, 4, 1, 1), value, shapes)
        few = module(query, reference, value, shapes)
    assert used == ["_project_first", "_project_first", "_sample_first"]
    torch.testing.assert_close(few, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(many[:, :5], expected, atol=1e-5, rtol=1e-5)
