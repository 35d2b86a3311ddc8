"""IMFA step by step, image by image, and what its decoder must not look at."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsedet.layers.positional import SinePositionEmbedding
from sparsedet.modeling import (
    AnchorQueries,
    GlobalEncoder,
    InterleavedDecoder,
    Queries,
    TokenSparseDetector,
    TopKSelector,
)
from tests.modeling import small
from tests.modeling.test_decoder import sine

SIZES = ((64, 96), (128, 70), (8, 30))
IMFA = {name: each for name, each in small.NAMED.items() if isinstance(each, small.Bare)}
REGIONS, POINTS = 3, 2


def imfa(name: str, **arguments) -> TokenSparseDetector:
    """Four layers: the first, the second and those with the first one's map are different."""
    options = dict(num_layers=4, num_regions=REGIONS, num_points=POINTS)
    return small.detector(IMFA[name], **{**options, **arguments}).eval()


# --- the paper's computation, for one image without padding


def split_attention(part: nn.Module, x: Tensor, pos: Tensor) -> Tensor:
    """Of all rows to all rows; queries and keys are sums of two projections."""
    query = part.query_content(x) + part.query_pos(pos)
    key = part.key_content(x) + part.key_pos(pos)
    heads = []
    for q, k, v in zip(*(y.chunk(4, dim=-1) for y in (query, key, part.value(x))), strict=True):
        heads.append((q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return part.out_proj(torch.cat(heads, dim=-1))


def encoder_layer(encoder: GlobalEncoder, index: int, x: Tensor, pos: Tensor) -> Tensor:
    layer = encoder.layers[index]
    if encoder.pos_scale is not None:
        pos = pos * encoder.pos_scale(x)
    x = layer.attention_norm(x + split_attention(layer.attention, x, pos))
    return layer.feedforward_norm(x + layer.feedforward(x))


def bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """``image[H W C]`` at a point of [0, 1]; there is nothing beyond it."""
    height, width, channels = image.shape
    column, row, read = x * width - 0.5, y * height - 0.5, torch.zeros(channels)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                read = read + (1 - abs(i - row)) * (1 - abs(j - column)) * image[i, j]
    return read


def sampled(decoder: InterleavedDecoder, x: Tensor, box: Tensor, levels: list[Tensor]):
    """Tokens and positions of one query's box."""
    part, width = decoder.sampler, small.EMBED_DIM
    offsets = part.offsets(x).tanh().view(POINTS, 2)
    weights = part.level_weights(x).view(POINTS, len(levels)).softmax(-1)
    there, back = part.matrices(x).chunk(2)
    tokens, places = [], []
    for offset, weight in zip(offsets, weights, strict=True):
        px, py = (box[:2] + box[2:] * offset).tolist()
        mixed = sum(
            share * (bilinear(level, px, py) + embed)
            for share, level, embed in zip(weight, levels, part.level_embed, strict=True)
        )
        hidden = F.relu(part.hidden_norm(mixed @ there.view(width, width // 4)))
        tokens.append(part.norm(hidden @ back.view(width // 4, width)))
        places.append(torch.tensor([px, py, 0.0, 0.0]))
    return torch.stack(tokens), sine(torch.stack(places), width // 2)[:, :width]


def regions(model, index: int, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and boxes of the surest ones."""
    decoder, head = model.decoder, model.heads.decoder(index - 1)
    shown = x if decoder.refine else decoder.norm(x)
    logits = head.class_embed(shown)
    if head.softmax:
        logits = torch.cat((logits, head.no_object(shown)), -1).softmax(-1)[:, :-1]
    best = logits.max(-1).values.topk(REGIONS).indices
    if decoder.refine:
        return x[best], reference[best]
    return x[best], (head.box_embed(shown[best]) + reference[best].logit()).sigmoid()


def computed(model, levels: list[Tensor], pos: Tensor, queries: Queries) -> list[Tensor]:
    """Boxes of every layer."""
    decoder, first = model.decoder, None
    tokens, x, reference = levels[-1].flatten(0, 1), queries.content, queries.reference
    origin, boxes = reference, []
    for index, layer in enumerate(decoder.layers):
        if index > 1:
            tokens = tokens + first
        rows, rows_pos = [tokens], [pos]
        if index > 0:
            for query, box in zip(*regions(model, index, x, reference), strict=True):
                read, places = sampled(decoder, query, box, levels)
                rows.append(read)
                rows_pos.append(places)
        rows, rows_pos = torch.cat(rows), torch.cat(rows_pos)
        rows = encoder_layer(decoder.encoder, index, rows, rows_pos)
        tokens = rows[: len(tokens)]
        first = tokens if index == 0 else first
        given = (y[None] for y in (x, reference))
        where = decoder._positions(index, replace_batch(queries), *given)
        x = layer(x[None], *where, None, rows[None], rows_pos[None], None, None)[0][0]
        head = model.heads.decoder(index)
        boxes.append((head.box_embed(decoder.norm(x)) + logit(origin, decoder.eps)).sigmoid())
        if decoder.refine:
            origin = (head.box_embed(x) + logit(reference, decoder.eps)).sigmoid()
            reference = origin
    return boxes


def logit(x: Tensor, eps: float) -> Tensor:
    return x.clamp(min=eps).log() - (1 - x).clamp(min=eps).log()


def replace_batch(queries: Queries) -> Queries:
    return replace(queries, pos=None if queries.pos is None else queries.pos[None])


@pytest.mark.parametrize("name", IMFA)
@torch.no_grad()
def test_it_computes_the_paper_step_by_step(name):
    """Every image of a padded batch, which is computed by itself, from its cells alone."""
    model = imfa(name)
    features = small.features(model, SIZES)
    output = model.detect_features(features)
    queries, _ = model.query_initializer(features, model.heads)
    for image, sizes in enumerate(features.level_sizes):
        levels = [
            level[image].unflatten(0, shape)[:rows, :columns]
            for level, shape, (rows, columns) in zip(
                features.split_levels(features.tokens), features.spatial_shapes, sizes, strict=True
            )
        ]
        own = replace(
            queries,
            content=queries.content[image],
            reference=queries.reference[image],
            pos=None if queries.pos is None else queries.pos[image],
        )
        rows, columns = sizes[-1]
        pos = torch.tensor(
            [[(j + 0.5) / columns, (i + 0.5) / rows, 0, 0] for i in range(rows)
             for j in range(columns)]
        )  # fmt: skip
        pos = sine(pos, small.EMBED_DIM // 2)[:, : small.EMBED_DIM]
        pos = pos if model.level_embed is None else pos + model.level_embed[-1]
        for layer, boxes in enumerate(computed(model, levels, pos, own)):
            got = output.decoder[layer].boxes[image]
            torch.testing.assert_close(got, boxes, atol=1e-4, rtol=1e-4, msg=f"{image} {layer}")


# --- what is sampled, and who points it out


@pytest.mark.parametrize("place", [-1.5, 1.7])
def test_nothing_is_read_beyond_an_image(place):
    """Whatever the padding holds: a token there is made of the embeddings of the levels alone."""
    model = imfa("imfa_dn_detr")
    features = small.features(model, SIZES)
    read = []
    for tokens in (features.tokens, 100 * torch.ones_like(features.tokens)):
        memory = features.with_tokens(tokens.masked_fill(features.padding_mask[..., None], 0.0))
        boxes = torch.tensor([place, place, 0.0, 0.0]).expand(len(SIZES), 1, 4)
        read.append(
            model.decoder.sampler(torch.ones(len(SIZES), 1, small.EMBED_DIM), boxes, memory)
        )
    for once, again in zip(*read, strict=True):
        assert torch.equal(once, again)


@torch.no_grad()
def test_the_padding_is_as_nothing():
    model = imfa("imfa_detr")
    features = small.features(model, SIZES)
    other = features.tokens.masked_fill(features.padding_mask[..., None], 1e3)
    found = [model.detect_features(each) for each in (features, features.with_tokens(other))]
    for one, two in zip(*(each.decoder for each in found), strict=True):
        assert torch.equal(one.boxes, two.boxes) and torch.equal(one.logits, two.logits)


@torch.no_grad()
def test_noised_objects_point_out_nothing():
    """Otherwise the tokens around them would tell the matching queries where objects are."""
    model = imfa("imfa_dn_detr").train()
    features = small.features(model, SIZES)
    alone = model.decoder(*_queries(model, features), model.heads).predictions
    output = model.detect_features(features, small.targets((4, 3, 2)))
    assert output.denoising is not None
    for noised, plain in zip(output.decoder, alone, strict=True):
        torch.testing.assert_close(noised.boxes, plain.boxes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(noised.logits, plain.logits, atol=1e-5, rtol=1e-5)


def _queries(model, features):
    """As the detector has them, with nothing noised before them."""
    queries, _ = model.query_initializer(features, model.heads)
    return queries, features


@torch.no_grad()
def test_fillers_point_out_nothing():
    model = imfa("imfa_detr")
    features = small.features(model, SIZES)
    queries, _ = model.query_initializer(features, model.heads)
    few = REGIONS - 1
    content = torch.randn_like(queries.content)
    valid = torch.arange(queries.content.shape[1]).expand(len(SIZES), -1) < few
    filled = model.decoder(
        replace(queries, content=content, valid=valid), features, model.heads
    ).predictions
    cut = Queries(*(x[:, :few] for x in (content, queries.reference, queries.pos)))
    for one, other in zip(
        filled, model.decoder(cut, features, model.heads).predictions, strict=True
    ):
        torch.testing.assert_close(one.boxes[:, :few], other.boxes, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_of_equal_scores_the_first_query_counts():
    model = imfa("imfa_dn_detr")
    for head in model.heads.decoder_heads:
        head.class_embed.weight.zero_()
    x = torch.randn(2, 200, small.EMBED_DIM)
    reference = torch.rand(2, 200, 4)
    chosen, boxes, valid = model.decoder._regions(
        1, x, reference, Queries(x, reference, None), model.heads
    )
    assert torch.equal(chosen, x[:, :REGIONS]) and torch.equal(boxes, reference[:, :REGIONS])
    assert valid is None


# --- what it tells


@torch.no_grad()
def test_the_layers_of_the_decoder_count_as_those_that_update_tokens():
    model = imfa("imfa_detr")
    features = small.features(model, SIZES)
    output = model.detect_features(features)
    assert output.memory.tokens is features.tokens
    assert len(output.selections) == 4
    own = [rows * columns for *_, (rows, columns) in features.level_sizes]
    shares = [count / total for count, total in zip(own, features.num_valid, strict=True)]
    assert output.keep_ratios == pytest.approx(shares)
    *finer, coarsest = features.split_levels(output.selections[0].mask(features.num_tokens))
    assert not any(level.any() for level in finer)
    assert torch.equal(coarsest, ~features.split_levels(features.padding_mask)[-1])
    sparse = replace(small.NAMED["global_sparse"], decoder="InterleavedDecoder")
    output = small.detector(sparse).eval().detect_features(features)
    selected = small.detector(small.NAMED["global_sparse"]).eval().detect_features(features)
    counts = [[each.counts for each in found.selections] for found in (output, selected)]
    assert counts[0] == counts[1]


@torch.no_grad()
def test_the_mass_is_that_of_the_coarsest_level():
    heads, model = small.ARGUMENTS["num_heads"], imfa("imfa_detr", num_layers=1)
    features = small.features(model, SIZES)
    mass = model.detect_features(features, record={"token_mass"}).token_mass
    queries = small.ARGUMENTS["num_queries"]
    torch.testing.assert_close(mass.sum(1), torch.full((len(SIZES),), float(heads * queries)))
    model = imfa("imfa_detr", num_layers=3)
    deep = model.detect_features(features, record={"token_mass"}).token_mass
    for found in (mass, deep):
        *finer, coarsest = features.split_levels(found)
        assert not any(level.any() for level in finer)
        assert not coarsest[features.split_levels(features.padding_mask)[-1]].any()
    assert (deep.sum(1) < 3 * heads * queries).all() and (deep.sum(1) > heads * queries).all()


@torch.no_grad()
def test_no_encoder_layer_leaves_the_map_as_it_is():
    encoder = GlobalEncoder(small.EMBED_DIM, 4, num_layers=0, scale_pos=True)
    features = small.features(small.detector(small.PLAIN), SIZES)
    assert encoder(features, ()).memory.tokens is features.tokens
    assert not list(encoder.parameters())


def decoder(**changes) -> InterleavedDecoder:
    return small.build(InterleavedDecoder, **changes)


def arguments(**changes) -> dict:
    return {**small.parts(IMFA["imfa_detr"]), **changes}


BAD = {
    "regions": (
        lambda: decoder(num_regions=0),
        r"InterleavedDecoder\.num_regions must be .*got 0.*model\.decoder\.num_reg",
    ),
    "points": (lambda: decoder(num_points=0), r"num_points must be .*got 0"),
    "encoder layers": (
        lambda: GlobalEncoder(32, 4, num_layers=-1),
        r"GlobalEncoder\.num_layers must be an integer of at least 0, got -1",
    ),
    "levels": (
        lambda: TokenSparseDetector(**arguments(decoder=decoder(num_levels=3))),
        r"decoder: num_levels must be 4.*got 3.*model\.decoder\.num_levels",
    ),
    "temperature": (
        lambda: TokenSparseDetector(
            **arguments(position_embedding=SinePositionEmbedding(32, temperature=20.0))
        ),
        r"position_embedding\.temperature must be 10000\.0, got 20\.0.*model\.decoder\.temperature",
    ),
    "offset": (
        lambda: TokenSparseDetector(
            **arguments(position_embedding=SinePositionEmbedding(32, offset=0.0))
        ),
        r"embedding\.offset must be -0\.5, got 0\.0\. Set model\.position_embedding\.offset",
    ),
    "positions": (
        lambda: TokenSparseDetector(**arguments(query_initializer=AnchorQueries(32, 5))),
        r"must make positions for AnchorQueries",
    ),
    "tokens of no layer": (
        lambda: TokenSparseDetector(
            **{**small.parts(small.NAMED["global_sparse"]), "selector": TopKSelector(0.4),
               "encoder": GlobalEncoder(32, 4, num_layers=0)}
        ),
        r"GlobalEncoder\.num_layers must be positive if TopKSelector chooses .*got 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_refused(case):
    construct, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        construct()
