"""Heads decode boxes; blocks compute what their papers say."""

from __future__ import annotations

import pytest
import torch

from sparsedet.layers.mlp import MLP, FeedForward
from sparsedet.modeling.heads import Head
from sparsedet.modeling.stages import Prediction, class_logits
from tests.modeling import small


def test_boxes_relative_to_a_box_and_to_a_point():
    head, x = small.randomize(Head(8, 3)), torch.randn(2, 5, 8)
    delta = head.box_embed(x)
    box, point = torch.rand(2, 5, 4).logit(), torch.rand(2, 5, 2).logit()
    torch.testing.assert_close(head(x, box).boxes.logit(), delta + box, atol=1e-4, rtol=1e-4)
    around = head(x, point).boxes.logit()
    torch.testing.assert_close(around[..., :2], delta[..., :2] + point, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(around[..., 2:], delta[..., 2:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(head(x, box).logits, head.class_embed(x))


def test_feed_forward_is_two_linear_layers_with_relu_between():
    block, x = small.randomize(FeedForward(4, 6)), torch.randn(3, 4)
    hidden = (x @ block.linear1.weight.T + block.linear1.bias).clamp(min=0)
    torch.testing.assert_close(block(x), hidden @ block.linear2.weight.T + block.linear2.bias)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_mlp_has_no_relu_at_its_end(num_layers):
    mlp, x = small.randomize(MLP(4, 2, hidden_dim=6, num_layers=num_layers)), torch.randn(50, 4)
    assert len(mlp.layers) == num_layers
    expected = x
    for layer in list(mlp.layers)[:-1]:
        expected = layer(expected).clamp(min=0)
    torch.testing.assert_close(mlp(x), mlp.layers[-1](expected))
    assert (mlp(x) < 0).any()


@pytest.mark.parametrize("softmax", [False, True])
def test_boxes_start_at_their_reference_or_anywhere(softmax):
    """Where a box is relative to nothing, as in DETR, its head starts at random."""
    last = Head(8, 3, softmax=softmax).box_embed.layers[-1]
    assert bool(last.weight.any()) == bool(last.bias.any()) == softmax


def test_a_head_by_softmax_has_a_last_logit_of_no_object():
    head, x = small.randomize(Head(8, 3, softmax=True)), torch.randn(2, 5, 8)
    logits = torch.cat((head.class_embed(x), head.no_object(x)), dim=-1)
    prediction = head(x, torch.zeros(2, 5, 4))
    torch.testing.assert_close(prediction.logits, logits)
    shares = logits.exp() / logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(prediction.scores, shares[..., :3])
    assert Head(8, 3).no_object is None
    torch.testing.assert_close(
        Head(8, 3)(x, torch.zeros(2, 5, 4)).scores.mean(), torch.tensor(0.01), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("softmax", [True, False])
def test_class_logits_are_those_of_the_scores(softmax):
    logits = 3 * torch.randn(2, 5, 4)
    prediction = Prediction(logits, torch.rand(2, 5, 4), softmax=softmax)
    found = class_logits(logits, softmax=softmax)
    torch.testing.assert_close(found.sigmoid(), prediction.scores)
    sure = class_logits(torch.tensor([[30.0, 0.0, 0.0], [16.0, 0.0, 0.0]]), softmax=True)
    assert sure.isfinite().all() and sure[0, 0] >= sure[1, 0]


@pytest.mark.parametrize("shared", [True, False])
def test_the_last_head_of_the_decoder_is_that_of_its_last_layer(shared):
    heads = small.detector(small.Combination(shared=shared)).heads
    assert len(heads.decoder_heads) == (1 if shared else small.ARGUMENTS["num_layers"])
    assert heads.decoder(-1) is heads.decoder(small.ARGUMENTS["num_layers"] - 1)
    assert heads.decoder(-1) is heads.decoder_heads[-1]


def test_the_two_halves_of_a_head_make_the_whole():
    head, x, box = small.randomize(Head(8, 3)), torch.randn(2, 5, 8), torch.rand(2, 5, 4).logit()
    whole = head(x, box)
    assert torch.equal(head.logits(x), whole.logits)
    assert torch.equal(head.box_logits(x, box).sigmoid(), whole.boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head.logits(x), whole.logits), "class logits are not in fp32"
        assert head.box_logits(x, box).dtype == torch.float32
