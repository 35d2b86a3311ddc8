"""Layers that are computed again in the backward: the same gradients, less that is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.modeling import small

SIZES = ((96, 128), (128, 70))
NAMED = pytest.mark.parametrize("name", small.NAMED)
HIDDEN = small.ARGUMENTS["feedforward_dim"]


def detector(name: str, *, checkpointing: bool, dropout: float = 0.2) -> nn.Module:
    combination = small.NAMED[name]
    return small.detector(combination, activation_checkpointing=checkpointing, dropout=dropout)


def step(model: nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Losses of a training step, gradients inside the parameters; the next number drawn."""
    torch.manual_seed(3)
    losses = model.train()(small.samples(SIZES, (4, 3)))
    sum(losses.values()).backward()
    return losses, torch.rand(1)


@NAMED
def test_losses_gradients_and_dropout_are_the_same(name):
    kept, anew = (detector(name, checkpointing=flag) for flag in (False, True))
    (expected, drawn), (got, next_drawn) = step(kept), step(anew)
    assert {key: loss.item() for key, loss in got.items()} == {
        key: loss.item() for key, loss in expected.items()
    }
    for (key, ours), theirs in zip(anew.named_parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), key
    assert torch.equal(next_drawn, drawn), "the backward moved the random state"


@NAMED
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_what_is_inside_of_a_layer_is_not_kept(name, part):
    """Each part by itself; nothing as wide as the feed-forward block outlives its forward."""
    model = detector(name, checkpointing=False)
    own = isinstance(small.NAMED[name], small.Bare)
    owners = {"encoder": (model.decoder if own else model).encoder, "decoder": model.decoder}
    owners[part].activation_checkpointing = True
    calls, kept = {"encoder": 0, "decoder": 0}, set()
    inside: list[str] = []

    def enter(owner: str) -> None:
        calls[owner] += 1
        inside.append(owner)

    for owner in calls:
        for layer in owners[owner].layers:
            layer.register_forward_pre_hook(lambda *_, owner=owner: enter(owner))
            layer.register_forward_hook(lambda *_: inside.clear())

    def pack(x: torch.Tensor) -> torch.Tensor:
        if inside and x.ndim and x.shape[-1] == HIDDEN:
            kept.add(inside[0])
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = model.train()(small.samples(SIZES, (4, 3)))
    assert kept == {"encoder", "decoder"} - {part}
    layers = small.ARGUMENTS["num_layers"]
    assert calls == {"encoder": layers, "decoder": layers}
    sum(losses.values()).backward()
    assert calls[part] == 2 * layers
    assert sum(calls.values()) == 3 * layers


def test_evaluation_computes_every_layer_once():
    model = detector("focus", checkpointing=True).eval()
    calls = []
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    answer = model(small.samples(SIZES, (4, 3)))[0]["instances"]
    answer.scores.sum().backward()
    assert len(calls) == 2 * small.ARGUMENTS["num_layers"]


@pytest.mark.parametrize(
    "name",
    [
        "focus",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("deformable_plain", "sparse")),
    ],
)
def test_it_compiles(name):
    """With one layer of each kind: tracing takes its time, and the layers are alike."""
    torch.compiler.reset()
    options = dict(label_noise=0.0, box_noise=0.0, num_layers=1)
    combination = replace(small.NAMED[name], layer_ratios=None)
    gradients = []
    for checkpointing in (False, True):
        model = small.detector(
            combination, activation_checkpointing=checkpointing, **options
        ).train()
        prepared = model.preprocess(small.samples(SIZES, (2, 1)))
        detect = torch.compile(model.detect, backend="aot_eager", fullgraph=True)
        torch.manual_seed(0)
        output = (detect if checkpointing else model.detect)(
            prepared.images,
            prepared.image_sizes,
            prepared.targets,
            record=model.criterion.requires,
        )
        torch.manual_seed(0)
        sum(model.criterion(output, prepared.targets).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.compiler.reset()
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
