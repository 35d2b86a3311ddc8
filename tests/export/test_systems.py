"""Every registered part is in a system that is exported, or is refused before that by its name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsedet.export import ExportError
from sparsedet.export.check import Differences
from sparsedet.export.graph import require_exportable, trace
from sparsedet.modeling.scoring import RandomScorer
from sparsedet.registry import FAMILIES
from tests.export.systems import FORMATS, SIZE, outcomes, systems
from tests.modeling import small

SYSTEMS = systems()
TRAINING = ("loss",)  # families of which no program holds anything


def test_every_registered_part_is_in_one_of_the_systems():
    found = {type(part) for build in SYSTEMS.values() for part in build().modules()}
    for family, registry in FAMILIES.items():
        if family not in TRAINING:
            missing = {name for name, part in registry if part not in found}
            assert not missing, family


def check(name: str, formats: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = SYSTEMS[name]()
    reasons = [
        f"{type(part).__name__} {part.not_exportable}"
        for part in model.modules()
        if hasattr(part, "not_exportable")
    ]
    for outcome in outcomes(model, formats).values():
        if reasons:
            assert isinstance(outcome, ExportError) and reasons[0] in str(outcome)
        else:
            assert isinstance(outcome, Differences) and outcome.small, outcome


@pytest.mark.parametrize("name", ["focus", "glance AdaptiveSelector", "glance oracle"])
def test_a_system_is_exported_or_refused_by_name(name):
    check(name, FORMATS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_exported_or_refused_by_name(name):
    pytest.importorskip("onnxruntime")
    check(name, FORMATS)


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
