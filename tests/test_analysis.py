"""Parameters, GFLOPs, latency, kept tokens and Corr, against sums by hand and slow references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from sparsedet.analysis import (
    WEIGHTED_READ,
    Counting,
    ImageShare,
    attention_share,
    best_tokens,
    blank_share,
    calibrate_selector,
    count_flops,
    count_parameters,
    kept_by_level,
    kept_tokens,
    mean_flops,
    measure_latency,
    referred_tokens,
    share_by_content,
    token_statistics,
)
from tests.modeling.small import (
    ARGUMENTS,
    NAMED,
    NUM_CLASSES,
    STRIDES,
    Combination,
    detector,
    features,
    samples,
)

SPARSE, DINO, FOCUS, PLAIN = (
    NAMED[each] for each in ("sparse", "dino", "focus", "deformable_plain")
)
ADAPTIVE = replace(SPARSE, selector="AdaptiveSelector")

SIZE = (64, 96)
LEVELS = (8 * 12, 4 * 6, 2 * 3, 1 * 2)
N = sum(LEVELS)
C, F, Q = (ARGUMENTS[each] for each in ("embed_dim", "feedforward_dim", "num_queries"))
M, P, LAYERS = (ARGUMENTS[each] for each in ("num_heads", "num_points", "num_layers"))
L = len(STRIDES)


def total(flops) -> int:
    return round(1e9 * flops.total)


# --- GFLOPs, by hand


def attention(queries: int, read: int = 4) -> int:
    """Deformable attention of so many queries on the whole map: four projections, and sampling."""
    projections = N * C * C + queries * C * (2 * M * L * P) + queries * C * (M * L * P)
    return projections + queries * C * C + read * queries * L * P * C


def encoder_layer(tokens: int) -> int:
    return attention(tokens) + 2 * tokens * C * F + 2 * 5 * tokens * C


def decoder_layer() -> int:
    self_attention = 4 * Q * C * C + 2 * Q * Q * C
    return self_attention + attention(Q) + 2 * Q * C * F + 3 * 5 * Q * C


def boxes(rows: int) -> int:
    return rows * (2 * C * C + 4 * C)


def head(rows: int) -> int:
    return rows * C * NUM_CLASSES + boxes(rows)


EMBEDDING = N * C * C + 5 * N * C
SCORE_NETWORK = 5 * N * C + N * (C * C + C * C // 2 + C // 2 * C // 4 + C // 4)


def test_every_stage_of_sparse_detr_counts_what_is_summed_by_hand() -> None:
    kept = int(0.4 * N) + 1
    counted = count_flops(detector(SPARSE), SIZE)
    expected = {
        "backbone": LEVELS[0] * 4 * 3 * 64 + (LEVELS[1] + LEVELS[2]) * 4 * 4 * 9,
        "neck": sum(LEVELS[:3]) * 4 * C + LEVELS[3] * 4 * C * 9 + 5 * N * C,
        "scorer": EMBEDDING + SCORE_NETWORK,
        "encoder": LAYERS * encoder_layer(kept),
        "query_initializer": EMBEDDING + head(N) + Q * 2 * C * C + 5 * Q * C,
        "decoder": LAYERS * decoder_layer(),
        "heads": LAYERS * head(Q),
    }
    assert {name: round(1e9 * count) for name, count in counted.stages.items()} == expected
    assert total(counted) == sum(expected.values())
    assert counted.sizes == {SIZE: 1}


def test_the_dense_model_without_proposals() -> None:
    """Points as references; learned queries cost two channels per query, made once."""
    stages = count_flops(detector(PLAIN), SIZE).stages
    assert round(1e9 * stages["encoder"]) == LAYERS * encoder_layer(N)
    assert round(1e9 * stages["query_initializer"]) == Q * C * 2
    assert stages["scorer"] == 0


def test_the_category_head_of_dual_attention_belongs_to_the_encoder() -> None:
    most = int(0.4 / 0.75 * N) + 1  # the second layer keeps half of these, the mean being 0.4
    counts, objects = (most, most // 2), ARGUMENTS["num_objects"]
    category = sum(count * C * NUM_CLASSES for count in counts)
    object_attention = LAYERS * (4 * objects * C * C + 2 * objects**2 * C + 5 * objects * C)
    stages = count_flops(detector(FOCUS), SIZE).stages
    expected = sum(map(encoder_layer, counts)) + category + object_attention
    assert round(1e9 * stages["encoder"]) == expected


def test_keeping_more_tokens_costs_the_encoder_alone() -> None:
    few, many = (count_flops(detector(SPARSE, keep_ratio=ratio), SIZE) for ratio in (0.1, 1.0))
    tokens = N - (int(0.1 * N) + 1)
    more = LAYERS * (encoder_layer(N) - encoder_layer(N - tokens))
    assert round(1e9 * (many.stages["encoder"] - few.stages["encoder"])) == more
    assert total(many) - total(few) == more


def test_the_weighted_sum_is_one_more_per_sampled_value() -> None:
    model = detector(SPARSE)
    more = total(count_flops(model, SIZE, counting=Counting(WEIGHTED_READ)))
    sampled = LAYERS * (int(0.4 * N) + 1 + Q) * L * P * C
    assert more - total(count_flops(model, SIZE)) == sampled


def test_what_released_code_counts_beside() -> None:
    model = detector(DINO)
    model.backbone.res5 = torch.nn.Sequential(model.backbone.res5, FrozenBatchNorm2d(4))
    plain = count_flops(model, SIZE)
    released = count_flops(
        model, SIZE, counting=Counting(frozen_norms=True, all_proposal_boxes=True)
    )
    more = {name: released.stages[name] - plain.stages[name] for name in plain.stages}
    assert round(1e9 * more.pop("backbone")) == 2 * 4 * LEVELS[2]
    assert round(1e9 * more.pop("query_initializer")) == boxes(N) - boxes(Q)
    assert set(more.values()) == {0}
    model = detector(SPARSE)  # makes the boxes of all tokens by itself
    assert count_flops(model, SIZE, counting=Counting(all_proposal_boxes=True)) == count_flops(
        model, SIZE
    )


@pytest.mark.parametrize("name", NAMED)
def test_counting_without_computing_counts_what_is_computed(name: str) -> None:
    model = detector(NAMED[name]).train()
    model.neck.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    image = torch.rand(3, 70, 93)  # no multiple of a stride
    assert count_flops(model, (70, 93)) == count_flops(model, (70, 93), image=image)
    assert model.training and not model.neck.training and model.decoder.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_budget_of_the_image_needs_the_image() -> None:
    model = detector(ADAPTIVE, keep_ratio=0.3, max_ratio=0.9)
    with pytest.raises(ValueError, match=r"count_flops.image must be given for AdaptiveSelector"):
        count_flops(model, SIZE)
    kept = {
        total(count_flops(model, SIZE, image=seed * torch.rand(3, *SIZE))) for seed in range(1, 6)
    }
    cap = total(count_flops(detector(ADAPTIVE, keep_ratio=1.0, max_ratio=0.9), SIZE))
    assert max(kept) < cap


# --- calibration and content


def test_a_calibrated_selector_keeps_its_ratio_of_these_images() -> None:
    model = detector(ADAPTIVE, keep_ratio=0.3).train()
    model.backbone.eval()
    batches = [samples(((64, 96), (96, 70)), (2, 1)), samples(((128, 64),), (0,), (5,))]
    assert calibrate_selector(model, batches) == calibrate_selector(model, batches) == 3
    assert model.selector.curve.num_images == 3, "what was known before is forgotten"
    assert model.training and not model.backbone.training
    with torch.no_grad():
        kept = [each["keep_ratio"] for batch in batches for each in model.eval()(batch)]
    assert sum(kept) / 3 == pytest.approx(0.3, abs=0.02)
    assert 0 < blank_share(model, SIZE) < 1


def test_what_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match=r"got TopKSelector\. Set model\.selector\._target_"):
        calibrate_selector(detector(SPARSE), [])
    model = detector(ADAPTIVE)
    known = model.selector.curve.num_images.clone()
    with pytest.raises(ValueError, match="at least one image, got none"):
        calibrate_selector(model, [])
    assert model.selector.curve.num_images == known > 0


def test_shares_of_plain_and_busy_images() -> None:
    """16 images; the one with most objects covers least."""
    shares = [ImageShare(n, kept=(n + 1) / 20, objects=n, area=1 - n / 20) for n in range(16)]
    found = share_by_content(shares[::-1])
    assert found["objects"] == pytest.approx({"correlation": 1, "plain": 0.075, "busy": 0.775})
    assert found["area"] == pytest.approx({"correlation": -1, "plain": 0.775, "busy": 0.075})
    alike = share_by_content([ImageShare(n, 0.3, n, 0.1) for n in range(3)])
    assert alike["objects"] == {"correlation": None, "plain": 0.3, "busy": pytest.approx(0.3)}


def test_the_mean_counts_each_size_once_and_weighs_by_images() -> None:
    model = detector(PLAIN)
    sizes = [(64, 80), (64, 96), (64, 96), (96, 64)]
    steps = []
    mean = mean_flops(model, sizes, progress=lambda *step: steps.append(step))
    each = [count_flops(model, size) for size in sizes]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert mean.sizes == {(64, 80): 1, (64, 96): 2, (96, 64): 1}
    assert mean.total == pytest.approx(sum(flops.total for flops in each) / 4)
    encoder = sum(flops.stages["encoder"] for flops in each) / 4
    assert mean.stages["encoder"] == pytest.approx(encoder)


def test_a_few_images_are_drawn_at_even_distances() -> None:
    model = detector(PLAIN)
    sizes = [(64, 64 + 16 * width) for width in (9, 1, 7, 3, 5, 2, 8, 6, 4)]
    assert mean_flops(model, sizes, max_images=3).sizes == {(64, 64 + 16 * w): 1 for w in (2, 5, 8)}
    assert sum(mean_flops(model, sizes[:2], max_images=5).sizes.values()) == 2
    for arguments in (dict(image_sizes=[]), dict(image_sizes=sizes, max_images=0)):
        with pytest.raises(ValueError, match="at least one image"):
            mean_flops(model, **arguments)


# --- parameters


@pytest.mark.parametrize("name", NAMED)
def test_parameters_by_stage(name: str) -> None:
    model = detector(NAMED[name])
    model.backbone.stem.requires_grad_(False)
    count = count_parameters(model)
    assert count.total == sum(each.numel() for each in model.parameters())
    frozen = sum(each.numel() for each in model.backbone.stem.parameters())
    assert count.total - count.trainable == frozen
    assert count.by_stage["backbone"] - count.trainable_by_stage["backbone"] == frozen
    known = ("backbone", "neck", "scorer", "encoder", "query_initializer", "decoder", "heads")
    assert set(count.by_stage) <= {*known, "auxiliary_heads", "denoising"}


def test_what_serves_training_alone_is_apart() -> None:
    sparse, dino = (count_parameters(detector(each)).by_stage for each in (SPARSE, DINO))
    weights = C * NUM_CLASSES + 2 * C * C + 4 * C
    one_head = weights + NUM_CLASSES + 2 * C + 4
    assert sparse["auxiliary_heads"] == one_head  # of the first of two layers
    assert sparse["heads"] == LAYERS * one_head
    assert dino["denoising"] == NUM_CLASSES * C
    assert "auxiliary_heads" not in dino and "denoising" not in sparse


# --- latency


def check_latency(model) -> None:
    model.train()
    latency = measure_latency(model, SIZE, repetitions=3, warm_up=1)
    assert list(latency.stages) == [
        *("backbone", "neck", "scorer", "encoder", "query_initializer", "decoder")
    ]
    assert all(milliseconds > 0 for milliseconds in latency.stages.values())
    assert latency.total > max(latency.stages.values())
    facts = latency.protocol
    assert (facts["repetitions"], facts["warm_up"], facts["batch"]) == (3, 1, 1)
    assert facts["image_size"] == [*SIZE] and facts["dtype"] == "float32"
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_latency_of_every_stage() -> None:
    check_latency(detector(FOCUS))
    check_latency(detector(PLAIN))  # the selector alone begins the scorer's time


def test_latency_needs_a_repetition() -> None:
    with pytest.raises(ValueError, match="repetitions must be at least 1"):
        measure_latency(detector(PLAIN), SIZE, repetitions=0)


@pytest.mark.gpu
def test_latency_on_a_gpu() -> None:
    check_latency(detector(FOCUS).to("cuda"))


# --- tokens


@pytest.fixture(scope="module")
def output():
    """What a cascade keeps of two images of different sizes, with the decoder's attention."""
    model = detector(FOCUS).eval()
    with torch.no_grad():
        return model.detect_features(features(model, [(64, 96), (100, 70)]), record={"token_mass"})


