"""Backbones and the neck: names, sizes and what is trained."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from sparsedet.modeling import ChannelMapper, TimmBackbone, TorchvisionResNet, TorchvisionSwin
from sparsedet.modeling.stages import level_size
from sparsedet.structures import pad_images

BACKBONES = {
    "resnet": (lambda: TorchvisionResNet("resnet18"), dict(res3=128, res4=256, res5=512)),
    "timm": (lambda: TimmBackbone("test_resnet"), dict(res3=48, res4=192, res5=96)),
    "swin": (TorchvisionSwin, dict(res3=192, res4=384, res5=768)),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(64, 96), (33, 71)])
def test_maps_have_the_sizes_that_the_stages_count_on(name, size):
    build, channels = BACKBONES[name]
    backbone = build().eval()
    neck = ChannelMapper(channels, (8, 16, 32), embed_dim=32)
    images, _ = pad_images([torch.zeros(3, *size)], backbone.size_divisibility)
    with torch.no_grad():
        maps = backbone(images)
        levels = neck(maps)
    assert {key: x.shape[1] for key, x in maps.items()} == channels
    assert neck.strides == (8, 16, 32, 64)
    padded = tuple(images.shape[-2:])
    assert [tuple(x.shape[1:]) for x in levels] == [
        (32, *level_size(padded, stride)) for stride in neck.strides
    ]
    for x, stride in zip(levels, neck.strides, strict=True):
        rows, columns = level_size(size, stride)
        assert rows <= x.shape[2] and columns <= x.shape[3]


@pytest.mark.parametrize(
    ("freeze_at", "frozen"), [(0, []), (1, ["conv1"]), (2, ["conv1", "layer1"])]
)
def test_first_stages_are_fixed(freeze_at, frozen):
    backbone = TorchvisionResNet("resnet18", freeze_at=freeze_at)
    stages = {}
    for name, parameter in backbone.named_parameters():
        stages.setdefault(name.split(".")[1], set()).add(parameter.requires_grad)
    assert [name for name, trained in stages.items() if trained == {False}] == frozen
    assert all(stages[name] == {True} for name in stages if name not in frozen)


def test_norms_of_pretrained_weights_do_not_move():
    backbone = TorchvisionResNet("resnet18").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules())
    moving = TorchvisionResNet("resnet18", norm="bn", freeze_at=0).train()
    mean = moving.body.bn1.running_mean.clone()
    moving(torch.randn(2, 3, 64, 64))
    assert not torch.equal(moving.body.bn1.running_mean, mean)
    with pytest.raises(ValueError, match=r"norm='bn' needs freeze_at=0.*, got 2"):
        TorchvisionResNet("resnet18", norm="bn")


def test_the_coarsest_level_is_made_from_the_coarsest_map():
    neck = ChannelMapper(dict(res4=8, res5=8), (16, 32), embed_dim=32, num_levels=4).eval()
    maps = {"res4": torch.randn(1, 8, 16, 16), "res5": torch.randn(1, 8, 8, 8)}
    with torch.no_grad():
        levels = neck(maps)
        assert torch.equal(levels[2], neck.extra_convs[0](maps["res5"]))
        assert torch.equal(levels[3], neck.extra_convs[1](levels[2]))
    assert neck.strides == (16, 32, 64, 128)
