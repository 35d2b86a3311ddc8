"""What a training step waits for: the costs of the matching, once, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.modeling import small

pytestmark = pytest.mark.gpu
SIZES = ((96, 128), (128, 70))


@contextmanager
def waits() -> Iterator[list[str]]:
    """Collects what waited for the device."""
    found: list[str] = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [str(each.message) for each in caught if "synchroniz" in str(each.message)]


@pytest.mark.parametrize("counts", [(4, 3), (0, 3)])
@pytest.mark.parametrize("name", small.NAMED)
def test_the_criterion_waits_once(name, counts):
    model = small.detector(small.NAMED[name]).to("cuda").train()
    batch = model.preprocess(small.samples(SIZES, counts))
    output = model.detect(
        batch.images, batch.image_sizes, batch.targets, record=model.criterion.requires
    )
    with waits() as found:
        losses = model.criterion(output, batch.targets)
        total = torch.stack(list(losses.values())).sum()
    assert len(found) == 1, found
    assert total.isfinite()


@pytest.mark.parametrize("name", ["dn_deformable", "dino"])
def test_denoising_never_waits(name):
    model = small.detector(small.NAMED[name]).to("cuda").train()
    batch = model.preprocess(small.samples(SIZES, (4, 3)))
    maps = model.neck(model.backbone(batch.images))
    queries, _ = model.query_initializer(model.embed(maps, batch.image_sizes), model.heads)
    with waits() as found:
        noised = model.denoising.sample(batch.targets)
        model.denoising.prepend(queries, noised)
        model.denoising.split([], noised, batch.targets)
    assert not found


def test_losses_and_gradients_are_those_of_the_cpu():
    results = []
    for device in ("cpu", "cuda"):
        model = small.detector(small.NAMED["deformable_refine"]).to(device).train()
        losses = model(small.samples(SIZES, (4, 3)))
        sum(losses.values()).backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
        results.append(({key: loss.item() for key, loss in losses.items()}, gradient))
    (expected, theirs), (got, ours) = results
    assert got == pytest.approx(expected, rel=1e-3)
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()
