"""Global attention computes what the papers of DETR and its kin say, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sparsedet.layers.attention import (
    ConditionalAttention,
    PlainAttention,
    SplitAttention,
    received_attention,
)
from sparsedet.layers.positional import SinePositionEmbedding
from sparsedet.modeling import (
    AnchorQueries,
    GlobalDecoder,
    GlobalEncoder,
    PositionQueries,
    Queries,
    TokenSelection,
)
from tests.modeling import small
from tests.modeling.test_decoder import sine

SIZES = ((64, 96), (128, 70))
WIDTH, HEADS = 16, 4


def attention_of(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Head by head, from the formula; ``seen`` is ``[B N]``."""
    read = []
    for q, k, v in zip(*(x.chunk(HEADS, dim=-1) for x in (query, key, value)), strict=True):
        logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if seen is not None:
            logits = logits.masked_fill(~seen[:, None], float("-inf"))
        read.append(logits.softmax(-1) @ v)
    return torch.cat(read, dim=-1)


def tokens(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, count, WIDTH), torch.randn(2, count, WIDTH)


@pytest.fixture
def seen() -> Tensor:
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    return mask


def test_plain_attention_adds_positions_to_queries_and_keys(seen):
    attention = small.randomize(PlainAttention(WIDTH, HEADS, dropout=0.3)).eval()
    (x, pos), (memory, memory_pos) = tokens(5), tokens(7)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    theirs.load_state_dict(attention.state_dict())
    expected = theirs(x + pos, memory + memory_pos, memory, key_padding_mask=~seen)[0]
    got, mass = attention(x, pos, memory, memory_pos, seen[:, None, None])
    torch.testing.assert_close(got, expected)
    assert mass is None


def test_split_attention_projects_contents_and_positions_apart():
    attention = small.randomize(SplitAttention(WIDTH, HEADS, dropout=0.3)).eval()
    x, pos = tokens(5)
    query = attention.query_content(x) + attention.query_pos(pos)
    key = attention.key_content(x) + attention.key_pos(pos)
    expected = attention.out_proj(attention_of(query, key, attention.value(x)))
    torch.testing.assert_close(attention(x, pos, x, pos, None)[0], expected)


@pytest.mark.parametrize("first", [True, False])
def test_conditional_attention_adds_products_of_contents_and_of_positions(seen, first):
    """In every head; the scale is that of the channels of both."""
    attention = small.randomize(ConditionalAttention(WIDTH, HEADS, dropout=0.3, with_pos=first))
    attention.eval()
    (x, pos), (memory, memory_pos), where = tokens(5), tokens(7), torch.randn(2, 5, WIDTH)
    query, key = attention.query_content(x), attention.key_content(memory)
    if first:
        query = query + attention.query_pos(pos)
        key = key + attention.key_pos(memory_pos)
    pairs = ((query, key), (attention.query_sine(where), attention.key_pos(memory_pos)))
    read = []
    for head, value in enumerate(attention.value(memory).chunk(HEADS, dim=-1)):
        q, k = (
            [each.chunk(HEADS, dim=-1)[head] for each in side] for side in zip(*pairs, strict=True)
        )
        logits = sum(a @ b.transpose(1, 2) for a, b in zip(q, k, strict=True))
        logits = (logits / (2 * WIDTH / HEADS) ** 0.5).masked_fill(~seen[:, None], float("-inf"))
        read.append(logits.softmax(-1) @ value)
    expected = attention.out_proj(torch.cat(read, dim=-1))
    got, _ = attention(x, pos, memory, memory_pos, seen[:, None, None], sine=where)
    torch.testing.assert_close(got, expected)


def test_the_attention_that_tokens_get_is_one_per_head_and_counted_query(seen):
    query, key = tokens(5)[0], tokens(7)[0]
    counted = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    mass = received_attention(query, key, HEADS, counted, mask=seen[:, None, None])
    expected = torch.zeros(2, 7)
    for image, row in counted.nonzero().tolist():
        for q, k in zip(query[image].chunk(HEADS, -1), key[image].chunk(HEADS, -1), strict=True):
            logits = (q[row] @ k.T / 2).masked_fill(~seen[image], float("-inf"))
            expected[image] += logits.softmax(-1)
    torch.testing.assert_close(mass, expected)
    torch.testing.assert_close(mass.sum(1), HEADS * counted.sum(1))
    assert not mass[1, 4:].any()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("scale_pos", [False, True])
