"""Inputs of a detector, checked before anything is computed, and its outputs.

Without the checks, a picture in the wrong range or layout would give nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.modeling.heads import require_classes
from sparsedet.modeling.stages import Glance, Size, Targets
from sparsedet.structures import Boxes, Instances, pad_images, xyxy_to_cxcywh

__all__ = ["Batch", "ImageDetector", "check_image", "check_samples", "make_instances", "make_tiles"]


@dataclass(frozen=True)
class Batch:
    """A preprocessed batch.

    Attributes:
        images: normalized and zero-padded.
        image_sizes: (h, w) of each unpadded image.
        targets: None if a sample has no instances.
    """

    images: Float[Tensor, "B 3 H W"]
    image_sizes: tuple[Size, ...]
    targets: Targets | None


class ImageDetector(nn.Module):
    """Base of all detectors: preprocessing of the pictures.

    The sides of a batch become multiples of ``backbone.size_divisibility``, if it exists.

    Args:
        num_classes: classes.
        pixel_mean: mean of the RGB channels, images being in 0..255.
        pixel_std: their standard deviation.

    Raises:
        ValueError: for an invalid number of classes, or a deviation that is not positive.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, num_classes: int, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        super().__init__()
        require_classes(num_classes, type(self).__name__)
        if not all(each > 0 for each in pixel_std):
            raise ValueError(
                f"{type(self).__name__}.pixel_std must be positive numbers, got {pixel_std}. "
                "Set model.pixel_std."
            )
        self.num_classes = num_classes
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """The number of which the sides of the backbone's input must be multiples."""
        return getattr(self.backbone, "size_divisibility", 0) or 1

    def preprocess(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Batch:
        """Normalize and pad the images; targets become cxcywh in [0, 1] of the unpadded image.

        Args:
            batched_inputs: as ``forward`` takes them.

        Raises:
            ValueError: for pictures that are not (3, h, w) in 0..255, or labels out of range.
        """
        owner = type(self).__name__
        check_samples(batched_inputs, owner)
        images = [
            # bytes are copied, and become floats on the device
            (each["image"].to(self.device, non_blocking=True).float() - self.pixel_mean)
            / self.pixel_std
            for each in batched_inputs
        ]
        padded, sizes = pad_images(images, self.size_divisibility)
        if not all("instances" in sample for sample in batched_inputs):
            return Batch(padded, sizes, None)
        return Batch(padded, sizes, self._make_targets(batched_inputs, sizes))

    def require_targets(self, batch: Batch) -> Targets:
        """The targets of a batch.

        Raises:
            ValueError: a sample had no instances.
        """
        if batch.targets is None:
            raise ValueError(
                f"{type(self).__name__}: samples must have 'instances' in training, got none."
            )
        return batch.targets

    def _make_targets(self, samples: Sequence[Mapping[str, Any]], sizes: Sequence[Size]) -> Targets:
        boxes, labels = [], []
        for sample, (h, w) in zip(samples, sizes, strict=True):
            instances, count = sample["instances"], self.num_classes
            classes = instances.gt_classes
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < count:
                raise ValueError(
                    f"{type(self).__name__}: gt_classes must be in [0, {count}), got "
                    f"{sorted(set(classes.tolist()))} in image {sample.get('image_id')}. Set "
                    "dataset.num_classes."
                )
            xyxy = instances.gt_boxes.tensor.float()
            cxcywh = xyxy_to_cxcywh(xyxy) / xyxy.new_tensor((w, h, w, h))
            boxes.append(cxcywh.to(self.device, non_blocking=True))
            labels.append(classes.long().to(self.device, non_blocking=True))
        return Targets(tuple(boxes), tuple(labels))


def make_instances(
    sample: Mapping[str, Any], image_size: Size, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor
) -> Instances:
    """Detections scaled to the size that a sample asks for.

    Args:
        sample: its ``height`` and ``width``, if present, are that size.
        image_size: (h, w) of the unpadded image; the size otherwise.
        boxes_xyxy: ``[n 4]`` in [0, 1] of the image; boxes are clipped to the image.
        scores: ``[n]``.
        labels: ``[n]``.
    """
    height, width = sample.get("height", image_size[0]), sample.get("width", image_size[1])
    boxes = Boxes(boxes_xyxy)
    boxes.scale(width, height)
    boxes.clip((height, width))
    return Instances((height, width), pred_boxes=boxes, scores=scores, pred_classes=labels)


def make_tiles(glance: Glance, image: int, size: Size) -> Instances:
    """The tiles of one image, row by row, scaled to a given size.

    Args:
        glance: of a pass of the detector.
        image: which image of the batch.
        size: (height, width) of the image for ``boxes``.

    Returns:
        ``boxes`` (xyxy), ``scores`` (logits; 0 without a scorer) and ``looked``, True at the chosen
        tiles.
    """
    tiles, (h, w) = glance.tiles, glance.tiles.image_sizes[image]
    rows, columns = tiles.level_sizes[image][0]
    y, x = (torch.arange(count + 1) * tiles.strides[0] for count in (rows, columns))
    y, x = y.clamp(max=h) * (size[0] / h), x.clamp(max=w) * (size[1] / w)
    corners = (x[None, :-1], y[:-1, None], x[None, 1:], y[1:, None])
    boxes = torch.stack([each.expand(rows, columns) for each in corners], dim=-1).flatten(0, 1)
    looked = torch.ones_like(tiles.padding_mask[image])
    if glance.looked.indices is not None:
        looked = glance.looked.mask(tiles.num_tokens)[image]
    scores, looked = (
        each.unflatten(0, tiles.spatial_shapes[0])[:rows, :columns].flatten()
        for each in (tiles.tokens[image, :, 0], looked)
    )
    return Instances(size, boxes=Boxes(boxes.to(scores.device)), scores=scores, looked=looked)


_LAYOUTS = {
    "of one channel": "Repeat the channel three times: image.expand(3, -1, -1).",
    "with an alpha channel": "Leave the alpha channel out: image[:3].",
    "with the channels last": "Put the channels first: image.permute(2, 0, 1).",
    "with the channels last and alpha": "Take image[..., :3].permute(2, 0, 1).",
    "without channels": "Repeat the gray picture three times: image.expand(3, -1, -1).",
    "a batch": "Pass one sample for each picture: [{'image': each} for each in images].",
}


def check_samples(batched_inputs: Any, detector: str = "TokenSparseDetector") -> None:
    """Refuse anything but a list of samples with pictures in 0..255, channels first.

    Args:
        batched_inputs: the argument of a detector's ``forward``.
        detector: name of its class, for the message.

    Raises:
        ValueError: one sentence that says what is wrong and what to pass instead.
    """
    owner = f"{detector}.batched_inputs"
    if not isinstance(batched_inputs, Sequence) or isinstance(batched_inputs, str):
        what = "one sample" if isinstance(batched_inputs, Mapping) else _kind(batched_inputs)
        raise ValueError(
            f"{owner} must be a list of samples, got {what}. "
            "Pass [{'image': image}], with image (3, h, w) in 0..255."
        )
    for index, sample in enumerate(batched_inputs):
        if not isinstance(sample, Mapping) or "image" not in sample:
            got = f"the keys {sorted(sample)}" if isinstance(sample, Mapping) else _kind(sample)
            raise ValueError(
                f"{owner}[{index}] must be a dict with 'image', got {got}. "
                "Pass {'image': image}, with image (3, h, w) in 0..255."
            )
        check_image(sample["image"], f"{owner}[{index}]['image']")


def check_image(image: Any, name: str) -> None:
    """Refuse anything but an RGB picture (3, h, w) in 0..255.

    Values are checked only if this needs no synchronization: on the host, outside of graphs.

    Args:
        image: the picture to check.
        name: its name in the message.

    Raises:
        ValueError: one sentence that says what is wrong and what to pass instead.
    """
    if not isinstance(image, Tensor):
        raise ValueError(
            f"{name} must be a tensor (3, h, w), got {_kind(image)}. sparsedet.Predictor takes "
            "files, Pillow images and arrays (h, w, 3)."
        )
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        layout = _layout(tuple(image.shape))
        mend = _LAYOUTS.get(layout, "Pass an RGB picture with the channels first.")
        got = f"{layout} of shape" if layout else "shape"
        raise ValueError(f"{name} must be (3, h, w), got {got} {tuple(image.shape)}. {mend}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(
            f"{name} must be uint8 or float, got {image.dtype}. Pass values in 0..255 as uint8."
        )
    on_host = image.device.type == "cpu" and not torch.compiler.is_compiling()
    if image.is_floating_point() and on_host:
        _check_range(image, name)


def _check_range(image: Tensor, name: str) -> None:
    low, high = (float(bound) for bound in image.detach().aminmax())
    if low >= 0 and (high == 0 or 1 < high <= 255):  # black is black on either scale
        return
    if low >= 0 and high <= 1:
        got, mend = f"a float image in [{low:.3g}, {high:.3g}]", "Multiply it by 255."
    elif low <= high:
        got = f"values in [{low:.4g}, {high:.4g}]"
        mend = "Leave normalization out: the model subtracts its mean itself."
    else:
        got, mend = "values that are not numbers (NaN)", "Find out where they come from."
    raise ValueError(f"{name} must hold values in 0..255, got {got}. {mend}")


def _layout(shape: tuple[int, ...]) -> str:
    if 0 in shape:
        return "an empty picture"
    if len(shape) == 4:
        return "a batch"
    if len(shape) == 2:
        return "without channels"
    if len(shape) == 3 and shape[0] in (1, 4) and shape[2] not in (3, 4):
        return "of one channel" if shape[0] == 1 else "with an alpha channel"
    if len(shape) == 3 and shape[2] in (3, 4):
        return "with the channels last" + (" and alpha" if shape[2] == 4 else "")
    return ""


def _kind(value: Any) -> str:
    return type(value).__name__
