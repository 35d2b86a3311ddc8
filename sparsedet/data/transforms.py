"""Resizing and augmentation of an image together with its boxes.

A transform is called with `(image, boxes, rng)` and returns the new image and boxes. Images and
boxes are torchvision's tv_tensors (`Image`, `BoundingBoxes`), so the kernels of
`torchvision.transforms.v2.functional` do the work. Chance comes from `rng` alone, a
`random.Random` that belongs to the sample: the same sample is made whoever makes it.
"""

import random
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from torchvision.transforms.v2 import functional


class Transform(Protocol):
    """What the mapper calls: `image` is a tv_tensors.Image, `boxes` tv_tensors.BoundingBoxes."""

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Returns the changed image and boxes; the number of boxes stays."""
        ...


def resized_size(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """Height and width after the short side became `short_side`.

    The aspect stays; the long side is limited to `max_size` and no side becomes 0.

    >>> resized_size(480, 640, 800, 1333)
    (800, 1067)
    >>> resized_size(16, 5000, 800, 1333)
    (4, 1333)
    """
    scale = min(short_side / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class ResizeShortSide:
    """Resizes to a short side drawn from a list, as DETR and Deformable DETR do.

    Args:
        short_sides: candidates in pixels; one candidate makes the transform deterministic.
        max_size: upper limit of the long side in pixels.

    Raises:
        ValueError: no candidate, or sizes that are not positive.
    """

    def __init__(self, short_sides: Sequence[int] | int, max_size: int) -> None:
        sides = [short_sides] if isinstance(short_sides, int) else list(short_sides)
        if len(sides) == 0 or min(sides) < 1:
            raise ValueError(
                f"ResizeShortSide.short_sides must be one or more sizes >= 1, got {sides}."
            )
        if max_size < 1:
            raise ValueError(f"ResizeShortSide.max_size must be >= 1, got {max_size}.")
        self.short_sides = sides
        self.max_size = max_size

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Resizes with antialiasing; an image of the right size is passed through."""
        height, width = image.shape[-2:]
        side = self.short_sides[0] if len(self.short_sides) == 1 else rng.choice(self.short_sides)
        size = list(resized_size(height, width, side, self.max_size))
        if size == [height, width]:
            return image, boxes
        return functional.resize(image, size, antialias=True), functional.resize(boxes, size)

    def output_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width that a (height, width) image gets; None where that is drawn."""
        if len(self.short_sides) > 1:
            return None
        return resized_size(height, width, self.short_sides[0], self.max_size)


class RandomHorizontalFlip:
    """Mirrors left and right.

    Args:
        probability: how often, in [0, 1].
    """

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(
                f"RandomHorizontalFlip.probability must be in [0, 1], got {probability}."
            )
        self.probability = probability

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Mirrors image and boxes, or passes them through."""
        if rng.random() >= self.probability:
            return image, boxes
        return functional.horizontal_flip(image), functional.horizontal_flip(boxes)


class RandomCrop:
    """Cuts out a rectangle whose height and width are drawn each on its own.

    A side that is shorter than `min_size` is kept whole. Boxes are cut at the border; a box of
    which nothing is left keeps its place with no size (the mapper drops it).

    Args:
        min_size: least height and width in pixels.
        max_size: greatest height and width in pixels.

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
        """Cuts image and boxes."""
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

    A horizontal flip, then one of two with equal chance: a resize; or a resize to one of
    `crop_short_sides`, a crop, and a resize.

    Args:
        short_sides: short sides of the result, in pixels; one is drawn for each image.
        max_size: limit of the long side of the result.
        flip_probability: chance of the flip, in [0, 1].
        crop_probability: chance of the branch with the crop, in [0, 1].
        crop_short_sides: short sides before the crop, in pixels. None takes the proportions of
            DETR: 1/2, 5/8 and 3/4 of the largest of `short_sides` (400, 500, 600 for 800).
        crop_size: least and greatest side of the crop. None takes 12/25 and 3/4 of the
            largest of `short_sides` (384, 600 for 800).

    Raises:
        ValueError: a value outside of its range.
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
        # DETR has no limit here; this one only bounds the memory that extreme panoramas take.
        self.resize_before_crop = ResizeShortSide(crop_short_sides, max_size=4 * max_size)
        self.crop = RandomCrop(*crop_size)

    def __call__(self, image: Tensor, boxes: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Augments one image and its boxes."""
        image, boxes = self.flip(image, boxes, rng)
        if rng.random() < self.crop_probability:
            image, boxes = self.resize_before_crop(image, boxes, rng)
            image, boxes = self.crop(image, boxes, rng)
        return self.resize(image, boxes, rng)
