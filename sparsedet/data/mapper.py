"""Make samples from records."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from sparsedet.data.images import read_image
from sparsedet.data.pillow_limit import LARGE_PIXELS
from sparsedet.data.reading import DEFAULT_SETTINGS, PictureSettings
from sparsedet.data.transforms import Transform, call_v2
from sparsedet.structures import Boxes, BoxMode, Instances

_SPARE = 2  # a picture read at reduced size still has sides this many times those of the result


class DetectionMapper:
    """Reads the image of a record and applies transforms to it and its boxes.

    Args:
        transforms: applied in order: our transforms, each called as `transform(image, boxes, rng)`,
            and transforms of `torchvision.transforms.v2`, which may also remove objects. The image
            must stay uint8 with three channels; the model normalizes.
        pictures: how files are read.

    The sample is detectron2's dict: `image` (uint8 RGB, (3, h, w), after the transforms),
    `height` and `width` (of the original), `image_id`, `file_name` and `instances`
    (`gt_boxes` xyxy in pixels of `image`, clipped to it; `gt_classes`). Crowd regions are not
    training targets and are left out; so are boxes outside of a crop.

    A loader of detectron2 or of torch calls it with only the record: `mapper(record)`.

    Raises:
        ValueError: `transforms` is not a list of callables.
    """

    def __init__(
        self,
        transforms: Sequence[Transform | v2.Transform],
        *,
        pictures: PictureSettings = DEFAULT_SETTINGS,
    ) -> None:
        if not isinstance(transforms, Sequence) or not all(map(callable, transforms)):
            raise ValueError(
                f"DetectionMapper.transforms must be a list of transforms, got {transforms!r}. Set "
                "mapper.transforms of the loader, [] for none."
            )
        self.transforms, self.pictures = tuple(transforms), pictures

    def __call__(self, record: dict[str, Any], rng: random.Random | None = None) -> dict[str, Any]:
        """Makes the sample of `record`.

        Args:
            record: a record in detectron2's format; without `annotations` it has no objects.
            rng: source of all randomness. None = one that is seeded from torch's generator, which
                a `DataLoader` seeds in each worker: the same seed, number of workers and order of
                records give the same samples. Our own loader passes an `rng` that does not depend
                on the workers.

        Raises:
            DatasetError: the image cannot be decoded or its size differs from the record.
            StorageError: the file cannot be reached; it may be intact.
            ValueError: a transform changed the format of the image.
        """
        if rng is None:
            rng = random.Random(int(torch.randint(2**62, ())))
        height, width = record["height"], record["width"]
        pixels = read_image(record["file_name"], (width, height), self.pictures, self.shrink)
        boxes_xyxy, classes = _targets(record.get("annotations", ()))
        image, boxes_xyxy, classes = self.transform(
            pixels, boxes_xyxy, classes, rng, size=(height, width)
        )
        return {
            "image": image,
            "height": height,
            "width": width,
            "image_id": record.get("image_id"),
            "file_name": record["file_name"],
            "instances": _instances(boxes_xyxy, classes, image.shape[-2:]),
        }

    def transform(
        self,
        pixels: Tensor,
        boxes_xyxy: Tensor,
        classes: Tensor,
        rng: random.Random,
        *,
        size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Applies the transforms to a picture.

        Args:
            pixels: (3, h, w), uint8.
            boxes_xyxy: (N, 4), in pixels.
            classes: (N,); a transform may remove objects.
            rng: source of all randomness.
            size: height and width in whose pixels the boxes are given, if the picture was read at
                reduced size (see `shrink`); None = those of `pixels`.

        Returns:
            The image, boxes and classes.
        """
        image: Tensor = Image(pixels)
        canvas = size or (pixels.shape[-2], pixels.shape[-1])
        boxes: Tensor = BoundingBoxes(  # pyright: ignore[reportCallIssue]
            boxes_xyxy, format=BoundingBoxFormat.XYXY, canvas_size=canvas
        )
        for transform in self.transforms:
            if isinstance(transform, v2.Transform):
                image, boxes, classes = call_v2(transform, (image, boxes, classes), rng)
                _check_format(image, transform)
            else:
                image, boxes = transform(image, boxes, rng)
        return image.as_subclass(Tensor).contiguous(), boxes.as_subclass(Tensor), classes

    def shrink(self, height: int, width: int) -> int:
        """The factor (1, 2, 4 or 8) by which a picture may be read smaller.

        It is above 1 only for pictures above Pillow's limit of 179 million pixels, if the first
        transform that changes the size reduces the sides further by at least a factor of two.
        """
        if height * width <= LARGE_PIXELS:
            return 1
        known = (getattr(each, "least_shrink", lambda *size: 1) for each in self.transforms)
        least = next((f for each in known if (f := each(height, width)) is not None), 1)
        return max((times for times in (2, 4, 8) if times * _SPARE <= least), default=1)

    def output_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Size of the sample's image if all transforms can compute it in advance, else None."""
        size: tuple[int, int] | None = (height, width)
        for transform in self.transforms:
            known = getattr(transform, "output_size", None)
            size = known(*size) if known is not None and size is not None else None
        return size


def _check_format(image: Tensor, transform: v2.Transform) -> None:
    kind = f"{image.dtype} with {image.shape[0]}" if isinstance(image, Tensor) else type(image)
    if kind != "torch.uint8 with 3":
        name = type(transform).__name__
        raise ValueError(
            f"DetectionMapper.transforms must keep images uint8 with 3 channels, got {kind} after "
            f"{name}. The model normalizes; take {name} out of dataloader.train.mapper.transforms."
        )


def _targets(annotations: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    boxes, classes = [], []
    for entry in annotations:
        if not entry.get("iscrowd", 0):
            boxes.append(BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS))
            classes.append(entry["category_id"])
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
    )


def _instances(boxes_xyxy: Tensor, classes: Tensor, image_size: Sequence[int]) -> Instances:
    height, width = image_size
    boxes = Boxes(boxes_xyxy)
    boxes.clip((height, width))
    targets = Instances((height, width), gt_boxes=boxes, gt_classes=classes)
    kept = boxes.nonempty()
    return targets if kept.all() else targets[kept]
