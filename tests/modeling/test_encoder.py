"""What the layers of the encoder read and write."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsedet.modeling import (
    DeformableEncoder,
    DualAttentionEncoder,
    ForegroundScorer,
    MultiCategoryScorer,
)
from sparsedet.modeling.encoder import best_rows
from sparsedet.modeling.stages import TokenScores, TokenSelection, filler_mask
from sparsedet.registry import QUERY_INITIALIZERS
from tests.modeling import small

SIZES = ((64, 96), (128, 70))


def encode(value_source: str, selections):
    """Features, memory, and the (query, value) that every layer was given."""
    model = small.detector(small.Combination(value_source=value_source)).eval()
    features, given = small.features(model, SIZES), []
    for layer in model.encoder.layers:
        layer.attention.register_forward_pre_hook(  # the map is written to between the layers
            lambda _, args: given.append((args[0].clone(), args[2].clone()))
        )
    with torch.no_grad():
        memory = model.encoder(features, selections, None, model.heads).memory.tokens
    return features, memory, given


def kept(features, counts: tuple[int, ...]) -> TokenSelection:
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(features.padding_mask.shape, generator=generator)
    indices = order.masked_fill(features.padding_mask, -1).topk(max(counts), dim=1).indices
    return TokenSelection(counts, indices, filler_mask(counts, max(counts), indices.device))


@pytest.fixture
def selection():
    return kept(small.features(small.detector(small.PLAIN), SIZES), (40, 25))


def test_layers_read_the_map_as_the_previous_one_left_it(selection):
    features, memory, given = encode("updated", (selection, selection))
    assert torch.equal(given[0][1], features.tokens)
    mask = selection.mask(features.num_tokens)
    second = given[1][1]
    assert torch.equal(second[~mask], features.tokens[~mask])
    assert (second[mask] != features.tokens[mask]).any(-1).all()
    rows = selection.gather(second)[selection.valid]
    pos = selection.gather(features.pos)[selection.valid]
    torch.testing.assert_close(given[1][0][selection.valid], rows + pos)
    assert (memory[mask] != second[mask]).any(-1).all()


def test_layers_read_the_input_where_released_code_does(selection):
    features, memory, given = encode("input", (selection, selection))
    for _, value in given:
        assert torch.equal(value, features.tokens)
    mask = selection.mask(features.num_tokens)
    assert torch.equal(memory[~mask], features.tokens[~mask])
    other = encode("updated", (selection, selection))[1]
    assert not torch.allclose(memory[mask], other[mask])


def test_other_tokens_in_each_layer(selection):
    """Selections need not be nested: a token that comes in later starts from the map."""
    features = small.features(small.detector(small.PLAIN), SIZES)
    rest = (~selection.mask(features.num_tokens) & ~features.padding_mask).float()
    other = TokenSelection((30, 30), rest.topk(30, dim=1).indices)
    features, memory, given = encode("updated", (selection, other))
    torch.testing.assert_close(
        given[1][0], other.gather(features.tokens) + other.gather(features.pos)
    )
    touched = selection.mask(features.num_tokens) | other.mask(features.num_tokens)
    assert torch.equal((memory != features.tokens).any(-1), touched)


def test_weights_multiply_tokens_where_they_are_gathered(selection):
    """Once: a layer that goes on with the rows of the previous one does not multiply again."""
    weight = torch.rand(selection.indices.shape)
    weighted = replace(selection, weight=weight)
    features, _, given = encode("updated", (weighted, weighted))
    shown = selection.valid
    rows = weight[..., None] * selection.gather(features.tokens)
    pos = selection.gather(features.pos)
    torch.testing.assert_close(given[0][0][shown], (rows + pos)[shown])
    assert torch.equal(given[0][1], features.tokens), "the map itself has no weights"
    second = selection.gather(given[1][1])
    torch.testing.assert_close(given[1][0][shown], (second + pos)[shown])

    again = replace(weighted)  # another object: gathered anew
    _, _, given = encode("updated", (weighted, again))
    second = weight[..., None] * selection.gather(given[1][1])
    torch.testing.assert_close(given[1][0][shown], (second + pos)[shown])


def test_auxiliary_predictions_know_fillers(selection):
    """The image with fewer kept tokens has fillers, which are to be left out of the losses."""
    model = small.detector(small.NAMED["sparse"]).eval()
    features = small.features(model, SIZES)
    output = model.encoder(features, (selection, selection), None, model.heads, aux=True)
    inside = selection.gather(model.heads.proposals(features)[1])
    assert (inside & ~selection.valid).any() and output.aux
    for prediction in output.aux:
        assert torch.equal(prediction.valid, inside & selection.valid)


@pytest.mark.parametrize("name", ["DeformableEncoder", "DualAttentionEncoder"])
def test_weights_train_a_scorer_without_supervision(name):
    model = small.detector(small.Combination(encoder=name))
    features = small.features(model, SIZES)
    scorer = small.randomize(ForegroundScorer(small.EMBED_DIM, 4, supervised=False))
    scores = scorer(features, model.heads)
    kept_tokens = kept(features, (40, 25))
    weighted = replace(kept_tokens, weight=kept_tokens.gather(scores.logits).sigmoid())
    memory = model.encoder(features, (weighted, weighted), scores, model.heads).memory
    memory.tokens[~features.padding_mask].square().sum().backward()
    for parameter_name, parameter in scorer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name


def dual_model(num_objects: int, **arguments):
    combination = small.Combination(encoder="DualAttentionEncoder")
    return small.detector(combination, num_objects=num_objects, **arguments).eval()


def attended_by_hand(layer, tokens: torch.Tensor, pos: torch.Tensor, num_heads: int):
    """Self-attention of ``tokens[n C]``, head by head, and the norm."""
    weights = layer.attention.in_proj_weight.chunk(3)
    biases = layer.attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias)
        for x, weight, bias in zip(
            (tokens + pos, tokens + pos, tokens), weights, biases, strict=True
        )
    )
    size = tokens.shape[-1] // num_heads
    heads = []
    for start in range(0, tokens.shape[-1], size):
        part = slice(start, start + size)
        share = (q[:, part] @ k[:, part].T / size**0.5).softmax(-1)
        heads.append(share @ v[:, part])
    return layer.norm(tokens + layer.attention.out_proj(torch.cat(heads, dim=-1)))


def dual_encode_by_hand(model, features, selections, scores, num_objects: int):
    """Memory, and what every deformable layer is asked and reads: algorithm 1 image by image."""
    encoder, given = model.encoder, []
    memory = features.tokens.clone()
    points = features.to_levels(features.reference_points)
    for index, selection in enumerate(selections):
        value = memory if encoder.value_source == "updated" else features.tokens
        after = memory.clone()
        asked, objects = [], []
        for image, count in enumerate(selection.counts):
            own = (~features.padding_mask[image]).nonzero()[:, 0]
            if selection.indices is not None:
                own = selection.indices[image]
                own = own if selection.valid is None else own[selection.valid[image]]
            tokens, pos = memory[image, own], features.pos[image, own]
            assert len(tokens) == count
            rating = model.heads.decoder(-1).class_embed(tokens).sigmoid().amax(-1)
            if scores is not None:
                rating = rating * scores.logits[image, own].sigmoid()
            best = rating.sort(descending=True).indices[:num_objects]
            objects.append(own[best].tolist())
            tokens[best] = attended_by_hand(
                encoder.object_layers[index], tokens[best], pos[best], small.ARGUMENTS["num_heads"]
            )
            asked.append(tokens + pos)
            after[image, own] = encoder.layers[index](
                tokens[None],
                pos[None],
                points[image, own][None],
                value[image : image + 1],
                features.spatial_shapes,
                features.padding_mask[image : image + 1],
            )[0]
        given.append((asked, value, objects))
        memory = after
    return memory, given


SELECTIONS = {
    "carried": lambda features: (kept(features, (40, 5)),) * 2,
    "cascade": lambda features: (kept(features, (40, 12)), kept(features, (20, 6))),
    "fillers in between": lambda features: (scattered_fillers(features),) * 2,
    "dense": lambda features: (TokenSelection(features.num_valid),) * 2,
}


def scattered_fillers(features) -> TokenSelection:
    full = kept(features, (30, 30))
    valid = torch.arange(30) % 3 != torch.tensor([[0], [1]])
    return TokenSelection(tuple(valid.sum(1).tolist()), full.indices, valid)


@pytest.mark.parametrize("scored", [True, False], ids=["", "no scores"])
@pytest.mark.parametrize("num_objects", [8, 1000])
@pytest.mark.parametrize("value_source", ["updated", "input"])
@pytest.mark.parametrize("case", SELECTIONS)
@torch.no_grad()
def test_dual_attention_follows_the_algorithm(case, value_source, num_objects, scored):
    """With images that keep fewer tokens than ``num_objects``, and with fillers among them."""
    model = dual_model(num_objects, value_source=value_source)
    features = small.features(model, SIZES)
    scores = TokenScores(torch.randn(features.padding_mask.shape)) if scored else None
    selections = SELECTIONS[case](features)
    expected, by_hand = dual_encode_by_hand(model, features, selections, scores, num_objects)
    given = []
    for layer in model.encoder.layers:
        layer.attention.register_forward_pre_hook(  # the map is written to between the layers
            lambda _, args: given.append((args[0].clone(), args[2].clone()))
        )
    encoded = model.encoder(features, selections, scores, model.heads)
    memory, shown = encoded.memory.tokens, ~features.padding_mask
    layers = zip(given, by_hand, selections, encoded.objects, strict=True)
    for (query, value), (asked, read, best), selection, objects in layers:
        close(value[shown], read[shown])
        found = objects.selection
        assert found.counts == tuple(map(len, best))
        valid = torch.ones_like(found.indices) if found.valid is None else found.valid
        for indices, real, wanted in zip(found.indices, valid.bool(), best, strict=True):
            assert indices[real].tolist() == wanted, "recorded: best first, among all tokens"
        rows = shown if selection.indices is None else selection.valid
        for image, wanted in enumerate(asked):
            close(query[image, rows[image]], wanted)
    close(memory[shown], expected[shown])


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


class First(nn.Module):
    """An object scorer that keeps what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.given = []

    def forward(self, tokens, logits, category):
        self.given.append((tokens, logits, category))
        return tokens[..., 0]


