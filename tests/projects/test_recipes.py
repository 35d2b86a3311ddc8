"""Recipes decay, freeze and slow down what the code that they come from does."""

from __future__ import annotations

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from sparsedet.config import LazyConfig, instantiate
from tests.house.source import ROOT

DINO = "projects/dino/configs/dino_r50_4scale_{}ep.py"
OTHERS = {
    "focus": "projects/focus_detr/configs/focus_detr_r50_36ep.py",
    "dn": "projects/dn_deformable_detr/configs/dn_deformable_detr_r50_50ep.py",
    "sparse": "projects/sparse_detr/configs/sparse_detr_r50_rho30_50ep.py",
}


def built(path: str) -> tuple[DictConfig, nn.Module, dict[str, dict]]:
    """Config, model on the meta device, and the optimizer's group of every parameter."""
    cfg = LazyConfig.load(ROOT / path)
    cfg.model.backbone.weights = None
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = instantiate(cfg.optimizer).param_groups
    return cfg, model, {names[id(each)]: group for group in groups for each in group["params"]}


@pytest.mark.parametrize(("epochs", "drop"), [(12, 11), (24, 20), (36, 30)])
def test_the_rate_falls_once(epochs, drop):
    cfg = LazyConfig.load(ROOT / DINO.format(epochs))
    assert cfg.train.epochs == epochs
    schedule = instantiate(cfg.lr_multiplier)
    assert [schedule(x / epochs) for x in (0, drop - 0.01, drop + 0.01, epochs - 0.01)] == (
        pytest.approx([1, 1, 0.1, 0.1])
    )


@pytest.mark.parametrize("path", [DINO.format(12), OTHERS["focus"], OTHERS["dn"]])
def test_recipes_of_detrex(path):
    cfg, model, groups = built(path)
    assert cfg.dataloader.train.total_batch_size == 16
    frozen = {key for key, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {"backbone.body.conv1.weight"}
    norms = {
        f"{key}.{name}"
        for key, module in model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm))
        for name, _ in module.named_parameters()
    }
    for key, group in groups.items():
        assert group["lr"] == pytest.approx(1e-5 if key.startswith("backbone.") else 1e-4), key
        assert group["weight_decay"] == (0 if key in norms else 1e-4), key


def test_recipe_of_sparse_detr():
    _, model, groups = built(OTHERS["sparse"])
    frozen = {key for key, each in model.named_parameters() if not each.requires_grad}
    assert {key.split(".")[2] for key in frozen} == {"conv1", "layer1"}
    for key, group in groups.items():
        slow = key.startswith("backbone.") or "sampling_offsets" in key
        assert group["lr"] == pytest.approx(2e-5 if slow else 2e-4), key
        assert group["weight_decay"] == 1e-4, key