def test_the_encoder_layer_by_layer(norm_first, scale_pos):
    options = dict(norm_first=norm_first, scale_pos=scale_pos, activation="prelu")
    encoder = small.randomize(small.build(GlobalEncoder, **options)).eval()
    model = small.detector(small.DETR)
    features = small.features(model, SIZES)
    selection = model.selector(None, features, encoder.num_layers)
    x, seen = features.tokens, ~features.padding_mask
    for layer in encoder.layers:
        pos = features.pos * encoder.pos_scale(x) if scale_pos else features.pos
        blocks = (
            lambda y, layer=layer, pos=pos: layer.attention(y, pos, y, pos, seen[:, None, None])[0],
            lambda y, layer=layer: layer.feedforward.linear2(prelu(layer, y)),
        )
        for block, norm in zip(blocks, (layer.attention_norm, layer.feedforward_norm), strict=True):
            x = x + block(norm(x)) if norm_first else norm(x + block(x))
    x = encoder.norm(x) if norm_first else x
    got = encoder(features, selection).memory.tokens
    torch.testing.assert_close(got[seen], x[seen])


def prelu(layer: nn.Module, x: Tensor) -> Tensor:
    hidden, slope = layer.feedforward.linear1(x), layer.feedforward.activation.weight
    return torch.where(hidden > 0, hidden, slope * hidden)


