"""Layers that are computed again in the backward: the same gradients, less that is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet import comm
from sparsedet.engine.launch import launch
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
    getattr(model, part).activation_checkpointing = True
    calls, kept = {"encoder": 0, "decoder": 0}, set()
    inside: list[str] = []

    def enter(owner: str) -> None:
        calls[owner] += 1
        inside.append(owner)

    for owner in calls:
        for layer in getattr(model, owner).layers:
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


@pytest.mark.parametrize("name", ["deformable_plain", "sparse", "focus"])
def test_it_compiles(name):
    torch.compiler.reset()
    quiet = dict(label_noise=0.0, box_noise=0.0)
    gradients = []
    for checkpointing in (False, True):
        model = small.detector(
            small.NAMED[name], activation_checkpointing=checkpointing, **quiet
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


def _gradients(device: torch.device, folder: str) -> int:
    """Gradients of one step of two processes, with and without checkpointing."""
    torch.set_num_threads(1)
    found = []
    for checkpointing in (False, True):
        model = detector("focus", checkpointing=checkpointing)
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.manual_seed(0)
        rank = comm.get_rank()
        losses = wrapped.train()(small.samples(SIZES, (4, 3))[rank : rank + 1])
        sum(losses.values()).backward()
        found.append({key: p.grad for key, p in model.named_parameters()})
    if comm.get_rank() == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    return 0


def test_it_works_in_several_processes(tmp_path: Path) -> None:
    assert launch(_gradients, (str(tmp_path),), num_processes=2, device_type="cpu") == 0
    expected, got = torch.load(tmp_path / "gradients.pt")
    for key in expected:
        assert torch.equal(got[key], expected[key]), key
