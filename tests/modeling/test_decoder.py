"""The attention that the decoder pays to the tokens, and how references move."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sparsedet.layers import ms_deform_attn_reference
from sparsedet.layers.attention import attend
from sparsedet.modeling.decoder import attention_mass
from sparsedet.modeling.decoding import query_mask
from sparsedet.modeling.denoising import group_mask
from sparsedet.modeling.stages import Queries
from tests.modeling import small

SIZES = ((64, 96), (128, 70))


def queries(valid=None, count: int = 7, dim: int = 4) -> Queries:
    generator = torch.Generator().manual_seed(5)
    shape = (len(SIZES), count, small.EMBED_DIM)
    return Queries(
        torch.randn(shape, generator=generator),
        0.3 + 0.4 * torch.rand(len(SIZES), count, dim, generator=generator),
        torch.randn(shape, generator=generator),
        valid,
    )


def samples(features, spread: float):
    generator = torch.Generator().manual_seed(7)
    shape = (len(SIZES), 7, 4, len(small.STRIDES), 2)
    locations = 0.5 + spread * (torch.rand(*shape, 2, generator=generator) - 0.5)
    return locations, torch.rand(shape, generator=generator).flatten(3).softmax(-1).view(shape)


@pytest.fixture
def features():
    return small.features(small.detector(small.PLAIN), SIZES)


@pytest.mark.parametrize("spread", [0.3, 1.4], ids=["inside", "partly outside"])
@pytest.mark.parametrize("fillers", [False, True])
def test_mass_is_the_gradient_of_the_attention(features, spread, fillers):
    """What a token gives to the output is what the mass says: the two sample alike."""
    valid = torch.rand(len(SIZES), 7) > 0.4 if fillers else None
    locations, weights = samples(features, spread)
    mass = attention_mass(features, locations, weights, valid=valid)
    value = torch.ones(len(SIZES), features.num_tokens, 4, 1, requires_grad=True)
    read = ms_deform_attn_reference(value, features.spatial_shapes, locations, weights)
    if valid is not None:
        read = read * valid[..., None]
    read.sum().backward()
    torch.testing.assert_close(mass, value.grad.sum((2, 3)), atol=1e-5, rtol=1e-5)


def test_mass_at_cell_centers_stays_in_the_cell():
    model = small.detector(small.PLAIN)
    features = small.features(model, ((64, 96),))
    height, width = features.spatial_shapes[0]
    locations = torch.full((1, 1, 1, 4, 1, 2), -9.0)
    locations[..., 0, :, :] = torch.tensor([(2 + 0.5) / width, (1 + 0.5) / height])
    weights = torch.full((1, 1, 1, 4, 1), 0.25)
    mass = attention_mass(features, locations, weights)
    assert mass[0, width + 2].item() == pytest.approx(0.25, abs=1e-5)
    assert mass.sum().item() == pytest.approx(0.25, abs=1e-5)


def test_queries_of_noised_objects_have_no_mass(features):
    locations, weights = samples(features, 0.3)
    valid = torch.rand(len(SIZES), 7) > 0.3
    mass = attention_mass(features, locations, weights, valid=valid, num_denoising=3)
    wanted = attention_mass(features, locations[:, 3:], weights[:, 3:], valid=valid[:, 3:])
    assert torch.equal(mass, wanted) and mass.any()


def test_places_that_are_not_finite_have_no_mass(features):
    locations, weights = samples(features, 0.1)
    whole = attention_mass(features, locations, weights)
    locations[0, 0] = float("nan")
    locations[1, 0] = float("inf")
    mass = attention_mass(features, locations, weights)
    locations[:, 0] = -9.0
    assert torch.equal(mass, attention_mass(features, locations, weights))
    assert mass.isfinite().all() and mass.sum() < whole.sum()


def test_recorded_mass_adds_up():
    """Every query gives each head of each layer a weight of one, if no point leaves the map."""
    model = small.detector(small.PLAIN)
    for layer in model.decoder.layers:
        torch.nn.init.zeros_(layer.cross_attention.sampling_offsets.weight)
        torch.nn.init.zeros_(layer.cross_attention.sampling_offsets.bias)
    features = small.features(model, ((256, 256), (200, 256)))
    start = queries(dim=2)
    with torch.no_grad():
        output = model.decoder(start, features, model.heads, record={"token_mass"})
    full = torch.full((2,), 7.0 * 4 * len(model.decoder.layers))
    torch.testing.assert_close(output.token_mass.sum(1), full)
    assert not output.token_mass.requires_grad
    assert model.decoder(start, features, model.heads).token_mass is None


@pytest.mark.parametrize("refine", [True, False])
def test_references_move_only_with_refinement(features, refine):
    model = small.detector(small.Combination(queries="LearnedQueries", refine=refine))
    decoder, start, seen = model.decoder, queries(dim=2), []
    for layer in decoder.layers:
        layer.cross_attention.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    with torch.no_grad():
        output = decoder(start, features, model.heads)
    torch.testing.assert_close(seen[0], features.to_levels(start.reference))
    second = output.predictions[0].boxes if refine else start.reference
    torch.testing.assert_close(seen[1], features.to_levels(second))


def test_refined_boxes_start_from_the_previous_ones(features):
    """With a head that says nothing, every layer repeats the reference box."""
    model = small.detector(small.Combination())
    for head in model.heads.decoder_heads:
        torch.nn.init.zeros_(head.box_embed.layers[-1].weight)
        torch.nn.init.zeros_(head.box_embed.layers[-1].bias)
    start = queries()
    with torch.no_grad():
        output = model.decoder(start, features, model.heads)
    for prediction in output.predictions:
        torch.testing.assert_close(prediction.boxes, start.reference, atol=1e-5, rtol=1e-5)


def test_refined_references_carry_no_gradient(features):
    model = small.detector(small.Combination())
    start = queries()
    output = model.decoder(start, features, model.heads)
    output.predictions[1].boxes.sum().backward()
    assert model.heads.decoder_heads[0].box_embed.layers[-1].bias.grad is None
    assert model.heads.decoder_heads[1].box_embed.layers[-1].bias.grad is not None


def test_fillers_change_no_other_query(features):
    model = small.detector(small.Combination()).eval()
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[0, 4:] = False
    start = queries(valid)
    noisy = Queries(start.content.clone(), start.reference, start.pos, valid)
    noisy.content[0, 4:] += 10
    with torch.no_grad():
        one, other = (model.decoder(each, features, model.heads) for each in (start, noisy))
    for a, b in zip(one.predictions, other.predictions, strict=True):
        torch.testing.assert_close(a.logits[valid], b.logits[valid])
        assert not torch.allclose(a.logits[~valid], b.logits[~valid])


def test_references_at_the_border_are_clamped(features):
    """The clamp of the inverse sigmoid is the decoder's; see ``DeformableDecoder.eps``."""
    model = small.detector(small.Combination(), eps=0.01)
    for head in model.heads.decoder_heads:
        torch.nn.init.zeros_(head.box_embed.layers[-1].weight)
        torch.nn.init.zeros_(head.box_embed.layers[-1].bias)
    start = queries()
    start.reference[:, 0] = torch.tensor([0.0, 1.0, 0.001, 0.3])
    with torch.no_grad():
        boxes = model.decoder(start, features, model.heads).predictions[0].boxes[:, 0]
    low = 0.01 / 1.01  # the two sides are clamped one by one
    expected = torch.tensor([low, 1 - low, 0.01 / (0.01 + 0.999), 0.3]).expand(2, 4)
    torch.testing.assert_close(boxes, expected)


