"""Resizing and augmentation of an image together with its boxes.

A transform is called with `(image, boxes, rng)` and returns the new image and boxes. Images and
boxes are torchvision's tv_tensors (`Image`, `BoundingBoxes`), so the kernels of
`torchvision.transforms.v2.functional` do the work. All randomness comes from `rng`, a
`random.Random` of the sample, so every process makes the same sample. The transforms of
`torchvision.transforms.v2` use torch's global generator; `call_v2` seeds it from `rng`.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image, wrap


class Transform(Protocol):
    """A transform for the mapper: `image` is a tv_tensors.Image, `boxes` tv_tensors.BoundingBoxes.

    A transform that always makes pictures smaller may have a method `least_shrink(height, width)`,
    which returns the smallest factor, or None to ask the next transform. Very large pictures are
    then read at a half, a quarter or an eighth of their size: `image` is smaller than
    `boxes.canvas_size`.
    """

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Returns the changed image and boxes; the number of boxes must not change."""
        ...


@contextmanager
def _drawing_from(rng: random.Random) -> Iterator[None]:
    """Seed torch's global generator from `rng`, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators as well
        torch.default_generator.manual_seed(rng.getrandbits(63))
        yield


def call_v2(
    transform: v2.Transform, sample: tuple[Tensor, Tensor, Tensor], rng: random.Random
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a transform of torchvision to an image, its boxes and their classes.

    Boxes are clipped to the new image, and boxes outside of it are removed with their classes.

    Args:
        transform: a transform of `torchvision.transforms.v2`.
        sample: tv_tensors.Image, tv_tensors.BoundingBoxes (xyxy) and classes (N,).
        rng: source of all randomness.
    """
    image, boxes, classes = sample
    boxes, classes = _visible(boxes, classes)
    with _drawing_from(rng):
        result = transform({"image": image, "boxes": boxes, "labels": classes})
    return result["image"], *_visible(result["boxes"], result["labels"])


