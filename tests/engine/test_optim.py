"""Parameter groups and schedules."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, CosineParamScheduler
from torch import nn

from sparsedet.config import LazyConfig, instantiate
from sparsedet.engine import WarmupParamScheduler, clipping_adamw, param_groups, scaled_lr


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.sampling_offsets = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.shared = self.head
        self.norm = nn.LayerNorm(4)


def _by_name(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len(found) == len({name for name, _ in found})  # each once
    return dict(found)


def test_rules() -> None:
    model = Model()
    model.backbone[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    rules = [
        {"pattern": r"^backbone\.", "lr_factor": 0.1},
        {"pattern": "sampling_offsets", "lr_factor": 0.5, "weight_decay": 0.2},
        {"pattern": r"backbone\.1", "weight_decay": 0.3},
    ]
    found = _by_name(model, param_groups(model, 2.0, rules=rules))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trainable
    assert found["backbone.0.weight"]["lr"] == pytest.approx(0.2)
    assert "weight_decay" not in found["backbone.0.weight"]
    assert found["backbone.1.weight"]["lr"] == pytest.approx(0.2)  # from the first rule
    assert found["backbone.1.weight"]["weight_decay"] == 0.3  # from the third
    assert found["sampling_offsets.bias"]["lr"] == 1.0
    assert found["sampling_offsets.bias"]["weight_decay"] == 0.2
    assert found["head.weight"]["lr"] == 2.0


def test_of_rules_that_match_the_last_one_wins() -> None:
    """For the rate, too, and the factors do not multiply."""
    rules = [
        {"pattern": "backbone", "lr_factor": 0.1, "weight_decay": 0.2},
        {"pattern": r"backbone\.0", "lr_factor": 0.5, "weight_decay": 0.3},
    ]
    model = Model()
    found = _by_name(model, param_groups(model, 2.0, rules=rules))
    values = {name: (group["lr"], group.get("weight_decay")) for name, group in found.items()}
    assert values["backbone.0.weight"] == (1.0, 0.3)
    assert values["backbone.1.weight"] == (0.2, 0.2)


def test_norms_and_biases() -> None:
    model = Model()
    groups = param_groups(model, 1.0, weight_decay_norm=0.0, weight_decay_bias=0.5)
    found = _by_name(model, groups)
    assert found["norm.weight"]["weight_decay"] == found["norm.bias"]["weight_decay"] == 0.0
    assert found["backbone.1.weight"]["weight_decay"] == 0.0
    assert found["head.bias"]["weight_decay"] == 0.5
    assert "weight_decay" not in found["head.weight"]


def test_every_kind_of_norm_is_one() -> None:
    norms = [
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.RMSNorm(4),
    ]
    model = nn.Sequential(nn.Linear(4, 4), *norms)
    found = _by_name(model, param_groups(model, 1.0, weight_decay_norm=0.0, weight_decay_bias=0.5))
    for name, group in found.items():
        expected = {"0.weight": None, "0.bias": 0.5}.get(name, 0.0)
        assert group.get("weight_decay") == expected, name


def test_a_frozen_part_may_have_a_rule() -> None:
    model = Model()
    model.backbone.requires_grad_(False)
    groups = param_groups(model, 1.0, rules=[{"pattern": "backbone", "lr_factor": 0.1}])
    assert [group["lr"] for group in groups] == [1.0]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"pattern": "bakcbone", "lr_factor": 0.1}, "'bakcbone', which matches none"),
        ({"pattern": "backbone"}, "must have a pattern and"),
        ({"lr_factor": 0.1}, "must have a pattern and"),
        ({"pattern": "backbone", "lr": 0.1}, "must have a pattern and"),
        ({"pattern": "(", "lr_factor": 0.1}, "regular expressions"),
        ({"pattern": 5, "lr_factor": 0.1}, "regular expressions"),
        ({"pattern": "backbone", "lr_factor": -0.1}, "numbers of at least 0 as lr_factor"),
        ({"pattern": "backbone", "lr_factor": True}, "numbers of at least 0 as lr_factor"),
        ({"pattern": "backbone", "lr_factor": math.inf}, "numbers of at least 0 as lr_factor"),
        ({"pattern": "backbone", "weight_decay": None}, "numbers of at least 0 as weight_decay"),
    ],
)
def test_rules_that_mean_nothing_are_errors(rule: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        param_groups(Model(), 1.0, rules=[rule])


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="must have trainable parameters"):
        param_groups(Model().requires_grad_(False), 1.0)


def test_scaled_lr() -> None:
    assert scaled_lr(2e-4, 16) == 2e-4
    assert scaled_lr(2e-4, 64) == pytest.approx(4e-4)
    with pytest.raises(ValueError, match="batch_size"):
        scaled_lr(2e-4, 0)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_clipping_in_the_optimizer_is_that_of_the_trainer(scale: float | None) -> None:
    """With a scale that a gradient scaler left to the fused kernel, too."""
    start = [torch.randn(4, 3), torch.randn(5)]
    gradients = [torch.randn(4, 3), torch.randn(5)]
    settings = dict(betas=(0.8, 0.9), weight_decay=0.1, fused=True)
    ours, theirs = ([nn.Parameter(each.clone()) for each in start] for _ in range(2))
    groups = [{"params": ours[:1]}, {"params": ours[1:], "lr": 0.3}]
    clipping = clipping_adamw(groups, 0.5, max_norm=0.01, **settings)
    plain = torch.optim.AdamW(
        [{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.3}], 0.5, **settings
    )
    for step in range(3):
        for mine, other, gradient in zip(ours, theirs, gradients, strict=True):
            mine.grad = gradient * (step + 1) * (scale or 1.0)
            other.grad = gradient * (step + 1)
        if scale is not None:
            clipping.grad_scale, clipping.found_inf = torch.tensor(scale), torch.tensor(0.0)
        clipping.step()
        nn.utils.clip_grad_norm_(theirs, 0.01)
        plain.step()
    for mine, other, begin in zip(ours, theirs, start, strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mine, begin, atol=0.1)


def test_what_clipping_adamw_is_given_is_what_it_does() -> None:
    """Another norm; and without gradients, the decay alone moves the weights."""
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    parameter.grad = torch.tensor([30.0, -40.0])
    clipping_adamw([parameter], 0.0, max_norm=1.0, norm_type=1.0, weight_decay=0.0).step()
    assert parameter.grad.abs().sum().item() == pytest.approx(1.0)
    parameter.grad = torch.zeros(2)
    clipping_adamw([parameter], 0.1, weight_decay=0.5).step()
    assert parameter.tolist() == pytest.approx([3.0 * 0.95, 4.0 * 0.95])


def test_a_norm_that_cannot_be_reached() -> None:
    with pytest.raises(ValueError, match=r"max_norm must be positive, got 0\.0"):
        clipping_adamw([nn.Parameter(torch.zeros(1))], 0.1, max_norm=0.0)


def test_warmup() -> None:
    cosine = CosineParamScheduler(1.0, 0.0)
    schedule = WarmupParamScheduler(cosine, warmup_length=0.2, warmup_factor=0.1)
    end = cosine(0.2)
    assert schedule(0.0) == pytest.approx(0.1 * end)
    assert schedule(0.1) == pytest.approx(0.55 * end)
    assert [schedule(w) for w in (0.2, 0.7, 1.0)] == [cosine(w) for w in (0.2, 0.7, 1.0)]
    plain = WarmupParamScheduler(cosine, warmup_length=0.0)
    assert [plain(w) for w in (0.0, 0.5)] == [cosine(w) for w in (0.0, 0.5)]
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1\.5"):
        WarmupParamScheduler(ConstantParamScheduler(1.0), warmup_length=1.5)


def test_the_shipped_recipe(root: Path) -> None:
    cfg = LazyConfig.load(root / "configs/common/optim.py")
    cfg.optimizer.params.model = Model()
    optimizer = instantiate(cfg.optimizer)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([2e-5, 2e-4])
    schedule = instantiate(cfg.lr_multiplier)
    assert [schedule(epoch / 50) for epoch in (0, 39, 40, 49)] == [1.0, 1.0, 0.1, 0.1]
    cosine = instantiate(cfg.cosine_lr_multiplier)
    assert cosine(0.0) < cosine(0.01) < cosine(0.02) > cosine(0.5) > cosine(1.0)
