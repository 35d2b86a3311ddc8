"""A detector says what is wrong with what it is handed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from sparsedet.modeling.inputs import check_image, check_samples
from tests.modeling import small

UINT8 = torch.zeros(3, 8, 9, dtype=torch.uint8)

WRONG = [
    ({"image": UINT8}, "got one sample. Pass [{'image': image}]"),
    (UINT8, "got Tensor. Pass [{'image': image}]"),
    ("photo.jpg", "got str."),
    ([UINT8], "batched_inputs[0] must be a dict with 'image', got Tensor"),
    ([{"image": UINT8}, {"img": UINT8}], "batched_inputs[1] must be a dict with 'image', got the"),
    ([{"image": UINT8.numpy()}], "must be a tensor (3, h, w), got ndarray. sparsedet.Predictor"),
    ([{"image": torch.full((3, 8, 9), 0.7)}], "got a float image in [0.7, 0.7]. Multiply it by"),
    ([{"image": torch.full((3, 8, 9), -1.0)}], "got values in [-1, -1]. Leave normalization out"),
    ([{"image": torch.full((3, 8, 9), 256.0)}], "got values in [256, 256]"),
    ([{"image": torch.full((3, 8, 9), torch.nan)}], "got values that are not numbers (NaN)"),
    ([{"image": torch.zeros(4, 8, 9)}], "with an alpha channel of shape (4, 8, 9)"),
    ([{"image": torch.zeros(1, 8, 9)}], "Repeat the channel three times"),
    ([{"image": torch.zeros(8, 9, 3)}], "with the channels last of shape (8, 9, 3)"),
    ([{"image": torch.zeros(8, 9, 4)}], "Take image[..., :3].permute(2, 0, 1)"),
    ([{"image": torch.zeros(8, 9)}], "Repeat the gray picture"),
    ([{"image": torch.zeros(2, 3, 8, 9)}], "got a batch of shape (2, 3, 8, 9)"),
    ([{"image": torch.zeros(3, 0, 9)}], "got an empty picture of shape (3, 0, 9)"),
    ([{"image": torch.zeros(5, 8, 9)}], "got shape (5, 8, 9). Pass an RGB picture"),
    ([{"image": torch.zeros(3, 8, 9, dtype=torch.int32)}], "must be uint8 or float, got torch.int"),
]


@pytest.mark.parametrize(("samples", "words"), WRONG)
def test_one_sentence_at_the_door(samples: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        check_samples(samples)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("TokenSparseDetector.batched_inputs")


def test_what_passes() -> None:
    check_samples([{"image": UINT8}])
    check_samples(({"image": UINT8.float()},))  # black is black on either scale
    check_samples([{"image": torch.linspace(0, 255, 216).view(3, 8, 9).to(torch.float16)}])
    check_samples([])  # said elsewhere
    check_image(torch.zeros(3, 3, 3), "image")


def test_values_on_a_device_are_not_waited_for() -> None:
    check_image(torch.empty(3, 8, 9, device="meta"), "image")


@pytest.mark.parametrize("training", [False, True])
def test_the_detector_asks(training: bool) -> None:
    model = small.detector(small.PLAIN)
    batch = small.samples(((32, 40),), (2,))
    batch[0]["image"] = batch[0]["image"] / 255
    with pytest.raises(ValueError, match="Multiply it by 255"):
        model.train(training)(batch)
    batch[0]["image"] = np.zeros((32, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="got ndarray"):
        model.train(training)(batch)