def test_kept_tokens_by_layer_and_level_are_those_of_the_selections(output) -> None:
    counted = kept_by_level(output)
    bounds = torch.tensor([h * w for h, w in output.features.spatial_shapes]).cumsum(0)
    for layer, selection in enumerate(output.selections):
        for image, count in enumerate(selection.counts):
            kept = selection.indices[image, :count]
            levels = torch.bucketize(kept, bounds, right=True)
            assert counted[image, layer].tolist() == levels.bincount(minlength=L).tolist()
    counts = torch.tensor([selection.counts for selection in output.selections])
    assert counted.sum(-1).equal(counts.T)


def test_a_dense_layer_keeps_what_is_not_padding() -> None:
    model = detector(PLAIN).eval()
    with torch.no_grad():
        dense = model.detect_features(features(model, [(64, 96), (100, 70)]))
    expected = [[h * w for h, w in sizes] for sizes in dense.features.level_sizes]
    assert kept_by_level(dense).tolist() == [[sizes] * LAYERS for sizes in expected]
    assert kept_tokens(dense).equal(~dense.features.padding_mask)


def test_tokens_of_any_layer(output) -> None:
    first = output.selections[0].mask(output.features.num_tokens)
    assert kept_tokens(output).equal(first)  # the others are parts of it


