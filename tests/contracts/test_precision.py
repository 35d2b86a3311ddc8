"""Scores, references and boxes stay in fp32 under autocast."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.modeling import small

SIZES = ((96, 128), (128, 70))
# Every scorer, and a loss that trains it where there is one.
TERMS = {each["scorer"]: each["term"] for each in small.token_choices() if each["scorer"]}


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("combination", small.pairwise_cover(), ids=str)
def test_predictions_are_fp32_and_finite(combination):
    model = small.detector(combination).train()
    prepared = model.preprocess(small.samples(SIZES, (4, 3)))
    with autocast():
        output = model.detect(
            prepared.images,
            prepared.image_sizes,
            prepared.targets,
            record=model.criterion.requires,
        )
    losses = model.criterion(output, prepared.targets)
    predictions = [*output.decoder, *output.encoder]
    predictions += [output.proposals] if output.proposals is not None else []
    predictions += output.denoising.predictions if output.denoising is not None else []
    tensors = [t for p in predictions for t in (p.logits, p.boxes)]
    tensors += [output.scores.logits] if output.scores is not None else []
    tensors += [output.token_mass] if output.token_mass is not None else []
    tensors += losses.values()
    for tensor in tensors:
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("scorer", sorted(TERMS))
def test_the_same_tokens_are_kept(scorer):
    """From the same features, autocast changes neither the scores nor the selection."""
    model = small.detector(small.Combination(scorer, TERMS[scorer], "TopKSelector"))
    features, targets = small.features(model, SIZES), small.targets((4, 3))
    with torch.no_grad():
        expected = model.detect_features(features, targets)
        with autocast():
            got = model.detect_features(features, targets)
    assert torch.equal(got.scores.logits, expected.scores.logits)
    for ours, theirs in zip(got.selections, expected.selections, strict=True):
        assert torch.equal(ours.indices, theirs.indices)


@pytest.mark.parametrize("name", small.NAMED)
def test_autocast_is_close_to_fp32(name):
    model = small.detector(small.NAMED[name]).eval()
    features = small.features(model, SIZES)
    with torch.no_grad():
        expected = model.detect_features(features)
        with autocast():
            got = model.detect_features(features)
    first, second = (output.decoder[-1].boxes for output in (expected, got))
    assert (first - second).abs().median() < 0.02


@pytest.mark.parametrize("name", small.NAMED)
@pytest.mark.parametrize("by", ["weights", "autocast"])
def test_bfloat16_inference_is_close_to_fp32(name, by):
    """From images to boxes. At the cut a rounding decides which token is kept, and updated."""
    model = small.detector(small.NAMED[name]).eval()
    samples = small.samples(SIZES, (4, 3))
    prepared = model.preprocess(samples)
    images, sizes = prepared.images, prepared.image_sizes
    with torch.no_grad():
        expected = model.detect(images, sizes)
        if by == "weights":
            short = copy.deepcopy(model).to(torch.bfloat16)
            got = short.detect(images, sizes)
            short(samples)
        else:
            with autocast():
                got = model.detect(images, sizes)
    first, second = (each.memory.tokens[~each.features.padding_mask] for each in (expected, got))
    assert second.dtype == torch.bfloat16
    assert ((first - second).norm(dim=-1) / first.norm(dim=-1)).median() < 0.02
    answer, shorter = expected.decoder[-1], got.decoder[-1]
    assert shorter.logits.dtype == shorter.boxes.dtype == torch.float32
    assert shorter.boxes.isfinite().all()
    scores, close_to_them = (x.scores.amax(-1).sort().values for x in (answer, shorter))
    assert (scores - close_to_them).abs().median() < 0.02
    if got.scores is not None:
        assert got.scores.logits.dtype == torch.float32
    for ours, theirs in zip(got.selections, expected.selections, strict=True):
        assert ours.counts == theirs.counts
        if theirs.indices is not None:
            masks = (each.mask(expected.features.num_tokens) for each in (ours, theirs))
            shared = next(masks) & next(masks)
            assert shared.sum() >= 0.95 * sum(theirs.counts)