def _visible(boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes that overlap the image, clipped to it, and their classes."""
    boxes = functional.convert_bounding_box_format(boxes, new_format=BoundingBoxFormat.XYXY)
    boxes = functional.clamp_bounding_boxes(boxes)
    corners = boxes.as_subclass(Tensor)
    kept = (corners[:, 2:] > corners[:, :2]).all(dim=-1)
    return wrap(corners[kept], like=boxes), classes[kept]  # pyright: ignore[reportCallIssue]


def resized_size(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """Height and width after the short side was resized to `short_side`.

    The aspect ratio is kept, the long side is limited to `max_size`, and no side becomes 0.

    >>> resized_size(480, 640, 800, 1333)
    (800, 1067)
    >>> resized_size(16, 5000, 800, 1333)
    (4, 1333)
    """
    scale = min(short_side / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _is_size(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


class ResizeShortSide:
    """Resizes to a short side drawn from a list, as DETR and Deformable DETR do.

    Args:
        short_sides: candidates in pixels; one candidate makes the transform deterministic.
        max_size: upper limit of the long side in pixels.

    Raises:
        ValueError: no candidate, or sizes that are not positive.
    """

    def __init__(self, short_sides: Sequence[int] | int, max_size: int) -> None:
        several = isinstance(short_sides, Sequence) and not isinstance(short_sides, str)
        sides: list[Any] = [*short_sides] if several else [short_sides]  # pyright: ignore
        if len(sides) == 0 or not all(map(_is_size, sides)):
            raise ValueError(
                f"ResizeShortSide.short_sides must be one or more whole sizes >= 1, got {sides}."
            )
        if not _is_size(max_size):
            raise ValueError(f"ResizeShortSide.max_size must be a whole size >= 1, got {max_size}.")
        self.short_sides = sides
        self.max_size = max_size

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Resizes with antialiasing; an image that already has the size is not changed."""
        height, width = boxes.canvas_size  # pyright: ignore[reportAttributeAccessIssue]
        side = self.short_sides[0] if len(self.short_sides) == 1 else rng.choice(self.short_sides)
        size = list(resized_size(height, width, side, self.max_size))
        if size == [*image.shape[-2:]]:
            return image, boxes
        return functional.resize(image, size, antialias=True), functional.resize(boxes, size)

    def output_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width of the result for a (height, width) image; None if it is random."""
        if len(self.short_sides) > 1:
            return None
        return resized_size(height, width, self.short_sides[0], self.max_size)

    def least_shrink(self, height: int, width: int) -> float:
        """The smallest factor by which a (height, width) image becomes smaller."""
        largest = max(self.short_sides)
        return max(min(height, width) / largest, max(height, width) / self.max_size)


class FitInside:
    """Resizes an image to the largest size that fits inside another; keeps the aspect ratio.

    Args:
        size: (h, w) in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Resizes with antialiasing."""
        canvas = boxes.canvas_size  # pyright: ignore[reportAttributeAccessIssue]
        size = list(self.output_size(*canvas))
        if size == [*image.shape[-2:]]:
            return image, boxes
        return functional.resize(image, size, antialias=True), functional.resize(boxes, size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for a (height, width) image."""
        scale = min(self.size[0] / height, self.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def least_shrink(self, height: int, width: int) -> float:
        """The factor by which a (height, width) image becomes smaller."""
        return max(height / self.size[0], width / self.size[1])


def _unchanged(height: int, width: int) -> None:
    """The `least_shrink` of transforms that do not change the size."""


class RandomHorizontalFlip:
    """Mirrors left and right.

    Args:
        probability: probability of the flip, in [0, 1].
    """

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(
                f"RandomHorizontalFlip.probability must be in [0, 1], got {probability}."
            )
        self.probability = probability

    least_shrink = staticmethod(_unchanged)

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Mirrors image and boxes, or leaves them unchanged."""
        if rng.random() >= self.probability:
            return image, boxes
        return functional.horizontal_flip(image), functional.horizontal_flip(boxes)


class RandomQuarterTurn:
    """Rotates by 0, 90, 180 or 270 degrees, for pictures without an up direction.

    Height and width are swapped in half of the cases, so batches of elongated pictures have more
    padding.
    """

    least_shrink = staticmethod(_unchanged)

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Rotates image and boxes counterclockwise."""
        for _ in range(rng.randrange(4)):
            x0, y0, x1, y1 = boxes.as_subclass(Tensor).unbind(-1)
            height, width = boxes.canvas_size  # pyright: ignore[reportAttributeAccessIssue]
            turned = torch.stack((y0, width - x1, y1, width - x0), dim=-1)
            image = Image(torch.rot90(image.as_subclass(Tensor), 1, (-2, -1)))
            boxes = BoundingBoxes(  # pyright: ignore[reportCallIssue]
                turned, format=BoundingBoxFormat.XYXY, canvas_size=(width, height)
            )
        return image, boxes


class RandomCrop:
    """Crops a rectangle whose height and width are drawn independently.

    A side that is shorter than `min_size` is not cropped. Boxes are clipped to the crop; a box
    outside of it gets an empty size, and the mapper drops it.

    Args:
        min_size: smallest height and width in pixels.
        max_size: largest height and width in pixels.

    Raises:
        ValueError: unless 1 <= min_size <= max_size.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        if not 1 <= min_size <= max_size:
            raise ValueError(
                "RandomCrop.min_size must be >= 1 and <= max_size, "
                f"got min_size={min_size}, max_size={max_size}."
            )
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Crops image and boxes."""
        height, width = image.shape[-2:]
        new_height, new_width = self._draw(height, rng), self._draw(width, rng)
        top = rng.randint(0, height - new_height)
        left = rng.randint(0, width - new_width)
        window = (top, left, new_height, new_width)
        return functional.crop(image, *window), functional.crop(boxes, *window)

    def _draw(self, side: int, rng: random.Random) -> int:
        if side <= self.min_size:
            return side
        return rng.randint(self.min_size, min(side, self.max_size))


class DETRAugmentation:
    """Training augmentation of DETR (Carion et al. 2020, appendix A.4) and its successors.

    A horizontal flip, then either one resize, or a resize to one of `crop_short_sides`, a crop and
    another resize.

    Args:
        short_sides: short sides of the result, in pixels; one is drawn for each image.
        max_size: upper limit of the long side of the result.
        flip_probability: probability of the flip, in [0, 1].
        crop_probability: probability of the branch with the crop, in [0, 1].
        crop_short_sides: short sides before the crop, in pixels. None = the proportions of DETR:
            1/2, 5/8 and 3/4 of the largest of `short_sides` (400, 500, 600 for 800).
        crop_size: smallest and largest side of the crop. None = 12/25 and 3/4 of the largest of
            `short_sides` (384, 600 for 800).

    Raises:
        ValueError: a value is outside of its range.
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        max_size: int,
        *,
        flip_probability: float = 0.5,
        crop_probability: float = 0.5,
        crop_short_sides: Sequence[int] | None = None,
        crop_size: tuple[int, int] | None = None,
    ) -> None:
        if not 0 <= crop_probability <= 1:
            raise ValueError(
                f"DETRAugmentation.crop_probability must be in [0, 1], got {crop_probability}."
            )
        self.flip = RandomHorizontalFlip(flip_probability)
        self.resize = ResizeShortSide(short_sides, max_size)
        self.crop_probability = crop_probability
        largest = max(self.resize.short_sides)
        if crop_short_sides is None:
            crop_short_sides = [max(1, round(largest * part)) for part in (0.5, 0.625, 0.75)]
        if crop_size is None:
            crop_size = (max(1, round(0.48 * largest)), max(1, round(0.75 * largest)))
        # DETR has no limit here; this one only bounds the memory of extreme panoramas.
        self.resize_before_crop = ResizeShortSide(crop_short_sides, max_size=4 * max_size)
        self.crop = RandomCrop(*crop_size)

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Augments one image and its boxes."""
        image, boxes = self.flip(image, boxes, rng)
        if rng.random() < self.crop_probability:
            image, boxes = self.resize_before_crop(image, boxes, rng)
            image, boxes = self.crop(image, boxes, rng)
        return self.resize(image, boxes, rng)

    def least_shrink(self, height: int, width: int) -> float:
        """How many times smaller a (height, width) image becomes at least, before a crop."""
        first = (self.resize, self.resize_before_crop)
        return min(each.least_shrink(height, width) for each in first)


class PhotographAugmentation:
    """Training augmentation of photographs: that of DETR, then brightness, contrast and color.

    Args:
        short_sides: short sides of the result, in pixels; one is drawn for each image.
        max_size: upper limit of the long side of the result.
        flip_probability: probability of a horizontal flip, in [0, 1]; set 0 if left and right
            distinguish classes, as in text or hands.
        crop_probability: probability of a crop, in [0, 1], see `DETRAugmentation`.
        color_probability: probability of a color change, in [0, 1].
        color_strength: the largest change of brightness, contrast and saturation, as a share; the
            hue changes by a twentieth of it.

    Raises:
        ValueError: a value is outside of its range.
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        max_size: int,
        *,
        flip_probability: float = 0.5,
        crop_probability: float = 0.5,
        color_probability: float = 0.5,
        color_strength: float = 0.4,
    ) -> None:
        if not 0 <= color_probability <= 1:
            raise ValueError(
                f"PhotographAugmentation.color_probability must be in [0, 1], got "
                f"{color_probability}."
            )
        self.geometry = DETRAugmentation(
            short_sides,
            max_size,
            flip_probability=flip_probability,
            crop_probability=crop_probability,
        )
        self.color_probability = color_probability
        self.colors = v2.ColorJitter(
            color_strength, color_strength, color_strength, hue=color_strength / 20
        )

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Augments one image and its boxes."""
        image, boxes = self.geometry(image, boxes, rng)
        if rng.random() < self.color_probability:  # after the resize, which is faster
            with _drawing_from(rng):
                image = self.colors(image)
        return image, boxes

    def least_shrink(self, height: int, width: int) -> float:
        """How many times smaller a (height, width) image becomes at least, before a crop."""
        return self.geometry.least_shrink(height, width)


class AerialAugmentation:
    """Training augmentation of aerial pictures: a quarter turn, then `PhotographAugmentation`.

    Together with its horizontal flip, all eight orientations are equally likely.

    Args:
        short_sides: short sides of the result, in pixels; one is drawn for each image.
        max_size: upper limit of the long side of the result.
        crop_probability: probability of a crop, in [0, 1], see `DETRAugmentation`.
        color_probability: probability of a color change, in [0, 1].

    Raises:
        ValueError: a value is outside of its range.
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        max_size: int,
        *,
        crop_probability: float = 0.5,
        color_probability: float = 0.5,
    ) -> None:
        self.turn = RandomQuarterTurn()
        self.rest = PhotographAugmentation(
            short_sides,
            max_size,
            crop_probability=crop_probability,
            color_probability=color_probability,
        )

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Augments one image and its boxes."""
        return self.rest(*self.turn(image, boxes, rng), rng)

    def least_shrink(self, height: int, width: int) -> float:
        """How many times smaller a (height, width) image becomes at least, before a crop."""
        return self.rest.least_shrink(height, width)
