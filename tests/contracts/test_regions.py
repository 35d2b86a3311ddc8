"""Detectors that glance and look keep what detectors that see everything keep."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import Tensor, nn

from sparsedet.analysis import calibrate_selector
from sparsedet.checkpoint import load_checkpoint, load_weights, save_checkpoint
from sparsedet.engine import Hook, ModelEma, Trainer
from sparsedet.modeling import (
    AdaptiveSelector,
    DenseSelector,
    ElasticSelector,
    OracleScorer,
    RandomScorer,
    TokenSparseDetector,
)
from sparsedet.modeling.stages import DetectorOutput, Targets
from sparsedet.training import _check_parts_fit
from tests.contracts import test_padding as padding
from tests.contracts.test_compile import LIMITED, tensors
from tests.modeling import small
from tests.modeling.glancing import HALO, TILE, detector, foreground

QUICK = ("deformable_plain", "sparse_dual", "focus", "dn_detr", "pnp_detr", "imfa_detr")
NAMED = pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in small.NAMED],
)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
CANVAS = (270, 280)
# two of them have more than one token on the coarsest level
SIZES = ((130, 280), (270, 90), (130, 60), (24, 40), (8, 8))
COUNTS = (4, 3, 0, 2, 1)
SELECTORS: dict[str, Callable[[], Any]] = {
    "elastic": lambda: ElasticSelector(0.3, train_ratios=(0.2, 0.5)),
    "adaptive": lambda: AdaptiveSelector(0.3, max_ratio=0.6),
}


def make(name: str, **options) -> TokenSparseDetector:
    """A small detector that draws nothing but shares of tiles and tokens."""
    options = {**foreground(), "taught_passes": 0, **options}
    return small.fix_noise(detector(name, **options))


def place(images: tuple[int, ...], canvas: small.Size = CANVAS) -> tuple[Tensor, tuple, Targets]:
    """A batch on a canvas; an image depends on its number only."""
    sizes = tuple(SIZES[image] for image in images)
    batch = torch.zeros(len(images), 3, *canvas)
    for slot, image, (h, w) in zip(batch, images, sizes, strict=True):
        generator = torch.Generator().manual_seed(image)
        slot[:, :h, :w] = torch.randn(3, h, w, generator=generator)
    return batch, sizes, small.targets([COUNTS[image] for image in images], images)


def run(model, images, canvas=None) -> tuple[DetectorOutput, Targets, dict]:
    """As ``run`` of the contracts for padding, from the images on."""
    batch, sizes, targets = place(images, canvas or CANVAS)
    learned = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    # shares are drawn after noise for the tiles, which is of no weight but takes random numbers
    again = model.selector.register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)
    with torch.no_grad():
        output = model.detect(batch, sizes, targets, record=model.criterion.requires)
        again.remove()
        model.load_state_dict(learned)
        return output, targets, model.criterion(output, targets)


BATCHES = ((2, 0, 1), CANVAS), ((1, 4, 3), CANVAS)


@pytest.fixture
def _from_images(monkeypatch):
    monkeypatch.setattr(padding, "run", run)


@NAMED
@TRAINING
def test_companions_do_not_matter(name, training, _from_images):
    padding.check_model(make(name).train(training), batches=BATCHES)


@TRAINING
@pytest.mark.parametrize("selector", SELECTORS)
def test_nor_do_they_to_other_shares_of_tiles(selector, training, _from_images):
    model = make("deformable_plain", selector=SELECTORS[selector]()).train()
    model.detect(*place((0, 1)))  # adaptive selectors learn how scores lie
    padding.check_model(model.train(training), batches=BATCHES)


class Watched:
    """The maps of a glance and of a look, with noise where nothing may be read.

    That is beyond the images in the glance, and in the halos and on coarse levels in the look.
    """

    def __init__(self, model: TokenSparseDetector, size: float) -> None:
        self.see, self.size, self.sizes = model._maps_of_any_size, size, ()
        self.seen: list[list[Tensor]] = []
        self.noise: list[Tensor] = []
        model._maps_of_any_size = self

    def __call__(self, images: Tensor, *levels: int) -> list[Tensor]:
        maps = []
        for x, stride in zip(self.see(images, *levels), small.STRIDES, strict=False):
            read = torch.zeros(len(x), 1, *x.shape[-2:], dtype=torch.bool)
            if not self.seen:
                for own, (h, w) in zip(read, self.sizes, strict=True):
                    own[:, : -(-h // (4 * stride)), : -(-w // (4 * stride))] = True
            elif stride < 4 * small.STRIDES[0]:
                cut, side = HALO // stride, TILE // stride
                read[..., cut : cut + side, cut : cut + side] = True
            self.noise.append((self.size * torch.randn(x.shape)).requires_grad_())
            x = torch.where(read, x, self.noise[-1])
            x.retain_grad()
            maps.append(x)
        self.seen.append(maps)
        return maps


@NAMED
def test_halos_and_padding_have_no_influence(name):
    """What the neck gives there changes no loss and gets no gradient; all else does."""
    found = []
    for size in (1.0, 30.0):
        model = make(name).train()
        watched = Watched(model, size)
        batch, watched.sizes, targets = place((0, 1, 2))
        torch.manual_seed(0)  # the share of tokens may be drawn
        output = model.detect(batch, watched.sizes, targets, record=model.criterion.requires)
        losses = model.criterion(output, targets)
        sum(losses.values()).backward()
        assert all(x.grad is None or not x.grad.any() for x in watched.noise)
        glance, look = watched.seen
        fine = small.STRIDES.index(4 * small.STRIDES[0])
        assert all(x.grad.any() for x in (*glance, *look[:fine]))
        found.append({key: loss.detach() for key, loss in losses.items()})
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["efficient", "sparse_dual", "focus"])
def test_looking_at_everything_and_keeping_everything(name):
    """A share of all tiles and tokens is no choice: the same losses as without a choice."""
    keep = {**small.KEEP_ALL, "levels": (tuple(range(6)),) * 2, "layer_ratios": None}
    chosen = make(name, look_ratio=1.0, term=None, scorer=RandomScorer(), **keep)
    dense = make(name, selector=DenseSelector(), term=None, scorer=None, **keep)
    dense.load_state_dict(chosen.state_dict())
    (ours, _, losses), (theirs, _, expected) = (
        run(model.train(), (0, 1, 3)) for model in (chosen, dense)
    )
    assert ours.keep_ratios == theirs.keep_ratios == (1.0,) * 3
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)


def step(model: TokenSparseDetector, within=nullcontext) -> tuple[DetectorOutput, dict]:
    """Gradients of a training step, in the parameters."""
    batch, sizes, targets = place((0, 1, 3))
    torch.manual_seed(3)
    with within():
        output = model.train().detect(batch, sizes, targets, record=model.criterion.requires)
    losses = model.criterion(output, targets)
    sum(losses.values()).backward()
    return output, losses


def autocast(dtype: torch.dtype):
    return lambda: torch.autocast("cpu", dtype=dtype)


@NAMED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_in_half_precision(name, dtype):
    model = make(name)
    output, losses = step(model, autocast(dtype))
    glance = output.glance
    for tensor in (glance.scores.logits, glance.tiles.tokens, *losses.values()):
        assert tensor.dtype == torch.float32 and tensor[tensor > float("-inf")].isfinite().all()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@NAMED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_half_precision(name, dtype):
    """The tiles are chosen in fp32, and the answer is given in fp32."""
    model = make(name).eval()
    batch, sizes, _ = place((0, 1))
    with torch.no_grad():
        expected = model.detect(batch, sizes)
        got = copy.deepcopy(model).to(dtype).detect(batch, sizes)
    assert got.features.tokens.dtype == dtype
    assert got.glance.scores.logits.dtype == got.glance.tiles.tokens.dtype == torch.float32
    ours, theirs = (
        each.glance.looked.mask(each.glance.tiles.num_tokens) for each in (got, expected)
    )
    assert (ours != theirs).sum() <= 2  # at the cut a rounding decides
    assert got.decoder[-1].boxes.dtype == torch.float32
    assert got.decoder[-1].boxes.isfinite().all()


@NAMED
def test_layers_that_are_computed_again(name):
    """In the backward: the same losses, gradients and next random number."""
    found = []
    for flag in (False, True):
        model = make(name, activation_checkpointing=flag, dropout=0.2)
        _, losses = step(model)
        gradients = {key: p.grad for key, p in model.named_parameters()}
        found.append((losses, gradients, torch.rand(1)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


@pytest.fixture
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", small.NAMED)
@TRAINING
def test_every_system_compiles(name, training, _fresh):
    compiled_equals_eager(make(name, label_noise=0.0, box_noise=0.0), training=training)


@pytest.mark.slow
@pytest.mark.parametrize("selector", SELECTORS)
@TRAINING
def test_other_shares_of_tiles_compile(selector, training, _fresh):
    model = make("focus", selector=SELECTORS[selector](), label_noise=0.0, box_noise=0.0).train()
    model.detect(*place((0, 1)))
    compiled_equals_eager(model, training=training)


def compiled_equals_eager(model: TokenSparseDetector, *, training: bool) -> None:
    batch, sizes, targets = place((0, 1))
    record = model.train(training).criterion.requires if training else frozenset()
    eager = copy.deepcopy(model)
    detect = torch.compile(model.detect, backend="aot_eager", fullgraph=True)
    found = []
    with torch.set_grad_enabled(training):
        for each, call in ((eager, eager.detect), (model, detect)):
            torch.manual_seed(0)
            form = nullcontext()
            if each is eager and type(each.selector).__name__ in LIMITED:
                form = mock.patch.object(torch.compiler, "is_compiling", return_value=True)
            with form:
                output = call(batch, sizes, targets, record=record)
            if training:
                sum(each.criterion(output, targets).values()).backward()
            gradients = [p.grad for p in each.parameters()] if training else []
            found.append((tensors(output), gradients))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)


class Whole(nn.Module):
    """Images to everything that the detector says of them."""

    def __init__(self, model: TokenSparseDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> DetectorOutput:
        return self.model.detect(images, SIZES[:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", small.NAMED)
def test_the_whole_output_exports(name, _fresh):
    model = Whole(make(name).eval())
    images, others = place((0, 1))[0], torch.randn(2, 3, *CANVAS)
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        for given in (images, others):
            got, expected = program.module()(given), model(given)
            torch.testing.assert_close(tensors(got), tensors(expected), atol=1e-4, rtol=1e-4)
            assert torch.equal(got.glance.looked.indices, expected.glance.looked.indices)


def test_a_selector_of_tiles_is_calibrated():
    """Beside that of the tokens; weights of another one serve."""
    model = make("focus", selector=AdaptiveSelector(0.3)).eval()
    images = small.samples(((130, 280), (270, 90), (260, 260)), (1, 1, 1))
    with pytest.raises(ValueError, match="AdaptiveSelector derives its threshold"):
        model(images)
    assert calibrate_selector(model, [images]) == 3
    prepared = model.preprocess(images)
    _, glance = model.see(prepared.images, prepared.image_sizes)
    pairs = zip(glance.looked.counts, glance.tiles.num_valid, strict=True)
    shares = [looked / tiles for looked, tiles in pairs]
    assert sum(shares) / 3 == pytest.approx(0.3, abs=0.05)
    assert len(set(shares)) > 1
    assert not model.regions.selector._forward_pre_hooks


@pytest.mark.parametrize("place", ["selector", "regions"])
def test_a_run_begins_with_selectors_that_know_nothing(place):
    """They are tried on an empty image before the first iteration, and then know as little."""
    model = make("sparse", selector=AdaptiveSelector(0.3) if place == "regions" else None)
    if place == "selector":
        model.selector = AdaptiveSelector(0.3)
    _check_parts_fit(model)
    owner = model if place == "selector" else model.regions
    assert int(owner.selector.curve.num_images) == 0
    owner.selector.curve.num_images.fill_(5)  # as in loaded weights
    owner.selector.curve.shares.fill_(0.5)
    _check_parts_fit(model)
    assert int(owner.selector.curve.num_images) == 5
    assert (owner.selector.curve.shares == 0.5).all()
    assert model.training


def test_weights_serve_other_choices_of_tiles(tmp_path):
    """What a scorer or a selector of tiles has of its own is left out or to be calibrated."""
    path = tmp_path / "weights.pth"
    save_checkpoint({"model": make("focus").state_dict()}, path)
    oracle = make("focus", scorer=OracleScorer(), term=None)
    report = load_weights(oracle, path)
    assert report.unused and all(name.startswith("regions.scorer.") for name in report.unused)
    assert oracle.state_dict()["level_embed"].equal(make("focus").state_dict()["level_embed"])
    report = load_weights(make("focus", selector=AdaptiveSelector(0.3), seed=1), path)
    assert {name.rsplit(".", 1)[0] for name in report.uncalibrated} == {"regions.selector.curve"}


class Losses(Hook):
    """The loss of every iteration, and a stop after some of them."""

    def __init__(self, until: int) -> None:
        self.values, self.until = [], until

    def after_iteration(self, trainer: Trainer) -> None:
        self.values.append(trainer.recorder.flush()["loss"])
        trainer.stop_requested = trainer.iteration == self.until


def trainer_of(model: TokenSparseDetector) -> Trainer:
    def batches(start: int):
        for number in range(start, 6):
            seeds = (2 * number, 2 * number + 1)
            yield small.samples(((130, 280), (270, 90)), (3, 2), seeds)

    return Trainer(
        model,
        batches,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        lr_multiplier=ConstantParamScheduler(1.0),
        max_iter=6,
        ema=ModelEma(model, decay=0.9),
    )


@pytest.mark.parametrize("selector", [None, *SELECTORS])
def test_a_resumed_run_gives_the_same_numbers(tmp_path, selector):
    """Stopped while tiles are still taught: by what is drawn, and by how far that has faded."""

    def fresh(seed: int) -> Trainer:
        torch.manual_seed(seed)
        options = {**foreground(), "selector": SELECTORS[selector]() if selector else None}
        return trainer_of(detector("focus", seed=seed, taught_passes=5, **options))

    def train(trainer: Trainer, until: int = 6) -> list[float]:
        trainer.hooks = [losses := Losses(until)]
        trainer.train()
        return losses.values

    whole, first = fresh(0), fresh(0)
    expected = train(whole)
    begin = train(first, 3)
    save_checkpoint(first.state_dict(), tmp_path / "a.pth")
    second = fresh(1)
    second.load_state_dict(load_checkpoint(tmp_path / "a.pth"))
    assert int(second.unwrapped_model.regions.passes) == 3
    assert begin + train(second) == expected
    for ours, theirs in (
        (second.unwrapped_model, whole.unwrapped_model),
        (second.eval_model, whole.eval_model),
    ):
        assert int(ours.regions.passes) == 6
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=0, rtol=0)
