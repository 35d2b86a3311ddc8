"""Glancing and looking in compiled and exported form, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsedet.analysis import count_flops, looked_at, measure_latency, tile_recall
from sparsedet.modeling import (
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
    objects_of = [len(sample["instances"]) for sample in batch]
    assert sum(objects_of) == 5
    assert tile_recall(detector("efficient", selector=DenseSelector()), [batch]) == 1
    model = detector("efficient", scorer=RandomScorer(), look_ratio=0.3).eval()
    prepared = model.preprocess(batch)
    (_, glance), _ = look(model)
    found = looked_at(glance, prepared.targets)
    for image, own in enumerate(found):
        numbers = tile_numbers(glance.tiles, image, prepared.targets.boxes[image]).tolist()
        kept = glance.looked.indices[image]
        if glance.looked.valid is not None:
            kept = kept[glance.looked.valid[image]]
        assert own.tolist() == [number in kept.tolist() for number in numbers]
    share = tile_recall(model, [batch[:1], batch[1:]])
    assert share == pytest.approx(sum(int(each.sum()) for each in found) / 5)
    oracle = detector("efficient", scorer=OracleScorer(), look_ratio=0.5)
    assert tile_recall(oracle, [batch]) == 1
    with pytest.raises(ValueError, match="must have regions"):
        tile_recall(small.detector(small.PLAIN), [batch])
    with pytest.raises(ValueError, match="at least one object"):
        tile_recall(model, [small.samples(SIZES, (0, 0))])