def test_best_tokens_are_counted_as_a_selector_counts(output) -> None:
    chosen = best_tokens(output, 0.1)
    for image, valid in enumerate(output.features.num_valid):
        scores = output.scores.logits[image].masked_fill(
            output.features.padding_mask[image], -torch.inf
        )
        best = scores.argsort(descending=True)[: int(0.1 * valid) + 1]
        assert sorted(chosen[image].nonzero()[:, 0].tolist()) == sorted(best.tolist())
    with pytest.raises(ValueError, match="token scores"):
        best_tokens(replace(output, scores=None), 0.1)


def test_attention_share_against_a_slow_reference(output) -> None:
    chosen = best_tokens(output, 0.3)
    for image, share in enumerate(attention_share(output, chosen).tolist()):
        inside = outside = 0.0
        for token, mass in enumerate(output.token_mass[image].tolist()):
            if output.features.padding_mask[image, token]:
                continue
            if chosen[image, token]:
                inside += mass
            else:
                outside += mass
        assert share == pytest.approx(inside / (inside + outside), rel=1e-5)
        assert 0 < share < 1


def test_all_tokens_hold_all_attention(output) -> None:
    everything = torch.ones_like(output.features.padding_mask)
    for tokens in (everything, ~output.features.padding_mask, best_tokens(output, 1.0)):
        assert attention_share(output, tokens).tolist() == pytest.approx([1.0, 1.0])
    assert attention_share(output, ~everything).tolist() == [0.0, 0.0]
    shares = [attention_share(output, best_tokens(output, share)) for share in (0.1, 0.4, 0.8)]
    assert (shares[0] < shares[1]).all() and (shares[1] < shares[2]).all()
    with pytest.raises(ValueError, match="token_mass"):
        attention_share(replace(output, token_mass=None), everything)


