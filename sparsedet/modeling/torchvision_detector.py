"""Detectors of torchvision, trained and evaluated as ours are, to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, list_models
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from sparsedet.modeling.heads import require_classes
from sparsedet.modeling.inputs import Batch, deviations, make_batch, make_instances
from sparsedet.modeling.stages import Size, Targets
from sparsedet.structures import cxcywh_to_xyxy

_KINDS = ("fasterrcnn", "retinanet", "fcos", "ssd")  # others need masks or keypoints, too


class TorchvisionDetector(nn.Module):
    """Faster R-CNN, RetinaNet, FCOS or SSD of torchvision.

    Images are resized by the mapper and normalized here; torchvision does neither.

    Args:
        name: builder in ``torchvision.models.detection``, such as "fasterrcnn_resnet50_fpn".
        num_classes: classes, not counting the background of Faster R-CNN and SSD.
        backbone: replaces that of the builder; not for SSD.
        in_channels: channels of its maps by name, fine to coarse. A level is added to four maps by
            subsampling (Faster R-CNN), to three maps two by convolutions (RetinaNet, FCOS).
        weights: torchvision weights of the builder's backbone, such as "IMAGENET1K_V1".
        anchor_scale: factor of torchvision's anchor sizes, which are for short sides of 800.
        max_detections: detections per image.
        pixel_mean: mean of the RGB channels, images being in 0..255.
        pixel_std: their standard deviation.

    Raises:
        ValueError: for an unknown name, or arguments that do not go with it.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        backbone: nn.Module | None = None,
        in_channels: Mapping[str, int] | None = None,
        weights: str | None = None,
        anchor_scale: float = 1.0,
        max_detections: int = 100,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        require_classes(num_classes, "TorchvisionDetector")
        names = [each for each in list_models(detection) if each.startswith(_KINDS)]
        if name not in names:
            raise ValueError(f"TorchvisionDetector.name must be one of {names}, got {name!r}.")
        self.num_classes, self.background = num_classes, int(name.startswith(("faster", "ssd")))
        outputs = num_classes + self.background
        try:
            model = get_model(name, weights=None, weights_backbone=weights, num_classes=outputs)
        except (KeyError, OSError) as error:
            raise ValueError(
                f"TorchvisionDetector.weights {weights!r} of {name} could not be had ({error}). "
                "Set model.weights=null to begin from random ones."
            ) from error
        self.detector: Any = model
        if backbone is not None:
            self._replace_backbone(backbone, in_channels or {})
        if anchor_scale != 1:
            self._scale_anchors(anchor_scale)
        self.detector.transform = _AsGiven(0, 0, [], [])
        getattr(self.detector, "roi_heads", self.detector).detections_per_img = max_detections
        self.detector.backbone.register_forward_hook(_in_float)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer(
            "pixel_std", deviations(pixel_std, "TorchvisionDetector"), persistent=False
        )

    def _replace_backbone(self, backbone: nn.Module, in_channels: Mapping[str, int]) -> None:
        own: Any = self.detector.backbone
        if not hasattr(own, "fpn") or len(in_channels) not in (3, 4):
            raise ValueError(
                "TorchvisionDetector.backbone goes with in_channels of three or four maps, and not "
                f"with SSD, got {dict(in_channels)}. Set model.in_channels, or model.backbone=null."
            )
        width, norm = own.out_channels, nn.BatchNorm2d if len(own.fpn.inner_blocks[0]) > 1 else None
        extra = LastLevelMaxPool() if len(in_channels) == 4 else LastLevelP6P7(width, width)
        own.body = backbone
        backbone.register_forward_hook(partial(_pick, tuple(in_channels)))
        own.fpn = FeaturePyramidNetwork([*in_channels.values()], width, extra, norm_layer=norm)
        if hasattr(self.detector, "roi_heads"):
            self.detector.roi_heads.box_roi_pool.featmap_names = list(in_channels)

    def _scale_anchors(self, scale: float) -> None:
        owner = getattr(self.detector, "rpn", self.detector)
        own = owner.anchor_generator
        if not isinstance(own, AnchorGenerator):
            raise ValueError(
                f"TorchvisionDetector.anchor_scale must be 1 for SSD, whose anchors are shares of "
                f"the image, got {scale}. Set model.anchor_scale=1."
            )
        sizes = tuple(tuple(scale * size for size in level) for level in own.sizes)
        owner.anchor_generator = AnchorGenerator(sizes, own.aspect_ratios)

    @property
    def backbone(self) -> nn.Module:
        """The part that makes maps of images, without the feature pyramid."""
        return getattr(self.detector.backbone, "body", self.detector.backbone)

    @property
    def stages(self) -> list[tuple[str, nn.Module]]:
        """The parts in the order in which they run: ``backbone``, ``neck`` and the heads."""
        found = {"backbone": self.backbone, "neck": getattr(self.detector.backbone, "fpn", None)}
        found |= {name: getattr(self.detector, name, None) for name in ("rpn", "roi_heads", "head")}
        return [(name, part) for name, part in found.items() if part is not None]

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Train or predict, see ``TokenSparseDetector.forward``; there is no ``keep_ratio``."""
        batch = self.preprocess(batched_inputs)
        if not self.training:
            return self.postprocess(self.detect(batch.images, batch.image_sizes), batched_inputs)
        if batch.targets is None:
            raise ValueError("TorchvisionDetector: samples must have 'instances' in training.")
        return self.detect(batch.images, batch.image_sizes, batch.targets)

    def preprocess(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Batch:
        """Normalize and pad, see ``make_batch``."""
        return make_batch(self, batched_inputs)

    def detect(
        self, images: Tensor, image_sizes: Sequence[Size], targets: Targets | None = None
    ) -> Any:
        """What torchvision answers to normalized images ``[B 3 H W]``: losses, or detections.

        Detections are dicts of ``boxes`` (xyxy in pixels of the unpadded image), ``labels`` (from 1
        where there is a background) and ``scores``.
        """
        given = [image[:, :h, :w] for image, (h, w) in zip(images, image_sizes, strict=True)]
        wanted = None
        if targets is not None:
            scales = [
                boxes.new_tensor((w, h, w, h))
                for boxes, (h, w) in zip(targets.boxes, image_sizes, strict=True)
            ]
            wanted = [
                {"boxes": cxcywh_to_xyxy(boxes) * scale, "labels": labels + self.background}
                for boxes, labels, scale in zip(targets.boxes, targets.labels, scales, strict=True)
            ]
        dtype = next(self.detector.parameters()).dtype
        with nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype):
            return self.detector(given, wanted)

    def postprocess(
        self, output: Sequence[Mapping[str, Tensor]], batched_inputs: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Detections of ``detect`` as ``Instances`` in the original image."""
        results = []
        for found, sample in zip(output, batched_inputs, strict=True):
            h, w = sample["image"].shape[-2:]
            boxes = found["boxes"].float() / found["boxes"].new_tensor((w, h, w, h))
            labels, scores = found["labels"] - self.background, found["scores"].float()
            results.append({"instances": make_instances(sample, (h, w), boxes, scores, labels)})
        return results


def _pick(
    names: tuple[str, ...], backbone: nn.Module, images: Any, maps: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The maps of these names, in their order."""
    if missing := [name for name in names if name not in maps]:
        raise ValueError(
            f"TorchvisionDetector.in_channels names {missing}, the backbone gives {sorted(maps)}. "
            "Set model.in_channels to maps of model.backbone."
        )
    return {name: maps[name] for name in names}


def _in_float(backbone: nn.Module, images: Any, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps whose format, which becomes that of the anchors, can hold coordinates."""
    return {name: x.float() for name, x in maps.items()}


class _AsGiven(GeneralizedRCNNTransform):
    """Pads images; their size and colors stay."""

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target