@pytest.mark.parametrize("category_head", ["decoder", "proposal"])
def test_any_object_scorer_is_handed_kept_tokens_their_scores_and_the_class_head(
    selection, category_head
):
    model = dual_model(8, object_scorer=First(), category_head=category_head)
    features = small.features(model, SIZES)
    scores = TokenScores(torch.randn(features.padding_mask.shape))
    model.encoder(features, (selection, selection), scores, model.heads)
    given = model.encoder.object_scorer.given
    tokens, logits, category = given[0]
    assert torch.equal(tokens, selection.gather(features.tokens))
    assert torch.equal(logits, selection.gather(scores.logits))
    heads = dict(decoder=model.heads.decoder(-1), proposal=model.heads.proposal)
    assert category is heads[category_head]
    assert len(given) == 2
    by_default = dual_model(8).encoder
    assert isinstance(by_default.object_scorer, MultiCategoryScorer)
    assert by_default.category_head == "decoder"


HOSTS = [
    pytest.param(name, head, id=f"{name}-{head}")
    for name, queries in sorted(QUERY_INITIALIZERS)
    for head in ("decoder", "proposal")
    if head == "decoder" or (queries.needs_proposals and name != "TwoStageQueries")
]


@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize(("queries", "category_head"), HOSTS)
def test_every_class_of_the_head_that_rates_objects_learns_from_its_objects(
    queries, category_head, shared
):
    """On every host. In a first stage without classes, rows learn nothing from their objects."""
    combination = small.Combination(queries=queries, **small.DUAL, shared=shared)
    model = small.detector(combination, category_head=category_head, object_scorer=First())

    def gradients(label: int) -> torch.Tensor:
        """Of the bias of every class, all objects being of one class."""
        batch = small.samples(SIZES, (6, 5))
        for sample in batch:
            sample["instances"].gt_classes.fill_(label)
        model.zero_grad(set_to_none=True)
        sum(model.train()(batch).values()).backward()
        (head,) = {category for _, _, category in model.encoder.object_scorer.given}
        assert head.class_embed.weight.grad.any(1).all()
        return head.class_embed.bias.grad

    found = torch.stack([gradients(label) for label in range(small.NUM_CLASSES)])
    for own in range(small.NUM_CLASSES):
        others = torch.arange(small.NUM_CLASSES) != own
        # objects of the class raise its logits, those of others do not
        assert (found[own, own] < found[others, own] - 0.01).all(), own


