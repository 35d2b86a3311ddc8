"""Padding of images to one batch."""

import pytest
import torch

from sparsedet.structures import pad_images


def test_pixels_stay_and_the_rest_is_zero():
    images = [torch.rand(3, 4, 7) + 1, torch.rand(3, 6, 2) + 1]
    batch, sizes = pad_images(images)
    assert batch.shape == (2, 3, 6, 7)
    assert sizes == ((4, 7), (6, 2))
    for padded, image, (h, w) in zip(batch, images, sizes, strict=True):
        assert torch.equal(padded[:, :h, :w], image)
    assert batch.count_nonzero() == sum(image.numel() for image in images)


def test_equal_sizes_and_divisor():
    images = [torch.ones(3, 5, 9)] * 2
    assert pad_images(images)[0].shape == (2, 3, 5, 9)
    assert pad_images(images, size_divisor=4)[0].shape == (2, 3, 8, 12)


@pytest.mark.parametrize(
    "images", [[], [torch.ones(4, 4)], [torch.ones(3, 4, 4), torch.ones(1, 4, 4)]]
)
def test_refusals(images):
    with pytest.raises(ValueError, match="pad_images"):
        pad_images(images)
