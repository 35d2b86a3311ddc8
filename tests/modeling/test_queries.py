"""Where the decoder starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsedet.layers.positional import sine_embedding
from sparsedet.modeling import AnchorQueries
from tests.modeling import small

SIZES = ((64, 96), (128, 70))


def start(queries: str):
    model = small.detector(small.Combination(queries=queries)).eval()
    features = small.features(model, SIZES)
    memory = features.with_tokens(features.tokens.detach().requires_grad_())
    found, proposals = model.query_initializer(memory, model.heads)
    return model, memory, found, proposals


def best(scores: torch.Tensor, proposals) -> torch.Tensor:
    order = scores.masked_fill(~proposals.valid, -1e9).argsort(dim=1, descending=True)
    return order[:, : small.ARGUMENTS["num_queries"]]


def rows(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return torch.stack([image[tokens] for image, tokens in zip(x, indices, strict=True)])


def test_learned_queries_are_the_same_for_every_image():
    model, _, found, proposals = start("LearnedQueries")
    pos, content = model.query_initializer.embedding.weight.split(small.EMBED_DIM, dim=1)
    assert proposals is None
    for image in range(len(SIZES)):
        assert torch.equal(found.pos[image], pos)
        assert torch.equal(found.content[image], content)
    expected = model.query_initializer.reference_points(pos).sigmoid()
    torch.testing.assert_close(found.reference[0], expected)


def test_efficient_queries_are_tokens_with_their_gradient():
    model, memory, found, proposals = start("EfficientQueries")
    chosen = best(proposals.logits.amax(-1), proposals)
    assert torch.equal(found.content, rows(memory.tokens, chosen))
    assert torch.equal(found.reference, rows(proposals.boxes, chosen))
    part = model.query_initializer
    waves = sine_embedding(found.reference, small.EMBED_DIM // 2)
    torch.testing.assert_close(found.pos, part.pos_norm(part.pos_linear(waves)))
    assert not found.reference.requires_grad
    assert not proposals.class_agnostic
    (gradient,) = torch.autograd.grad(found.content.sum(), memory.tokens)
    expected = torch.zeros_like(memory.padding_mask).scatter(1, chosen, True)
    assert torch.equal(gradient.any(-1), expected)


def test_two_stage_queries_are_made_from_the_boxes():
    model, _, found, proposals = start("TwoStageQueries")
    chosen = best(proposals.logits[..., 0], proposals)
    assert torch.equal(found.reference, rows(proposals.boxes, chosen))
    part = model.query_initializer
    waves = sine_embedding(found.reference, small.EMBED_DIM // 2)
    both = part.pos_norm(part.pos_linear(waves))
    torch.testing.assert_close(found.pos, both[..., : small.EMBED_DIM])
    torch.testing.assert_close(found.content, both[..., small.EMBED_DIM :])
    assert not found.reference.requires_grad
    assert proposals.class_agnostic


def test_mixed_queries_bind_content_to_the_rank():
    """Learned content for every rank, whatever the image shows; boxes of the best proposals."""
    model, memory, found, proposals = start("MixedQueries")
    part, head = model.query_initializer, model.heads.proposal
    logits, valid = memory.proposals()
    tokens = model.heads.token_embedding(memory, with_pos=False)
    scores = head.class_embed(tokens).amax(-1).masked_fill(~valid, -1e9)
    chosen = scores.argsort(dim=1, descending=True)[:, : small.ARGUMENTS["num_queries"]]
    boxes = (head.box_embed(tokens) + logits).sigmoid()
    for image in range(len(SIZES)):
        assert torch.equal(found.content[image], part.embedding.weight)
    torch.testing.assert_close(found.reference, rows(boxes, chosen))
    assert found.pos is None and found.attn_mask is None and found.num_denoising == 0
    assert not found.reference.requires_grad and found.content.requires_grad
    assert not part.provides_pos and part.reference_dim == 4

    assert proposals.boxes.shape[1] == small.ARGUMENTS["num_queries"]
    torch.testing.assert_close(proposals.boxes, rows(boxes, chosen))
    torch.testing.assert_close(proposals.logits, rows(head.class_embed(tokens), chosen))
    assert not proposals.class_agnostic
    assert (proposals.logits.amax(-1).diff(dim=1) <= 0).all(), "not best first"


def test_only_the_selected_tokens_are_supervised():
    model, memory, _, proposals = start("MixedQueries")
    loss = proposals.logits.sum() + proposals.boxes.sum()
    (gradient,) = torch.autograd.grad(loss, memory.tokens)
    tokens = model.heads.token_embedding(memory, with_pos=False)
    scores = model.heads.proposal.class_embed(tokens).amax(-1)
    scores = scores.masked_fill(~memory.proposals()[1], -1e9)
    chosen = scores.argsort(dim=1, descending=True)[:, : small.ARGUMENTS["num_queries"]]
    expected = torch.zeros_like(memory.padding_mask).scatter(1, chosen, True)
    assert torch.equal(gradient.any(-1), expected)


def test_anchor_queries_are_learned_boxes():
    model, _, found, proposals = start("AnchorQueries")
    part = model.query_initializer
    assert proposals is None and found.pos is None and found.valid is None
    assert not part.needs_proposals and not part.provides_pos and part.reference_dim == 4
    for image in range(len(SIZES)):
        assert torch.equal(found.content[image, :, :-1], part.embedding.weight)
        torch.testing.assert_close(found.reference[image].logit(), part.anchors.weight)
    assert not found.content[..., -1].any()
    (gradient,) = torch.autograd.grad(found.reference.sum(), part.anchors.weight)
    assert gradient.all(), "anchors are not learned"


def test_anchors_start_as_normal_logits():
    """As in the released code of DAB-DETR; content starts at zero."""
    part = AnchorQueries(small.EMBED_DIM, 4000)
    assert part.anchors.weight.shape == (4000, 4)
    assert part.embedding.weight.shape == (4000, small.EMBED_DIM - 1)
    assert not part.embedding.weight.any()
    logits = part.anchors.weight.detach()
    assert logits.mean().item() == pytest.approx(0, abs=0.03)
    assert logits.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("queries", ["EfficientQueries", "TwoStageQueries"])
def test_proposals_are_boxes_around_their_tokens(queries):
    model, memory, _, proposals = start(queries)
    logits, valid = memory.proposals()
    assert torch.equal(proposals.valid, valid)
    tokens = model.heads.token_embedding(memory, with_pos=False)
    delta = model.heads.proposal.box_embed(tokens)
    torch.testing.assert_close(proposals.boxes, (logits + delta).sigmoid())
    torch.testing.assert_close(proposals.logits, model.heads.proposal.class_embed(tokens))


def test_border_tokens_are_never_proposed_unless_released_weights_need_it():
    """A map of more than 50 cells has a border whose boxes would leave the image."""
    model = small.detector(small.Combination(), num_queries=400).eval()
    features = small.features(model, ((416, 96),))
    border = features.split_levels(features.proposals()[1])[0].view(52, 12)
    assert not border[[0, -1]].any()
    assert border[1:-1].all()
    memory = replace(features, tokens=features.tokens.clone())
    found, proposals = model.query_initializer(memory, model.heads)
    assert proposals.boxes.isfinite().all()
    used = proposals.boxes[0][proposals.valid[0]]
    assert found.valid is None or (found.valid.sum() <= features.proposals()[1].sum())
    for box in found.reference[0][slice(None) if found.valid is None else found.valid[0]][:50]:
        assert (used == box).all(-1).any()

    model.heads.unmasked_border = True
    _, released = model.query_initializer(memory, model.heads)
    assert torch.equal(released.valid, ~features.padding_mask)
    outside = ~features.proposals()[1]
    assert (released.boxes[outside] == 1).all()
    assert (released.logits[outside] == released.logits[outside][0]).all()


@pytest.mark.parametrize("queries", ["EfficientQueries", "TwoStageQueries", "MixedQueries"])
def test_fewer_tokens_than_queries(queries):
    model = small.detector(small.Combination(queries=queries)).eval()
    alone = small.features(model, ((8, 8),))
    found, _ = model.query_initializer(alone, model.heads)
    assert found.content.shape[1] == 4
    both = small.features(model, ((8, 8), (64, 64)))
    found, _ = model.query_initializer(both, model.heads)
    assert found.valid.sum(1).tolist() == [4, 20]
    assert found.valid[0, :4].all(), "fillers come last"


@pytest.mark.parametrize("queries", ["EfficientQueries", "TwoStageQueries"])
def test_inference_makes_boxes_of_the_chosen_tokens_alone(queries):
    model, memory, found, proposals = start(queries)
    with torch.no_grad():
        again, chosen = model.query_initializer(memory, model.heads)
    for field in ("content", "reference", "pos", "valid"):
        torch.testing.assert_close(getattr(again, field), getattr(found, field))
    scores = proposals.logits[..., 0] if proposals.class_agnostic else proposals.logits.amax(-1)
    indices = best(scores, proposals)
    torch.testing.assert_close(chosen.logits, rows(proposals.logits, indices))
    torch.testing.assert_close(chosen.boxes, rows(proposals.boxes, indices))
    assert torch.equal(chosen.valid, rows(proposals.valid, indices))
    assert chosen.class_agnostic == proposals.class_agnostic
    with torch.no_grad():
        _, every = model.query_initializer.train()(memory, model.heads)
    torch.testing.assert_close(every.boxes, proposals.boxes)
