"""Detectors of torchvision, trained and evaluated like ours, for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, list_models
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from sparsedet.modeling.inputs import ImageDetector, make_instances
from sparsedet.modeling.neck import Pyramid
from sparsedet.modeling.stages import Size, Targets
from sparsedet.structures import cxcywh_to_xyxy

_KINDS = ("fasterrcnn", "retinanet", "fcos", "ssd")  # others also need masks or keypoints


class TorchvisionDetector(ImageDetector):
    """Faster R-CNN, RetinaNet, FCOS or SSD of torchvision.

    Images are resized by the mapper and normalized here; torchvision does neither.

    Args:
        name: builder in ``torchvision.models.detection``, such as "fasterrcnn_resnet50_fpn".
        num_classes: classes, not counting the background of Faster R-CNN and SSD.
        backbone: replaces the backbone of the builder; not for SSD.
        in_channels: channels of its maps by name, fine to coarse. With four maps, a level is added
            by subsampling (Faster R-CNN); with three maps, two levels by convolutions (RetinaNet,
            FCOS).
        weights: torchvision weights of the builder's backbone, such as "IMAGENET1K_V1".
        anchor_scale: factor of torchvision's anchor sizes, which are for short sides of 800.
        max_detections: detections per image.
        pixel_mean: mean of the RGB channels, images being in 0..255.
        pixel_std: their standard deviation.

    Raises:
        ValueError: for an unknown name, or arguments that do not fit it.
    """

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
        super().__init__(num_classes, pixel_mean=pixel_mean, pixel_std=pixel_std)
        names = [each for each in list_models(detection) if each.startswith(_KINDS)]
        if name not in names:
            raise ValueError(f"TorchvisionDetector.name must be one of {names}, got {name!r}.")
        self.background = int(name.startswith(("faster", "ssd")))
        outputs = num_classes + self.background
        try:
            model: Any = get_model(name, weights_backbone=weights, num_classes=outputs)
        except (KeyError, OSError) as error:
            raise ValueError(
                f"TorchvisionDetector.weights {weights!r} of {name} could not be loaded ({error}). "
                "Set model.weights=null to start from random weights."
            ) from error
        self.detector = model
        if name.startswith("ssd") and (backbone is not None or anchor_scale != 1):
            raise ValueError(
                f"TorchvisionDetector: SSD keeps its backbone and anchors, got anchor_scale="
                f"{anchor_scale} and {type(backbone).__name__}. Set model.backbone=null "
                "model.anchor_scale=1."
            )
        if not anchor_scale > 0:
            raise ValueError(
                f"TorchvisionDetector.anchor_scale must be positive, got {anchor_scale}. Set "
                "model.anchor_scale."
            )
        if backbone is not None:
            self._replace_backbone(backbone, in_channels or {})
        if anchor_scale != 1:
            owner = getattr(model, "rpn", model)
            own = owner.anchor_generator
            sizes = tuple(tuple(anchor_scale * size for size in level) for level in own.sizes)
            owner.anchor_generator = AnchorGenerator(sizes, own.aspect_ratios)
        model.transform = _AsGiven(0, 0, [], [])
        getattr(model, "roi_heads", model).detections_per_img = max_detections
        model.backbone.register_forward_hook(_in_float)

    def _replace_backbone(self, backbone: nn.Module, in_channels: Mapping[str, int]) -> None:
        own = self.detector.backbone
        norm = nn.BatchNorm2d if len(own.fpn.inner_blocks[0]) > 1 else None
        own.body, own.fpn = backbone, Pyramid(in_channels, embed_dim=own.out_channels, norm=norm)
        if hasattr(self.detector, "roi_heads"):
            self.detector.roi_heads.box_roi_pool.featmap_names = list(in_channels)

    @property
    def backbone(self) -> nn.Module:
        """The part that makes maps of images, without the feature pyramid."""
        return getattr(self.detector.backbone, "body", self.detector.backbone)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Train or predict, see ``TokenSparseDetector.forward``; there is no ``keep_ratio``."""
        batch = self.preprocess(batched_inputs)
        if self.training:
            return self.detect(batch.images, batch.image_sizes, self.require_targets(batch))
        return self.postprocess(self.detect(batch.images, batch.image_sizes), batched_inputs)

    def detect(
        self, images: Tensor, image_sizes: Sequence[Size], targets: Targets | None = None
    ) -> Any:
        """The output of torchvision for normalized images ``[B 3 H W]``: losses, or detections.

        Detections are dicts of ``boxes`` (xyxy in pixels of the unpadded image), ``labels`` (from 1
        if there is a background class) and ``scores``.
        """
        given = [image[:, :h, :w] for image, (h, w) in zip(images, image_sizes, strict=True)]
        wanted = targets and [
            dict(boxes=boxes * boxes.new_tensor((w, h, w, h)), labels=labels + self.background)
            for boxes, labels, (h, w) in zip(
                map(cxcywh_to_xyxy, targets.boxes), targets.labels, image_sizes, strict=True
            )
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


def _in_float(backbone: nn.Module, images: Any, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps in a dtype that can represent coordinates, since anchors take the dtype of maps."""
    return {name: x.float() for name, x in maps.items()}


class _AsGiven(GeneralizedRCNNTransform):
    """Pads images without resizing or normalizing them."""

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target
