"""Our parts in a detector of another codebase, which has neither our heads nor our output.

The host here is what such detectors have in common: flattened tokens, a mask, class and box heads
and a decoder of its own, around our attention.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsedet import modeling
from sparsedet.layers import MultiScaleDeformableAttention
from sparsedet.modeling import (
    AnchorQueries,
    DAMPredictor,
    DecoderAttentionLoss,
    DeformableDecoder,
    DeformableEncoder,
    DualAttentionEncoder,
    EfficientQueries,
    ForegroundLoss,
    ForegroundScorer,
    MixedQueries,
    MultiScaleFeatures,
    ObjectnessScorer,
    RandomScorer,
    SalienceLoss,
    TokenEmbedding,
    TopKSelector,
    attention_mass,
)
from tests.modeling import small

SIZES = ((64, 96), (128, 70))
SCORERS = [DAMPredictor, ForegroundScorer]


@pytest.fixture(scope="module")
def features() -> MultiScaleFeatures:
    """What a host hands to its encoder, as our noun."""
    own = small.features(small.detector(small.PLAIN), SIZES)
    return MultiScaleFeatures.from_tokens(
        own.tokens.detach(),
        own.pos.detach(),
        torch.tensor(own.spatial_shapes),
        own.padding_mask,
        strides=small.STRIDES,
        image_sizes=SIZES,
    )


def classes(linear: nn.Linear):
    """A host's class head in the form in which the object scorer reads it; it registers nothing."""

    class Category:
        logits = staticmethod(linear.forward)

    class Heads:
        def decoder(self, layer):
            assert layer == -1
            return Category

    return Heads()


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_sparse_encoder_and_its_loss_without_our_detector(features, scorer):
    scorer = scorer(small.EMBED_DIM, own_embedding=True)
    selector, encoder = TopKSelector(0.4), small.build(DeformableEncoder)
    attention = MultiScaleDeformableAttention(small.EMBED_DIM, 4, len(small.STRIDES), 2)
    scores = scorer(features)
    selections = selector(scores, features, encoder.num_layers)
    memory = encoder(features, selections).memory
    queries, boxes = torch.randn(2, 9, small.EMBED_DIM), torch.rand(2, 9, 4)
    _, locations, weights = attention(
        queries,
        memory.to_levels(boxes),
        memory.tokens,
        memory.spatial_shapes,
        padding_mask=features.padding_mask,
        return_sampling=True,
    )
    mass = attention_mass(features, locations, weights)
    if scorer.learns is modeling.parts.DecoderAttention:
        term = DecoderAttentionLoss(weight=2.0)
        loss = term.of_scores(scores, features, selections[0], mass)
    else:
        term = ForegroundLoss(weight=1.5)
        loss = term.of_scores(scores, features, small.targets((2, 1)))
        assert SalienceLoss(weight=1.0).of_scores(scores, features, small.targets((2, 1))) > 0
    (term.weight * loss).backward()
    assert all(p.grad is not None and p.grad.any() for p in scorer.parameters())
    assert not any(p.grad is not None for p in attention.parameters()), "the target has no gradient"


@pytest.mark.parametrize("scorer", SCORERS)
def test_any_object_with_a_token_embedding_serves_a_scorer(features, scorer):
    own = scorer(small.EMBED_DIM, own_embedding=True)
    other = scorer(small.EMBED_DIM)
    small.randomize(own)
    embedding = own.embedding
    state = {k: v for k, v in own.state_dict().items() if not k.startswith("embedding.")}
    other.load_state_dict(state)
    assert other.needs_token_embedding and not own.needs_token_embedding
    wanted = own(features).logits
    assert torch.equal(other(features, embedding).logits, wanted)
    with_position = type(
        "Host", (), {"token_embedding": lambda _, x, with_pos: embedding(x.tokens + x.pos, None)}
    )()
    got = other(features, with_position).logits
    torch.testing.assert_close(got[~features.padding_mask], wanted[~features.padding_mask])


def test_a_scorer_with_an_embedding_of_its_own_fits_into_our_detector():
    plain, own = (
        small.detector(small.Combination(**small.DAM), own_embedding=flag) for flag in (False, True)
    )
    assert own.scorer.embedding is not None and plain.scorer.embedding is None
    before, after = (sum(p.numel() for p in each.parameters()) for each in (plain, own))
    embedding = sum(p.numel() for p in TokenEmbedding(small.EMBED_DIM).parameters())
    assert after == before + embedding, "the first stage still has the one of the detector"
    own.train()(small.samples(SIZES, (2, 1)))


def test_dual_attention_reads_the_class_head_of_its_host(features):
    encoder, linear = small.build(DualAttentionEncoder), nn.Linear(small.EMBED_DIM, 5)
    selections = TopKSelector(0.4)(RandomScorer()(features), features, encoder.num_layers)
    first = encoder(features, selections, heads=classes(linear)).memory.tokens
    with torch.no_grad():
        linear.weight.mul_(-1)
    assert not torch.allclose(
        first, encoder(features, selections, heads=classes(linear)).memory.tokens
    ), "the class head does not count"
    assert not any(each is linear for each in encoder.modules()), "it would be stored twice"


def test_parts_that_need_heads_say_so(features):
    selections = TopKSelector(0.4)(RandomScorer()(features), features, 2)
    queries = AnchorQueries(small.EMBED_DIM, 5)(features)[0]
    calls = [
        (DAMPredictor(32), (features,), "token_embedding.*own_embedding=True"),
        (ForegroundScorer(32), (features, None), "token_embedding.*own_embedding=True"),
        (ObjectnessScorer(), (features, TokenEmbedding(32)), "proposals and scorer, got TokenEmb"),
        (EfficientQueries(32), (features, None), "token_embedding and proposal, got None"),
        (MixedQueries(32), (features, None), "token_embedding and proposal, got None"),
        (small.build(DeformableDecoder), (queries, features, None), "decoder, got None"),
        (small.build(DualAttentionEncoder), (features, selections), "decoder, got None"),
    ]
    for part, arguments, message in calls:
        with pytest.raises(
            ValueError, match=f"{type(part).__name__} must be called with .*{message}"
        ):
            part(*arguments)


def test_heads_that_were_not_asked_for_say_so(features):
    heads = modeling.Heads(small.EMBED_DIM, 3, size_biases=[0.0])
    for call in (
        lambda: heads.proposal,
        lambda: heads.scorer,
        lambda: heads.token_embedding(features, with_pos=True),
    ):
        with pytest.raises(ValueError, match=r"Heads\.\w+ must be True .*got False\. Set it"):
            call()


def test_the_loops_of_guests_find_the_starts_of_our_attention():
    """``init_weights`` of a host: matrices anew, then what its attention says of itself."""
    encoder = small.build(DeformableEncoder)
    attentions = [m for m in encoder.modules() if isinstance(m, MultiScaleDeformableAttention)]
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    assert all(each.sampling_offsets.weight.any() for each in attentions)
    for module in encoder.modules():
        if hasattr(module, "init_weights"):
            module.init_weights()
    assert attentions and not any(each.sampling_offsets.weight.any() for each in attentions)


def test_a_backbone_has_widths_of_its_own():
    """detectron2's Swin calls that of its first stage by a name that parts of ours share."""
    parts = small.parts(small.PLAIN)
    parts["backbone"].embed_dim = parts["backbone"].num_levels = 7
    modeling.TokenSparseDetector(**parts).train()(small.samples(SIZES, (2, 1)))