def test_fillers_and_padding_are_never_objects(selection):
    features = small.features(small.detector(small.PLAIN), SIZES)
    high = torch.where(selection.valid, -1.0, 5.0) - torch.rand(selection.valid.shape)
    objects = best_rows(high, selection, features, 30)
    assert objects.counts == (30, 25)
    assert objects.indices.shape == (2, 30)
    assert selection.valid[1, objects.indices[1, :25]].all()
    assert objects.valid[1].tolist() == [True] * 25 + [False] * 5
    dense = TokenSelection(features.num_valid)
    high = features.padding_mask.float() + torch.rand(features.padding_mask.shape)
    objects = best_rows(high, dense, features, 10)
    assert objects.valid is None, "no image has fewer tokens"
    assert not features.padding_mask.gather(1, objects.indices).any()


def test_both_encoders_are_one_where_objects_do_not_attend(selection):
    """The norm after the attention set aside, only the order of rows could tell them apart."""
    dual = dual_model(8)
    for layer in dual.encoder.object_layers:
        layer.forward = lambda tokens, pos, valid: tokens
    plain = small.build(DeformableEncoder)
    state = {k: v for k, v in dual.encoder.state_dict().items() if k.startswith("layers.")}
    plain.load_state_dict(state)
    features = small.features(dual, SIZES)
    memories = [
        each(features, (selection, selection), None, dual.heads).memory.tokens
        for each in (plain, dual.encoder)
    ]
    assert torch.equal(*memories)
    assert plain(features, (selection, selection), None, dual.heads).objects == ()


