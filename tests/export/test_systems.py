"""Every registered part is in a system that is exported, or is refused before that by its name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sparsedet.export import ExportError
from sparsedet.export.check import Differences
from sparsedet.export.graph import DeployedDetector, require_exportable, trace
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.scoring import RandomScorer
from sparsedet.registry import FAMILIES
from tests.export.configured import configured
from tests.export.systems import FORMATS, SIZE, outcomes, pictures, systems, written
from tests.modeling import small

SYSTEMS = systems()
TRAINING = ("loss",)  # families of which no program holds anything


def test_every_registered_part_is_in_one_of_the_systems():
    found = {type(part) for build in SYSTEMS.values() for part in build().modules()}
    for family, registry in FAMILIES.items():
        if family not in TRAINING:
            missing = {name for name, part in registry if part not in found}
            assert not missing, family


def check(name: str, build: Callable[[], nn.Module], formats: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = build()
    reasons = [
        f"{type(part).__name__} {part.not_exportable}"
        for part in model.modules()
        if hasattr(part, "not_exportable")
    ]
    if not isinstance(model, TokenSparseDetector):
        reasons = [f"{type(model).__name__} cannot be exported"]
    for kind, outcome in outcomes(model, formats).items():
        if reasons:
            assert isinstance(outcome, ExportError) and reasons[0] in str(outcome), name
        elif kind == "any size" and isinstance(outcome, ExportError):
            assert "cannot be exported for any size" in str(outcome), name
        else:
            assert isinstance(outcome, Differences) and outcome.small, f"{name}: {outcome}"


ADAPTIVE = next(name for name in SYSTEMS if "AdaptiveSelector-" in name)  # keeps a share of k


@pytest.mark.parametrize("name", [ADAPTIVE, "glance AdaptiveSelector", "glance oracle"])
def test_a_system_is_exported_or_refused_by_name(name):
    check(name, SYSTEMS[name], FORMATS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_exported_or_refused_by_name(name):
    pytest.importorskip("onnxruntime")
    check(name, SYSTEMS[name], FORMATS)


@pytest.mark.slow
def test_every_config_is_exported_or_refused_by_name():
    for name, build in configured().items():
        check(name, build, FORMATS[:1])


class Doubting(RandomScorer):
    """Scores that hang on what the host reads from the picture."""

    def forward(self, features, heads=None, targets=None):
        if features.tokens.mean().item() > 0:
            return super().forward(features)
        return super().forward(features.with_tokens(-features.tokens))


def test_a_part_of_ones_own_that_cannot_be_traced_is_named():
    model = small.detector(small.NAMED["sparse"]).eval()
    model.scorer = Doubting()
    with pytest.raises(ExportError, match=r"model\.scorer cannot be exported: Doubting \(test_sys"):
        trace(model, SIZE, custom_op=True)


def test_a_part_of_ones_own_says_why_it_cannot_be_exported():
    model = small.detector(small.NAMED["sparse"]).eval()
    model.decoder.extra = nn.Identity()
    model.decoder.extra.not_exportable = "asks a server. Set model.decoder."
    with pytest.raises(ExportError, match=r"model\.decoder\.extra .*: Identity asks a server"):
        require_exportable(model)


class Sorts(nn.Module):
    """What parts ask for where equal scores must not change places."""

    def forward(self, x):
        falling = x.sort(dim=1, descending=True, stable=True)
        return falling.values, falling.indices, x.to(torch.uint8).sort(dim=-1, stable=True).indices


def test_equal_values_keep_their_order_in_onnx():
    pytest.importorskip("onnxruntime")
    x = torch.randint(5, (2, 300), generator=torch.Generator().manual_seed(0)).float()
    program = torch.export.export(Sorts(), (x,)).run_decompositions()
    run = written(program, "ONNX")
    for ours, theirs in zip(run(x.numpy()), Sorts()(x), strict=True):
        assert torch.equal(torch.from_numpy(ours), theirs)


@pytest.mark.parametrize("name", [ADAPTIVE, "glance AdaptiveSelector"], ids=["tokens", "tiles"])
def test_of_a_batch_each_picture_keeps_what_it_keeps_alone(name):
    model = SYSTEMS[name]().eval()
    given = torch.from_numpy(pictures(model))
    with torch.inference_mode():
        program = DeployedDetector(model)
        together, alone = program(given), [program(x[None]) for x in given]
    for index, own in enumerate(alone):
        assert set(together[3][index].tolist()) - {-1} == set(own[3][0].tolist()) - {-1}
        torch.testing.assert_close(together[0][index], own[0][0], atol=1e-4, rtol=1e-4)