def test_kept_tokens_see_each_other_alone():
    """Those of a short image neither see fillers nor tokens that are not kept."""
    model = small.detector(small.NAMED["global_sparse"]).eval()
    features = small.features(model, SIZES)
    indices = torch.tensor([[3, 9, 4, 40], [7, 2, 0, 1]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    selection = TokenSelection((4, 2), indices, valid)
    encoded = model.encoder(features, (selection,) * 2).memory.tokens
    for image, kept in enumerate((indices[0], indices[1, :2])):
        alone = features.tokens[image : image + 1, kept]
        pos = features.pos[image : image + 1, kept]
        for layer in model.encoder.layers:
            alone = layer(alone, pos, None)
        torch.testing.assert_close(encoded[image, kept], alone[0])
        others = torch.ones(features.num_tokens, dtype=torch.bool)
        others[kept] = False
        assert torch.equal(encoded[image, others], features.tokens[image, others])


def decoder_inputs(reference_dim: int) -> tuple[nn.Module, Queries, object]:
    model = small.detector(small.NAMED["dn_detr"]).eval()
    memory = small.features(model, SIZES)
    width = small.EMBED_DIM
    reference = 0.1 + 0.8 * torch.rand(2, 5, reference_dim)
    return model, Queries(torch.randn(2, 5, width), reference, torch.randn(2, 5, width)), memory


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("options", [{}, dict(cross="conditional")], ids=["plain", "conditional"])
def test_the_decoder_layer_by_layer(options, norm_first):
    """With points as references, as in Conditional DETR; none is refined."""
    decoder = small.randomize(small.build(GlobalDecoder, norm_first=norm_first, **options)).eval()
    model, queries, memory = decoder_inputs(2)
    seen = ~memory.padding_mask[:, None, None]
    x, where = queries.content, sine_of_center(queries.reference)
    hidden = []
    for index, layer in enumerate(decoder.layers):
        scaled = where * decoder.sine_scale(x) if index and options else where
        blocks = (
            lambda y, layer=layer: layer.self_attention(y, queries.pos, y, queries.pos, None)[0],
            lambda y, layer=layer, scaled=scaled: layer.cross_attention(
                y, queries.pos, memory.tokens, memory.pos, seen, sine=scaled
            )[0],
            layer.feedforward,
        )
        norms = (layer.self_attention_norm, layer.cross_attention_norm, layer.feedforward_norm)
        for block, norm in zip(blocks, norms, strict=True):
            x = x + block(norm(x)) if norm_first else norm(x + block(x))
        hidden.append(decoder.norm(x))
    output = decoder(queries, memory, model.heads)
    for shown, prediction in zip(hidden, output.predictions, strict=True):
        head = model.heads.decoder(0)
        torch.testing.assert_close(prediction.logits, head.class_embed(shown))
        delta = head.box_embed(shown)
        delta = torch.cat((delta[..., :2] + queries.reference.logit(), delta[..., 2:]), dim=-1)
        torch.testing.assert_close(prediction.boxes, delta.sigmoid(), atol=1e-5, rtol=1e-4)


def sine_of_center(reference: Tensor) -> Tensor:
    """y first, then x."""
    boxes = torch.cat((reference[..., :2], torch.zeros_like(reference[..., :2])), dim=-1)
    return sine(boxes, small.EMBED_DIM // 2)[..., : small.EMBED_DIM]


def test_sizes_modulate_where_a_query_looks():
    """DAB-DETR, section 4.4: the rows' half by the height, the columns' half by the width."""
    model, queries, _ = decoder_inputs(4)
    decoder, half = model.decoder, small.EMBED_DIM // 2
    for index in (0, 1):
        pos, where = decoder._positions(index, queries, queries.content, queries.reference)
        expected = sine_of_center(queries.reference)
        if index:
            expected = expected * decoder.sine_scale(queries.content)
        width, height = decoder.size_scale(queries.content).sigmoid().unbind(-1)
        rows = expected[..., :half] * (height / queries.reference[..., 3])[..., None]
        columns = expected[..., half:] * (width / queries.reference[..., 2])[..., None]
        torch.testing.assert_close(where, torch.cat((rows, columns), dim=-1))
        torch.testing.assert_close(pos, decoder.pos_mlp(sine(queries.reference, half)))


def test_positions_of_the_map_are_those_of_whole_cells():
    """Counted from 1, the last one being the whole circle, y first."""
    embedding = SinePositionEmbedding(8, temperature=20.0, offset=0.0)
    (found,) = embedding(torch.tensor([[[3.0, 2.0]]]), [(3, 2)])
    for row in range(3):
        for column in range(2):
            angles = [2 * torch.pi * (row + 1) / 3, 2 * torch.pi * (column + 1) / 2]
            angles = torch.tensor([a / 20 ** (k / 2) for a in angles for k in (0, 1)])
            expected = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten()
            torch.testing.assert_close(found[0, 2 * row + column], expected, atol=1e-5, rtol=0)


def test_queries_of_positions_are_relative_to_nothing_or_to_a_point():
    _, _, memory = decoder_inputs(4)
    plain = small.randomize(PositionQueries(small.EMBED_DIM, 5))
    queries, proposals = plain(memory)
    assert proposals is None and not queries.content.any()
    assert (queries.reference == 0.5).all() and queries.reference.shape == (2, 5, 4)
    assert torch.equal(queries.pos[1], plain.embedding.weight)
    points = small.randomize(PositionQueries(small.EMBED_DIM, 5, points=True))
    queries, _ = points(memory)
    expected = points.point_mlp(points.embedding.weight).sigmoid()
    torch.testing.assert_close(queries.reference[0], expected)


@pytest.mark.parametrize(("patterns", "indicator"), [(0, True), (1, True), (3, False)])
def test_every_box_goes_with_every_pattern(patterns, indicator):
    _, _, memory = decoder_inputs(4)
    initializer = AnchorQueries(8, 5, num_patterns=patterns, indicator=indicator)
    queries, _ = initializer(memory)
    copies = max(patterns, 1)
    assert queries.content.shape == (2, 5 * copies, 8)
    boxes = initializer.anchors.weight.sigmoid()
    for copy in range(copies):
        rows = slice(5 * copy, 5 * copy + 5)
        assert torch.equal(queries.reference[0, rows], boxes)
        expected = torch.zeros(8)
        if patterns:
            pattern = initializer.embedding.weight[copy]
            expected[: len(pattern)] = pattern
        assert torch.equal(queries.content[1, rows], expected.expand(5, -1))
    assert len(expected) - (0 if initializer.embedding is None else len(pattern)) == (
        8 if patterns == 0 else int(indicator)
    )


def test_token_mass_counts_matching_queries_alone():
    model, queries, memory = decoder_inputs(4)
    queries = replace(queries, pos=None, num_denoising=2)
    valid = torch.tensor([[True] * 5, [True, True, True, True, False]])
    output = model.decoder(
        replace(queries, valid=valid), memory, model.heads, record={"token_mass"}
    )
    layers, heads = small.ARGUMENTS["num_layers"], small.ARGUMENTS["num_heads"]
    torch.testing.assert_close(output.token_mass.sum(1), layers * heads * torch.tensor([3.0, 2.0]))
    assert not output.token_mass[memory.padding_mask].any()
    assert model.decoder(replace(queries, valid=valid), memory, model.heads).token_mass is None


BAD = {
    "cross": (lambda: small.build(GlobalDecoder, cross="other"), r"'plain' or 'conditional', got"),
    "sizes": (
        lambda: small.build(GlobalDecoder, modulate_size=True),
        r"modulate_size must be False without cross.*model\.decoder\.cross=conditional",
    ),
    "twice": (
        lambda: small.build(GlobalDecoder, refine=False, look_forward_twice=True),
        r"GlobalDecoder\.look_forward_twice must be False without refine",
    ),
    "activation": (
        lambda: small.build(GlobalEncoder, activation="gelu"),
        r"activation must be 'relu' or 'prelu', got 'gelu'",
    ),
    "patterns": (
        lambda: AnchorQueries(8, 5, num_patterns=-1),
        r"num_patterns must be .*got -1.*model\.query_initializer\.num_patterns",
    ),
    "sizes of points": (
        lambda: small.detector(replace(small.NAMED["conditional_detr"], modulate_size=True)),
        r"modulate_size must be False for the references of PositionQueries, which are points",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_is_refused(case):
    build, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        build()
