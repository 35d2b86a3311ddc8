"""Keeping every token is the dense model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsedet.modeling.stages import DetectorOutput, Prediction
from tests.modeling import small

# Of one token on the coarsest level all queries read the same: which is surest would be rounding.
SIZES = ((64, 96), (128, 70), (8, 70))
DENSE = [each for each in small.pairwise_cover(dense=True) if not isinstance(each, small.Bare)]


def sparse_choices() -> list[dict]:
    """Every choice of tokens but the dense one, the same in all layers."""
    chosen = sorted(small.token_choices(), key=lambda each: str(tuple(each.values())))
    for each in chosen:
        each["layer_ratios"] = each["layer_ratios"] and (1.0, 1.0)
    return [each for each in chosen if each["selector"] != "DenseSelector"]


def twins() -> list[tuple[small.Combination, small.Combination]]:
    """Every dense combination with every scorer, and the selectors and layer ratios in turn."""
    pairs, by_scorer = [], {}
    for choice in sparse_choices():
        by_scorer.setdefault((choice["scorer"], choice["term"]), []).append(choice)
    for number, dense in enumerate(DENSE):
        for variants in by_scorer.values():
            sparse = replace(dense, **variants[number % len(variants)])
            if not small.weighs(sparse):
                pairs.append((dense, sparse))
    return pairs


@pytest.mark.parametrize(("combination", "sparse"), twins(), ids=str)
def test_keeping_every_token_is_the_dense_model(combination, sparse):
    """Object tokens are all tokens: which they are is a matter of the scores."""
    dense_model = small.detector(combination, num_objects=1000).train()
    sparse_model = small.detector(sparse, num_objects=1000, **small.KEEP_ALL).train()
    missing, extra = sparse_model.load_state_dict(dense_model.state_dict(), strict=False)
    assert not extra
    assert all(
        key.startswith(("scorer", "heads.scorer", "heads.embedding", "selector")) for key in missing
    )

    features, targets = small.features(dense_model, SIZES), small.targets((3, 2, 1))
    with torch.no_grad():
        dense, kept = (
            small.fix_noise(model).detect_features(features, targets)
            for model in (dense_model, sparse_model)
        )
    assert kept.keep_ratios == dense.keep_ratios == (1.0,) * 3
    shown = ~features.padding_mask
    close(kept.memory.tokens[shown], dense.memory.tokens[shown])
    for ours, theirs in zip(predictions(kept), predictions(dense), strict=True):
        rows = slice(None) if theirs.valid is None else theirs.valid
        close(ours.logits[rows], theirs.logits[rows])
        close(ours.boxes[rows], theirs.boxes[rows])
    mass = torch.ones_like(features.tokens[..., 0])
    losses = [
        sum(v for k, v in model.criterion(output, targets).items() if "scorer" not in k)
        for model, output in (
            (dense_model, dense),
            (sparse_model, replace(kept, token_mass=mass)),
        )
    ]
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=1e-5)


def predictions(output: DetectorOutput) -> list[Prediction]:
    denoised = [] if output.denoising is None else output.denoising.predictions
    return [*output.decoder, *denoised]


def test_every_choice_of_tokens_has_a_dense_twin():
    compared = {(sparse.scorer, sparse.selector) for _, sparse in twins()}
    choices = {(each["scorer"], each["selector"]) for each in sparse_choices()}
    # what polls weights its tokens at any ratio: tests/modeling/test_pooling.py has its twin
    assert compared == {each for each in choices if each[0] != "PollScorer"}


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


def test_falling_ratios_keep_fewer_tokens_in_later_layers():
    sparse = replace(small.NAMED["sparse"], layer_ratios=(1.0, 0.5))
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
