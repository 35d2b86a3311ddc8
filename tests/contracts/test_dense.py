"""Keeping every token is the dense model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.modeling import small

SIZES = ((64, 96), (128, 70), (8, 30))
SCORERS = sorted({each.scorer for each in small.combinations() if each.scorer})
DENSE = [each for each in small.combinations() if each.scorer is None]


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("schedule", [None, (1.0, 1.0)], ids=["flat", "schedule"])
@pytest.mark.parametrize("combination", DENSE, ids=str)
def test_keep_ratio_one_is_the_dense_model(combination, schedule, scorer):
    sparse = replace(combination, scorer=scorer, selector="TopKSelector", schedule=schedule)
    dense_model = small.detector(combination).train()
    sparse_model = small.detector(sparse, keep_ratio=1.0).train()
    missing, extra = sparse_model.load_state_dict(dense_model.state_dict(), strict=False)
    assert not extra
    assert all(key.startswith(("scorer", "heads.scorer", "heads.embedding")) for key in missing)

    features, targets = small.features(dense_model, SIZES), small.targets((3, 2, 1))
    with torch.no_grad():
        dense = dense_model.detect_features(features, targets)
        kept = sparse_model.detect_features(features, targets)
    assert kept.keep_ratios == dense.keep_ratios == (1.0,) * 3
    shown = ~features.padding_mask
    close(kept.memory.tokens[shown], dense.memory.tokens[shown])
    for ours, theirs in zip(kept.decoder, dense.decoder, strict=True):
        rows = slice(None) if theirs.valid is None else theirs.valid
        close(ours.logits[rows], theirs.logits[rows])
        close(ours.boxes[rows], theirs.boxes[rows])
    losses = [
        sum(v for k, v in model.criterion(output, targets).items() if "scorer" not in k)
        for model, output in (
            (dense_model, dense),
            (sparse_model, replace(kept, token_mass=torch.ones_like(features.tokens[..., 0]))),
        )
    ]
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=1e-5)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_unkept_tokens_stay_as_they_came():
    model = small.detector(small.NAMED["sparse"]).eval()
    features = small.features(model, SIZES)
    with torch.no_grad():
        output = model.detect_features(features)
    kept = output.selections[0].mask(features.num_tokens)
    assert torch.equal(output.memory.tokens[~kept], features.tokens[~kept])
    changed = (output.memory.tokens != features.tokens).any(-1)
    assert torch.equal(changed, kept)
    assert tuple(kept.sum(1).tolist()) == output.selections[0].counts
    for ratio, count, total in zip(
        output.keep_ratios, output.selections[0].counts, features.num_valid, strict=True
    ):
        assert count == int(0.4 * total) + 1
        assert ratio == pytest.approx(count / total)


def test_a_schedule_keeps_fewer_tokens_in_later_layers():
    sparse = replace(small.NAMED["sparse"], schedule=(1.0, 0.5))
    model = small.detector(sparse).eval()
    features = small.features(model, SIZES)
    with torch.no_grad():
        output = model.detect_features(features)
    first, second = output.selections
    assert second.counts == tuple(max(count // 2, 1) for count in first.counts)
    wide, narrow = (each.mask(features.num_tokens) for each in (first, second))
    assert (wide | ~narrow).all()
    for image in range(len(SIZES)):
        scores = output.scores.logits[image]
        assert scores[narrow[image]].min() > scores[wide[image] & ~narrow[image]].max()
        assert (
            scores[wide[image]].min() > scores[~wide[image] & ~features.padding_mask[image]].max()
        )
