"""Polled and pooled tokens (PnP-DETR)."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from sparsedet import comm
from sparsedet.modeling import (
    DeformableDecoder,
    ElasticSelector,
    PollRegularizer,
    PollScorer,
    PoolSampler,
    SetCriterion,
    TokenSparseDetector,
    TopKSelector,
)
from sparsedet.modeling.stages import union
from tests.modeling import small

PNP = replace(small.NAMED["pnp_detr"], selector="TopKSelector")
SIZES = ((64, 96), (128, 70), (8, 30))


def output_of(model, sizes=SIZES, **arguments):
    features = small.features(model, sizes)
    with torch.no_grad():
        return features, model.detect_features(features, **arguments)


# --- every token kept


@pytest.mark.parametrize("training", [False, True])
def test_at_ratio_1_it_is_detr_on_the_normalized_map_times_the_scores(training):
    """No cell is left to pool, so no pooled token is read, and nothing is divided by nothing."""
    model = small.detector(PNP, **small.KEEP_ALL).train(training)
    dense = small.detector(small.DETR).train(training)
    missing, extra = dense.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(key.startswith(("scorer.", "encoder.pool.")) for key in extra)
    features, output = output_of(model)
    assert output.keep_ratios == (1.0,) * 3
    assert not output.memory.pooled.valid.any()
    assert output.memory.pooled.counts == (0,) * 3
    assert not output.memory.pooled.shares.any()
    score = model.scorer(features).logits.sigmoid()[..., None]
    tokens = F.layer_norm(features.tokens, features.tokens.shape[-1:]) * score
    with torch.no_grad():
        expected = dense.detect_features(features.with_tokens(tokens))
    shown = ~features.padding_mask
    close(output.memory.tokens[shown], expected.memory.tokens[shown])
    for ours, theirs in zip(output.decoder, expected.decoder, strict=True):
        close(ours.logits, theirs.logits)
        close(ours.boxes, theirs.boxes)


def test_gradients_are_finite_where_some_images_have_no_cell_left():
    model = small.detector(PNP, keep_ratio=0.8).train()
    losses = model(small.samples(((64, 96), (8, 8)), (3, 1)))
    _, output = output_of(model, ((64, 96), (8, 8)))
    assert output.memory.pooled.valid[0].all() and not output.memory.pooled.valid[1].any()
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.encoder.pool.value.weight.grad.any()


# --- what is pooled, and what is read


def test_pooled_tokens_are_means_of_the_cells_that_are_left():
    model = small.detector(PNP).eval()
    features, output = output_of(model)
    (kept, _), sampler = output.selections, model.encoder.pool
    x = features.with_tokens(F.layer_norm(features.tokens, features.tokens.shape[-1:]))
    with torch.no_grad():
        pooled = sampler(x, output.selections)
    left = ~features.padding_mask & ~kept.mask(features.num_tokens)
    for image, cells in enumerate(left):
        shares = sampler.share(x.tokens[image, cells]).softmax(0).T
        close(pooled.shares[image][:, cells], shares)
        close(pooled.tokens[image], shares @ sampler.value(x.tokens[image, cells]))
        close(pooled.pos[image], shares @ features.pos[image, cells])
        assert not pooled.shares[image][:, ~cells].any()


def test_the_decoder_reads_kept_and_pooled_tokens_alone():
    model = small.detector(PNP).eval()
    features, output = output_of(model)
    memory, kept = output.memory, output.selections[0]
    tokens, pos, seen = memory.readable()
    width, number = kept.indices.shape[1], small.ARGUMENTS["num_tokens"]
    assert tokens.shape[1] == pos.shape[1] == seen.shape[1] == width + number
    assert seen.sum(1).tolist() == [count + number for count in kept.counts]
    others = ~kept.mask(features.num_tokens)
    changed = memory.with_tokens(memory.tokens.masked_fill(others[..., None], 1e3))
    with torch.no_grad():
        queries, _ = model.query_initializer(changed, model.heads)
        again = model.decoder(queries, changed, model.heads)
        without = model.decoder(queries, replace(memory, pooled=None), model.heads)
    assert torch.equal(again.predictions[-1].logits, output.decoder[-1].logits)
    assert not torch.allclose(without.predictions[-1].logits, output.decoder[-1].logits, atol=1e-3)


def test_attention_to_pooled_tokens_belongs_to_their_cells():
    model = small.detector(PNP).eval()
    features, output = output_of(model, record={"token_mass"})
    queries, layers, heads = 20, 2, small.ARGUMENTS["num_heads"]
    assert not output.token_mass[features.padding_mask].any()
    close(output.token_mass.sum(1), torch.full((3,), float(queries * layers * heads)))
    memory = output.memory
    mass = torch.zeros(3, memory.readable()[0].shape[1])
    mass[:, -1] = 1.0
    close(memory.pooled.spread(mass, memory.num_tokens), memory.pooled.shares[:, -1])
    kept = output.selections[0]
    everything = memory.pooled.spread(torch.ones_like(mass), memory.num_tokens)
    number = small.ARGUMENTS["num_tokens"]
    close(everything.sum(1), torch.tensor([float(n + number) for n in kept.counts]))


@pytest.mark.parametrize("ratios", [(0.2, 0.6), (0.6, 0.2), (0.3, 0.3)])
def test_what_any_layer_keeps_is_not_pooled(ratios):
    model = small.detector(replace(PNP, layer_ratios=ratios), keep_ratio=None).eval()
    features, output = output_of(model)
    masks = [each.mask(features.num_tokens) for each in output.selections]
    expected = masks[0] | masks[1]
    kept = union(output.selections, features.num_valid, features.num_tokens)
    assert torch.equal(kept.mask(features.num_tokens), expected)
    assert kept.counts == tuple(expected.sum(1).tolist())
    assert torch.equal(output.memory.pooled.shares.sum(1) > 0, ~expected & ~features.padding_mask)


# --- how many are kept


@pytest.mark.parametrize("ratio", [1 / 3, 0.33, 0.29, 0.7, 0.58, 0.1, 0.999, 1.0])
def test_without_one_more_the_count_is_that_of_single_precision(ratio):
    selector = TopKSelector(ratio, one_more=False)
    numbers = torch.arange(1, 3000)
    expected = (numbers * ratio).int().clamp(min=1).tolist()  # torch computes this in float32
    features = mock.Mock(num_valid=tuple(numbers.tolist()))
    assert list(selector._counts(ratio, features)) == expected


def test_single_precision_differs():
    """The test above would not tell it from double precision otherwise."""
    numbers = torch.arange(1, 3000)
    double = (numbers.double() * 0.7).int()
    assert ((numbers * 0.7).int() != double).any()


def test_a_ratio_is_drawn_from_the_whole_range_once_for_all_processes():
    model = small.detector(PNP)
    features = small.features(model, SIZES[:2])
    scores = model.scorer(features)
    selector = ElasticSelector(0.3, train_ratios=(0.8, 1 / 3), continuous=True, one_more=False)
    drawn = []
    for seed in range(40):
        torch.manual_seed(seed)
        with mock.patch.object(comm, "of_first", side_effect=lambda x: drawn.append(x) or 0.5):
            counts = selector.train()(scores, features, 2)[0].counts
        assert counts == TopKSelector(0.5, one_more=False)(scores, features, 2)[0].counts
    assert 1 / 3 <= min(drawn) < 0.4 and 0.73 < max(drawn) <= 0.8
    assert len(set(drawn)) == len(drawn)
    torch.manual_seed(7)
    expected = TopKSelector(drawn[7], one_more=False)(scores, features, 2)[0].counts
    assert selector(scores, features, 2)[0].counts == expected, "a resumed run draws the same"
    assert selector.eval()(scores, features, 2)[0].counts == tuple(
        max(int(0.3 * n), 1) for n in features.num_valid
    )


# --- the regularizer


def regularized(model, sizes, **arguments):
    features = small.features(model, sizes)
    output = model.detect_features(features)
    return PollRegularizer(weight=1.0, **arguments)(output, None), output


def test_the_regularizer_is_the_mean_score_of_the_kept():
    model = small.detector(PNP).train()
    alone = [float(regularized(model, (size,))[0].detach()) for size in SIZES[:1]]
    value, output = regularized(model, SIZES[:2])
    kept, p = output.selections[0], output.scores.logits.sigmoid()
    means = [p[i, kept.indices[i, :count]].mean() for i, count in enumerate(kept.counts)]
    close(value, torch.stack(means).mean())
    assert float(means[0].detach()) == pytest.approx(alone[0], abs=1e-6)
    counted, _ = regularized(model, SIZES[:2], count_fillers=True)
    close(counted, p.gather(1, kept.indices).mean())
    assert abs(float(counted.detach()) - float(value.detach())) > 1e-4
    value.backward()
    assert all(each.grad.any() for each in model.scorer.parameters())


def test_the_regularizer_is_part_of_the_objective():
    parts = small.parts(PNP)
    given = parts["criterion"]
    term = PollRegularizer(weight=0.5)
    parts["criterion"] = SetCriterion(given.matcher, given.matched, unmatched=[term])
    losses = TokenSparseDetector(**parts).train()(small.samples(SIZES[:2], (2, 1)))
    assert 0 < float(losses["poll"].detach()) < 0.5


# --- parts that do not go together

MISFITS = {
    "decoder": (
        dict(decoder=small.build(DeformableDecoder)),
        r"decoder must read the tokens of PoolSampler, which have no cell, got DeformableDecoder\. "
        r"Set model\.decoder\._target_=GlobalDecoder or model\.encoder\.pool=null",
    ),
    "selector": (
        dict(selector=None, scorer=None),
        r"selector must leave tokens out by their scores for PoolSampler, got DenseSelector",
    ),
    "width": (dict(embed_dim=16), r"GlobalEncoder\.pool: embed_dim must be 32 .*got 16"),
    "scorer width": (
        dict(scorer=PollScorer(16)),
        r"scorer: embed_dim must be 32 .*got 16.*model\.scorer\.embed_dim",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_are_refused(case):
    changes, message = MISFITS[case]
    parts = small.parts(PNP)
    if case == "width":
        parts["encoder"].pool = PoolSampler(16)
        changes = {}
    with pytest.raises(ValueError, match=message):
        TokenSparseDetector(**{**parts, **changes})


def test_a_regularizer_without_a_scorer_is_refused():
    parts = small.parts(small.DETR)
    given = parts["criterion"]
    term = PollRegularizer(weight=1e-4)
    parts["criterion"] = SetCriterion(given.matcher, given.matched, unmatched=[term])
    with pytest.raises(ValueError, match=r"there is no scorer\. Remove it from model\.criterion"):
        TokenSparseDetector(**parts)


def test_no_pooled_tokens_is_no_number():
    with pytest.raises(ValueError, match=r"PoolSampler\.num_tokens .*model\.encoder\.pool"):
        PoolSampler(32, 0)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