OPTIONS = [
    dict(refine=refine, look_forward_twice=twice, output_norm=norm, scale_pos=scale)
    for refine, twice, norm, scale in itertools.product((True, False), repeat=4)
    if refine or not twice
]


def conditional(**options):
    """A decoder of three layers that makes the positions, in a detector with learned boxes."""
    combination = small.Combination(queries="AnchorQueries", **options)
    return small.detector(combination, num_layers=3)


def sine(reference: torch.Tensor, per_number: int) -> torch.Tensor:
    """Sine embedding of boxes, number by number: y, x, w, h."""
    found = []
    for number in (1, 0, 2, 3):
        for wave in range(per_number // 2):
            angle = 2 * math.pi * reference[..., number] / 10000 ** (2 * wave / per_number)
            found += [angle.sin(), angle.cos()]
    return torch.stack(found, dim=-1)


def slow_decoder(model, start: Queries, memory, options: dict) -> list[tuple]:
    """Layers, positions, references and predictions of DINO and DN-DETR, step by step."""
    decoder, x = model.decoder, start.content
    reference = before = start.reference
    predictions = []
    for index, layer in enumerate(decoder.layers):
        pos = decoder.pos_mlp(sine(reference, small.EMBED_DIM // 2))
        if options["scale_pos"] and index > 0:
            pos = pos * decoder.pos_scale(x)
        x = layer(x, pos, query_mask(start), memory.to_levels(reference), memory)[0]
        head = model.heads.decoder(index)
        shown = decoder.norm(x) if options["output_norm"] else x
        box = (head.box_embed(shown) + before.logit()).sigmoid()
        predictions.append((head.class_embed(shown), box))
        if options["refine"]:
            moved = (head.box_embed(x) + reference.logit()).sigmoid()
            reference = moved.detach()
            before = moved if options["look_forward_twice"] else reference
    return predictions


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_options_do_what_their_papers_say(features, options):
    """Values and gradients of a loop written from the papers, for every set of options."""
    model = conditional(**options)
    start = queries()
    predictions = model.decoder(start, features, model.heads).predictions
    expected = slow_decoder(model, start, features, options)
    weights = torch.rand(len(expected), 4)
    losses = [torch.zeros(()), torch.zeros(())]
    for layer, (prediction, (logits, boxes)) in enumerate(zip(predictions, expected, strict=True)):
        torch.testing.assert_close(prediction.logits, logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(prediction.boxes, boxes, atol=1e-5, rtol=1e-5)
        losses[0] = losses[0] + (prediction.boxes * weights[layer]).sum()
        losses[1] = losses[1] + (boxes * weights[layer]).sum()
    parameters = [*model.decoder.parameters(), *model.heads.parameters()]
    first, second = (torch.autograd.grad(x, parameters, allow_unused=True) for x in losses)
    for ours, theirs in zip(first, second, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("output_norm", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_gradients_flow_one_layer_further(features, twice, output_norm):
    """Looking forward twice, the boxes of a layer train the box head of the layer before."""
    model = conditional(look_forward_twice=twice, output_norm=output_norm)
    predictions = model.decoder(queries(), features, model.heads).predictions
    heads = [head.box_embed.layers[-1].bias for head in model.heads.decoder_heads]
    for layer, prediction in enumerate(predictions):
        gradients = torch.autograd.grad(
            prediction.boxes.sum(), heads, retain_graph=True, allow_unused=True
        )
        reached = {index for index, each in enumerate(gradients) if each is not None}
        assert reached == {layer} | ({layer - 1} & {0, 1, 2} if twice else set())


def test_looking_forward_twice_changes_no_value(features):
    found = []
    for twice in (False, True):
        for norm in (False, True):
            model = conditional(look_forward_twice=twice, output_norm=norm)
            with torch.no_grad():
                predictions = model.decoder(queries(), features, model.heads).predictions
            found.append([prediction.boxes for prediction in predictions])
    for plain, ahead in ((found[0], found[2]), (found[1], found[3])):
        for ours, theirs in zip(ahead, plain, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_output_norm_touches_predictions_only(features):
    """What a layer hands on, and the boxes that it starts from, are not normalized."""
    model, other = conditional(output_norm=True), conditional(output_norm=True)
    torch.nn.init.constant_(other.decoder.norm.weight, 3.0)
    seen: list[list] = [[], []]
    found = []
    for each, record in zip((model, other), seen, strict=True):
        for layer in each.decoder.layers:
            layer.register_forward_pre_hook(
                lambda _, given, record=record: record.append((given[0], given[3]))
            )
        with torch.no_grad():
            found.append(each.decoder(queries(), features, each.heads).predictions)
    for (x, reference), (same_x, same_reference) in zip(*seen, strict=True):
        assert torch.equal(x, same_x) and torch.equal(reference, same_reference)
    for ours, theirs in zip(*found, strict=True):
        assert not torch.allclose(ours.boxes, theirs.boxes)
        assert not torch.allclose(ours.logits, theirs.logits)


def test_positions_follow_the_references(features):
    """Unscaled in the first layer; made anew from the refined boxes in the others."""
    model = conditional(scale_pos=True)
    seen = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    start = queries()
    with torch.no_grad():
        predictions = model.decoder(start, features, model.heads).predictions
        decoder = model.decoder
        references = [start.reference, *(prediction.boxes for prediction in predictions[:-1])]
        for index, ((x, pos), reference) in enumerate(zip(seen, references, strict=True)):
            expected = decoder.pos_mlp(sine(reference, small.EMBED_DIM // 2))
            expected = expected if index == 0 else expected * decoder.pos_scale(x)
            torch.testing.assert_close(pos, expected, atol=1e-4, rtol=1e-4)


def test_mass_counts_matching_queries_only(features):
    """The first queries stand for noised objects: they look, and are not counted."""
    model = conditional()
    start = queries()
    mask = group_mask(4, 2, 7, torch.device("cpu"))
    noised = replace(start, attn_mask=mask, num_denoising=4)
    alone = replace(start, content=start.content[:, 4:], reference=start.reference[:, 4:], pos=None)
    with torch.no_grad():
        got, expected = (
            model.decoder(each, features, model.heads, record={"token_mass"}).token_mass
            for each in (noised, alone)
        )
    assert expected.sum() > 0
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fillers", [False, True])
@pytest.mark.parametrize("groups", [False, True])
def test_self_attention_is_that_of_the_module(fillers, groups):
    """Values and gradients, with what fillers and groups hide; one mask serves every head."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(small.EMBED_DIM, 4, batch_first=True)
    torch.nn.init.normal_(attention.in_proj_bias)
    valid = torch.rand(len(SIZES), 7) < 0.6 if fillers else None
    if fillers:
        valid[:, -1] = True
    blocked = group_mask(4, 2, 7, torch.device("cpu")) if groups else None
    found = replace(queries(valid), attn_mask=blocked)
    mask = query_mask(found)
    assert (mask is None) == (not fillers and not groups)
    assert mask is None or mask.shape[1] == 1
    q, value = (torch.randn(len(SIZES), 7, small.EMBED_DIM, requires_grad=True) for _ in range(2))
    inputs = (q, value, *attention.parameters())
    padding = None if valid is None else ~valid
    expected = attention(
        q, q, value, key_padding_mask=padding, attn_mask=blocked, need_weights=False
    )[0]
    got = attend(attention, q, value, mask)
    torch.testing.assert_close(got, expected)
    factors = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad((got * factors).sum(), inputs),
        torch.autograd.grad((expected * factors).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_self_attention_drops_out_in_training_alone():
    attention = torch.nn.MultiheadAttention(small.EMBED_DIM, 4, dropout=0.5, batch_first=True)
    x = torch.randn(2, 9, small.EMBED_DIM)
    draws = [attend(attention, x, x, None) for _ in range(2)]
    assert not torch.equal(*draws)
    attention.eval()
    assert torch.equal(*(attend(attention, x, x, None) for _ in range(2)))
