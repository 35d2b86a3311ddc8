"""Models of detrex from its own configs, made small, and a padded batch for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

DINO = "dino/configs/dino-resnet/dino_r50_4scale_12ep.py"
DEFORMABLE = "deformable_detr/configs/deformable_detr_r50_50ep.py"
TWO_STAGE = "deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py"
SIZES = ((96, 128), (70, 100))  # the second is padded, and a multiple of no stride


def shrink(model: DictConfig) -> DictConfig:
    """Two layers, 40 queries and 3 classes, on the CPU; in place."""
    model.device = "cpu"
    model.num_queries, model.num_classes = 40, 3
    model.criterion.num_classes = 3
    model.select_box_nums_for_evaluation = 20
    for name in ("encoder", "decoder"):
        part = model.transformer[name]
        if part.get("selector", {}).get("layer_ratios"):
            part.selector.layer_ratios = [0.4, 0.2]
        part = part.encoder if "encoder" in part else part
        part.num_layers = 2
    if "dn_number" in model:
        model.dn_number = 10
    return model


def config(path: str) -> DictConfig:
    """Model of a project's config."""
    from sparsedet.interop.detrex import project_config

    return shrink(project_config(path).model)


def build(node: DictConfig, seed: int = 0) -> nn.Module:
    """What a config describes, in training mode, from fixed random weights."""
    from detectron2.config import instantiate

    torch.manual_seed(seed)
    return instantiate(node).train()


def samples(sizes=SIZES, *, objects=(3, 2)) -> list[dict[str, Any]]:
    """Random pictures and boxes, as detectron2's mappers make them."""
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(1)
    found = []
    for (height, width), count in zip(sizes, objects, strict=True):
        low, size = torch.rand(2, count, 2, generator=generator)
        corners = torch.cat((0.5 * low, 0.5 * low + 0.1 + 0.4 * size), dim=1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(corners * torch.tensor([width, height, width, height]))
        instances.gt_classes = torch.randint(3, (count,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator).float()
        found.append(dict(image=image, instances=instances, height=height, width=width))
    return found


def losses(model: Callable[[Any], Any], batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Losses of a batch; noise is drawn alike every time."""
    torch.manual_seed(5)
    return model(batch)


def wake(model: nn.Module) -> nn.Module:
    """Fill parameters that begin with zero, behind which nothing has a gradient."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.02)
    return model
