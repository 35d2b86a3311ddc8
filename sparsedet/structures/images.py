"""Images of different sizes in one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_images(
    images: Sequence[Tensor], size_divisor: int = 1
) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Puts images into one batch, padded with zeros on the right and at the bottom.

    Args:
        images: tensors (C, h, w) of one dtype and device, at least one.
        size_divisor: height and width of the batch are rounded up to multiples of this.

    Returns:
        The batch (B, C, H, W) and the (h, w) of each image.

    Raises:
        ValueError: there is no image, or the numbers of channels differ.

    >>> batch, sizes = pad_images([torch.ones(3, 2, 5), torch.ones(3, 4, 1)])
    >>> tuple(batch.shape), sizes
    ((2, 3, 4, 5), ((2, 5), (4, 1)))
    """
    if not images:
        raise ValueError("pad_images.images must hold at least one image, got none.")
    channels = {image.shape[0] if image.ndim == 3 else None for image in images}
    if len(channels) != 1 or None in channels:
        shapes = [tuple(image.shape) for image in images]
        raise ValueError(f"pad_images.images must be (C, h, w) with one C, got {shapes}.")
    sizes = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
    height = _round_up(max(h for h, _ in sizes), size_divisor)
    width = _round_up(max(w for _, w in sizes), size_divisor)
    if all(size == (height, width) for size in sizes):
        return torch.stack(list(images)), sizes
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for slot, image, (h, w) in zip(batch, images, sizes, strict=True):
        slot[:, :h, :w].copy_(image)
    return batch, sizes


def _round_up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor
