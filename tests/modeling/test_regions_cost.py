"""Glancing and looking in compiled and exported form, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsedet.analysis import calibrate_selector, count_flops, measure_latency, tile_recall
from sparsedet.modeling import (
    AdaptiveSelector,
    ChannelMapper,
    DenseSelector,
    OracleScorer,
    RandomScorer,
    TokenSparseDetector,
    TorchvisionResNet,
)
from sparsedet.modeling.regions import tile_numbers
from tests.modeling import small
from tests.modeling.glancing import (
    SIZES,
    TILE,
    detector,
    foreground,
    look,
    parts,
)


def compiled_equals_eager(model, backend: str, *, training: bool) -> None:
    model = model.train(training)
    batch = model.preprocess(small.samples(SIZES, (2, 1)))
    given = (batch.images, batch.image_sizes, batch.targets)
    record = model.criterion.requires if training else frozenset()
    detect = torch.compile(model.detect, backend=backend, fullgraph=True)
    found = []
    with torch.set_grad_enabled(training):
        for call in (detect, model.detect):
            torch.manual_seed(0)
            model.regions.passes.zero_()
            found.append(call(*given, record=record))
    got, expected = found
    assert torch.equal(got.features.padding_mask, expected.features.padding_mask)
    for ours, theirs in zip(got.decoder, expected.decoder, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-4, rtol=1e-4)
    if training:
        losses = [sum(model.criterion(each, batch.targets).values()) for each in found]
        torch.testing.assert_close(*losses, atol=1e-3, rtol=1e-3)


@pytest.fixture
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_it_compiles_in_one_graph(training, _fresh):
    # what is drawn is the same in compiled code where the scores alone decide
    model = detector("sparse", **foreground(), taught_passes=0)
    compiled_equals_eager(model, "aot_eager", training=training)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", ["focus", "sparse"])
def test_it_compiles_with_inductor(name, training, _fresh):
    compiled_equals_eager(
        detector(name, **foreground(), taught_passes=0), "inductor", training=training
    )


def test_it_exports(_fresh):
    class Answer(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            found = self.model.detect(images, ((200, 300),))
            return found.decoder[-1].boxes, found.glance.looked.indices

    model = Answer(detector("sparse", **foreground()).eval())
    images, others = torch.randn(2, 1, 3, 200, 300)
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        for given in (images, others):
            for ours, theirs in zip(program.module()(given), model(given), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_costs_are_those_of_the_tiles():
    """A look costs in proportion to the tiles; what is absent costs the encoder nothing."""
    few, many = (
        count_flops(detector("deformable_refine", **foreground(), look_ratio=ratio), (512, 512))
        for ratio in (0.1, 0.5)
    )
    assert few.stages["backbone"] == many.stages["backbone"]
    assert many.stages["look"] / few.stages["look"] == pytest.approx(33 / 7)
    dense = count_flops(small.detector(small.NAMED["deformable_refine"]), (512, 512))
    assert few.stages["encoder"] < 0.35 * dense.stages["encoder"]
    assert few.stages["scorer"] > 0


def test_a_look_makes_the_levels_that_it_gives_and_no_others():
    """Modules that make coarser ones run once, at the glance."""
    given = dict(backbone=TorchvisionResNet("resnet18"), neck=ChannelMapper(
        dict(res3=128, res4=256, res5=512), (8, 16, 32), embed_dim=small.EMBED_DIM
    ))  # fmt: skip
    model = TokenSparseDetector(**{**parts("dino", **foreground()), **given}).eval()
    body, neck = model.backbone.body, model.neck
    ran: list[str] = []
    modules = {"layer3": body.layer3, "layer4": body.layer4}
    modules |= {f"level {i}": each for i, each in enumerate((*neck.convs, *neck.extra_convs))}
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    look(model)
    coarse = ("layer4", "level 2", "level 3")
    assert all((ran.count(name) == 1) == (name in coarse) for name in modules)
    assert set(ran) == set(modules)


def test_a_backbone_and_a_neck_that_do_not_stop_give_the_same():
    class Neck(ChannelMapper):
        takes_num_levels = False

        def forward(self, maps):
            return super().forward(maps)

    model = detector("dino", **foreground())
    assert not hasattr(model.backbone, "takes_coarsest")
    (stopping, _), _ = look(model)
    model.neck.__class__ = Neck
    (whole, _), _ = look(model)
    assert torch.equal(stopping.tokens, whole.tokens)


def test_seconds_of_the_glance_and_of_the_look_are_apart():
    model = detector("focus", **foreground())
    latency = measure_latency(model, (200, 300), repetitions=1, warm_up=0)
    stages = ["backbone", "neck", "scorer", "look", "encoder", "query_initializer", "decoder"]
    assert list(latency.stages) == stages
    assert all(took > 0 for took in latency.stages.values())


def test_tile_recall_counts_the_objects_that_were_looked_at():
    batch = small.samples(SIZES, (3, 2))
    assert sum(len(sample["instances"]) for sample in batch) == 5
    (dense,) = tile_recall(detector("efficient", selector=DenseSelector()), [batch])
    assert dense["recall"] == dense["oracle"] == dense["random"] == dense["looked"] == 100
    model = detector("efficient", scorer=RandomScorer(), look_ratio=0.3).eval()
    prepared = model.preprocess(batch)
    (_, glance), _ = look(model)
    found = []
    for image, boxes in enumerate(prepared.targets.boxes):
        kept = glance.looked.indices[image]
        if glance.looked.valid is not None:
            kept = kept[glance.looked.valid[image]]
        found += [n in kept.tolist() for n in tile_numbers(glance.tiles, image, boxes).tolist()]
    (own,) = tile_recall(model, [batch[:1], batch[1:]])
    assert own["recall"] == pytest.approx(100 * sum(found) / 5)
    assert own["ratio"] == 0.3 and own["recall"] <= own["oracle"]
    with pytest.raises(ValueError, match="must have regions"):
        tile_recall(small.detector(small.PLAIN), [batch])
    with pytest.raises(ValueError, match="at least one object"):
        tile_recall(model, [small.samples(SIZES, (0, 0))])
    with pytest.raises(ValueError, match="needs scores"):
        tile_recall(detector("efficient", selector=DenseSelector()), [batch], (0.1,))


def test_tile_recall_at_every_ratio_is_that_of_a_model_with_this_ratio():
    batch, ratios = small.samples(SIZES, (9, 7)), (0.05, 0.2, 0.6, 1.0)
    model = detector("efficient", **foreground(), look_ratio=0.2)
    rows = tile_recall(model, [batch], ratios)
    for ratio, row in zip(ratios, rows, strict=True):
        own = detector("efficient", **foreground(), look_ratio=ratio)
        assert tile_recall(own, [batch]) == [pytest.approx(row, nan_ok=True)]
    assert model.regions.look_ratio == 0.2
    recalls = [row["recall"] for row in rows]
    assert recalls == sorted(recalls) and recalls[0] < recalls[-1] == 100
    oracle = detector("efficient", scorer=OracleScorer(), look_ratio=0.5)
    (row,) = tile_recall(oracle, [small.samples(SIZES, (3, 2))])
    assert row["recall"] == row["oracle"] == 100 > row["random"]


def test_a_glance_alone_does_not_look():
    model, seen = detector("efficient", **foreground()).eval(), []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    batch = model.preprocess(small.samples(SIZES, (2, 2)))
    glance = model.glance(batch.images, batch.image_sizes)
    assert len(seen) == 1
    _, whole = model.see(batch.images, batch.image_sizes)
    assert len(seen) == 3
    assert torch.equal(glance.looked.indices, whole.looked.indices)
    with pytest.raises(ValueError, match="needs regions"):
        small.detector(small.PLAIN).glance(batch.images, batch.image_sizes)


def test_an_answer_says_which_tiles_were_looked_at():
    model = detector("efficient", **foreground()).eval()
    batch = small.samples(SIZES, (2, 2))
    height, width = SIZES[1]
    batch[0].update(height=SIZES[0][0], width=SIZES[0][1])
    batch[1].update(height=2 * height, width=3 * width)
    prepared = model.preprocess(batch)
    _, glance = model.see(prepared.images, prepared.image_sizes)
    with torch.no_grad():
        plain, scaled = (found["tiles"] for found in model(batch))
    assert plain.image_size == SIZES[0] and len(plain) == 4 * 5
    assert plain.boxes.tensor[-1].tolist() == [256, 192, 300, 200]
    assert scaled.boxes.tensor[-1].tolist() == [128 * 3, 256 * 2, 190 * 3, 260 * 2]
    places = {
        (int(y) // (2 * TILE), int(x) // (3 * TILE)) for x, y, *_ in scaled.boxes[scaled.looked]
    }
    columns = glance.tiles.spatial_shapes[0][1]
    kept = glance.looked.mask(glance.tiles.num_tokens)[1].nonzero().flatten().tolist()
    assert places == {divmod(number, columns) for number in kept}
    scores = glance.tiles.tokens[1, :, 0].unflatten(0, glance.tiles.spatial_shapes[0])
    assert torch.equal(scaled.scores, scores[:5, :3].flatten())


def test_an_adaptive_choice_of_tiles_is_calibrated_before_that_of_tokens():
    """At its own ratio it then looks at this share of the tiles, the mean over the images."""
    batch = small.samples(SIZES, (2, 2))
    adaptive = AdaptiveSelector(0.3)
    model = detector("efficient", scorer=RandomScorer(), selector=adaptive).eval()
    with pytest.raises(ValueError, match="AdaptiveSelector derives its threshold"):
        model(batch)
    assert calibrate_selector(model, [batch]) == 2
    (row,) = tile_recall(model, [batch])
    assert row["looked"] == pytest.approx(30, abs=3)
    both = detector("focus", **foreground(), selector=AdaptiveSelector(0.3)).eval()
    both.selector = AdaptiveSelector(0.5)
    assert calibrate_selector(both, [batch]) == 2
    assert int(both.regions.selector.curve.num_images) == int(both.selector.curve.num_images) == 2
    assert [found["keep_ratio"] for found in both(batch)] != [1.0, 1.0]