def test_bad_arguments_of_the_dual_attention_encoder():
    with pytest.raises(ValueError, match=r"num_objects must be an integer of at least 1, got 0"):
        small.build(DualAttentionEncoder, num_objects=0)
    with pytest.raises(ValueError, match=r"DualAttentionEncoder\.value_source must be 'updated'"):
        small.build(DualAttentionEncoder, value_source="other")
    with pytest.raises(ValueError, match=r"DualAttentionEncoder\.num_layers must be an integer"):
        small.build(DualAttentionEncoder, num_layers=0)


@pytest.mark.parametrize("value_source", ["updated", "input"])
@pytest.mark.parametrize("ratios", [(1.0, 0.5), (0.5, 1.0), (0.5, 0.51), (0.5, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("name", ["sparse", "focus"])
def test_carrying_rows_on_is_gathering_them(name, ratios, value_source):
    """And inference, which writes in place, gives what a pass with gradients gives."""
    combination = replace(small.NAMED[name], layer_ratios=ratios, value_source=value_source)
    model = small.detector(combination).eval()
    features = small.features(model, SIZES)
    features = replace(features, tokens=features.tokens.detach(), pos=features.pos.detach())
    given = features.tokens.clone()
    with torch.no_grad():
        scores = model.scorer(features, model.heads)
        chosen = model.selector(scores, features, 2)
        strangers = [replace(each, ranking=None) for each in chosen]
        memories = [
            model.encoder(features, each, scores, model.heads).memory.tokens
            for each in (chosen, strangers)
        ]
    assert chosen[1].begins(chosen[0]) == (ratios[1] <= ratios[0])
    memories.append(model.encoder(features, chosen, scores, model.heads).memory.tokens)
    assert torch.equal(features.tokens, given), "the caller's map was written to"
    shown = ~features.padding_mask
    torch.testing.assert_close(memories[1][shown], memories[0][shown], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(memories[2][shown], memories[0][shown], atol=1e-5, rtol=1e-5)


def test_the_residual_stays_fp32_under_autocast():
    """Tokens come in fp32 from the norm of the neck; each norm is given their sum unrounded."""
    model = small.detector(small.NAMED["sparse"]).eval()
    layer, seen = model.encoder.layers[0], []
    for norm in (layer.attention_norm, layer.feedforward_norm):
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    features = small.features(model, SIZES)
    assert features.tokens.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = model.scorer(features, model.heads)
        chosen = model.selector(scores, features, 2)
        model.encoder(features, chosen, scores, model.heads)
    assert seen == [torch.float32] * 2
