"""``detect`` compiles without a graph break and exports; the results stay the same."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from sparsedet.modeling.stages import DetectorOutput
from tests.modeling import small

SIZES = ((64, 96), (96, 70))
NAMED = pytest.mark.parametrize("name", small.NAMED)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("deformable_plain", "sparse")]
# Compiled code draws other numbers. The draws themselves are compiled too.
NO_NOISE = dict(label_noise=0.0, box_noise=0.0)
# Compiled, these compute as many tokens as they may keep, and use those that they do keep.
LIMITED = ("AdaptiveSelector", "ElasticSelector")


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tensors(output: DetectorOutput) -> list[Tensor]:
    predictions = [*output.decoder, *output.encoder]
    predictions += [output.proposals] if output.proposals is not None else []
    predictions += output.denoising.predictions if output.denoising is not None else []
    found = [output.memory.tokens]
    found += [x for p in predictions for x in (p.logits, p.boxes)]
    found += [output.token_mass] if output.token_mass is not None else []
    found += [s.indices for s in output.selections if s.indices is not None]
    found += [objects.selection.indices for objects in output.objects]
    return found


def compiled_equals_eager(combination: small.Combination, backend: str, *, training: bool) -> None:
    model = small.detector(combination, **NO_NOISE).train(training)
    prepared = model.preprocess(small.samples(SIZES, (2, 1)))
    given = (prepared.images, prepared.image_sizes, prepared.targets)
    record = model.criterion.requires if training else frozenset()
    eager = copy.deepcopy(model)  # a pass may change what a selector knows
    detect = torch.compile(model.detect, backend=backend, fullgraph=True)
    form = nullcontext()
    if combination.selector in LIMITED:  # see test_selection.py for the other form
        form = mock.patch.object(torch.compiler, "is_compiling", return_value=True)
    with torch.set_grad_enabled(training):
        torch.manual_seed(0)
        got = detect(*given, record=record)
        torch.manual_seed(0)
        with form:
            expected = eager.detect(*given, record=record)
    pairs = list(zip(tensors(got), tensors(expected), strict=True))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    if not training:
        return
    gradients = []
    for each, output in ((eager, expected), (model, got)):
        sum(each.criterion(output, prepared.targets).values()).backward()
        gradients.append([p.grad for p in each.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["focus", *SLOW])
def test_the_host_and_sparse_systems_compile(name):
    compiled_equals_eager(small.NAMED[name], "aot_eager", training=True)


@pytest.mark.slow
@pytest.mark.parametrize("combination", small.pairwise_cover(), ids=str)
def test_every_pair_of_choices_compiles(combination):
    compiled_equals_eager(combination, "aot_eager", training=True)


@pytest.mark.slow
@NAMED
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_named_systems_compile_with_inductor(name, training):
    compiled_equals_eager(small.NAMED[name], "inductor", training=training)


class Answer(nn.Module):
    """Tensors in, tensors out: images of the full canvas to logits and boxes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (images.shape[-2], images.shape[-1])
        answer = self.model.detect(images, (size,) * images.shape[0]).decoder[-1]
        return answer.logits, answer.boxes


@pytest.mark.slow
@NAMED
def test_named_systems_export(name):
    model = Answer(small.detector(small.NAMED[name]).eval())
    images, others = torch.randn(2, 3, 96, 128), torch.randn(2, 3, 96, 128)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        for given in (images, others):
            for ours, theirs in zip(program.module()(given), model(given), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@NAMED
def test_the_whole_output_exports(name):
    """The nouns are known to the exporter."""

    class Whole(Answer):
        def forward(self, images: Tensor) -> DetectorOutput:
            return self.model.detect(images, ((96, 128), (70, 100)))

    model = Whole(small.detector(small.NAMED[name]).eval())
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():  # which decides of how many tokens there are first-stage boxes
        program = torch.export.export(model, (images,))
        got, expected = program.module()(images), model(images)
    for ours, theirs in zip(tensors(got), tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