def test_referred_tokens_are_the_fewest_that_hold_the_attention(output) -> None:
    """Cell by cell, the largest first, until the share is reached; padding is never among them."""
    for share in (0.5, 0.99, 1.0):
        for image, chosen in enumerate(referred_tokens(output, share)):
            mass = output.token_mass[image].double()
            mass = mass.masked_fill(output.features.padding_mask[image], 0.0).tolist()
            held, wanted, fewest = 0.0, share * sum(mass), set()
            for token in sorted(range(len(mass)), key=lambda token: -mass[token]):
                if held >= wanted * (1 - 1e-12) or not mass[token]:
                    break
                held += mass[token]
                fewest.add(token)
            assert set(chosen.nonzero()[:, 0].tolist()) == fewest
    shares = attention_share(output, referred_tokens(output))
    assert (shares >= 0.99).all() and (shares < 1).all()
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share must be in"):
            referred_tokens(output, share)
    with pytest.raises(ValueError, match=r"referred_tokens.*token_mass"):
        referred_tokens(replace(output, token_mass=None))


def test_the_statistics_have_the_referred_tokens_of_every_level() -> None:
    model = detector(SPARSE).eval()
    images = samples([SIZE, (100, 70)], [1, 2])
    statistics = token_statistics(model, [[each] for each in images])
    totals, levels = [], []
    for each in images:
        batch = model.preprocess([each])
        with torch.inference_mode():
            output = model.detect(batch.images, batch.image_sizes, record={"token_mass"})
        chosen = output.features.split_levels(referred_tokens(output))
        totals.append(float(referred_tokens(output).double().mean()))
        levels.append([float(level.double().mean()) for level in chosen])
    assert statistics.referred_ratio == pytest.approx(sum(totals) / 2)
    for index, share in enumerate(statistics.referred):
        assert share == pytest.approx((levels[0][index] + levels[1][index]) / 2)
    assert sum(statistics.mass) == pytest.approx(1) and min(statistics.mass) > 0
    assert 0 < statistics.referred_ratio < 1


