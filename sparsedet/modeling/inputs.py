"""What a detector is handed, looked at before anything is computed.

A picture in the wrong range or layout would pass through a detector and come out as nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_image", "check_samples"]

_LAYOUTS = {
    "of one channel": "Repeat the channel three times: image.expand(3, -1, -1).",
    "with an alpha channel": "Leave the alpha channel out: image[:3].",
    "with the channels last": "Put the channels first: image.permute(2, 0, 1).",
    "with the channels last and alpha": "Take image[..., :3].permute(2, 0, 1).",
    "without channels": "Repeat the gray picture three times: image.expand(3, -1, -1).",
    "a batch": "Pass one sample for each picture: [{'image': each} for each in images].",
}


def check_samples(batched_inputs: Any) -> None:
    """Refuse what is no list of samples with pictures in 0..255, channels first.

    Args:
        batched_inputs: what a detector's ``forward`` was called with.

    Raises:
        ValueError: one sentence that says what is wrong and what to pass instead.
    """
    owner = "TokenSparseDetector.batched_inputs"
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
    """Refuse what is no RGB picture (3, h, w) in 0..255.

    Values are looked at where that costs no wait for a device: on the host, outside of graphs.

    Args:
        image: to be checked.
        name: how the message calls it.

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
        got, mend = "values that are no numbers (NaN)", "Look where they come from."
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