def test_statistics_are_means_over_images_however_they_are_batched() -> None:
    model = detector(SPARSE)
    images = samples([SIZE] * 3, [1, 2, 0])
    alone, together = (
        token_statistics(model, batches, share=0.2)
        for batches in ([[each] for each in images], [images[:2], images[2:]])
    )
    kept = int(0.4 * N) + 1
    assert together.num_images == 3
    assert together.tokens == LEVELS
    assert [sum(layer) for layer in together.kept] == pytest.approx([kept] * LAYERS)
    assert together.keep_ratio == pytest.approx(kept / N)
    assert together.kept == alone.kept
    assert together.corr == pytest.approx(alone.corr, rel=1e-4)
    assert 0 < together.corr < together.corr_kept < 1
    assert model.training


def test_statistics_of_a_dense_model() -> None:
    statistics = token_statistics(detector(PLAIN), [samples([SIZE], [1])])
    assert statistics.corr is None
    assert statistics.corr_kept == pytest.approx(1.0)
    assert statistics.kept == (tuple(map(float, LEVELS)),) * LAYERS
    with pytest.raises(ValueError, match="at least one image"):
        token_statistics(detector(PLAIN), [])


def test_scorers_that_look_at_the_objects_get_them() -> None:
    model = detector(Combination(scorer="OracleScorer", selector="TopKSelector"))
    assert token_statistics(model, [samples([SIZE], [2])]).corr > 0
