"""Every box format and every overlap formula of the package.

Formats, always in the last dimension: `xyxy` = left, top, right, bottom; `xywh` = left, top,
width, height; `cxcywh` = center, width, height. Numbers may be pixels or fractions of the image, as
long as both arguments agree.
"""

from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Areas below this count as zero; a division by it is finite in fp32, forward and backward.
_MIN_AREA = 1e-16


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Converts boxes (..., 4) from center and size to corners."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - 0.5 * size, center + 0.5 * size), dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Converts boxes (..., 4) from corners to center and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat((0.5 * (low + high), high - low), dim=-1)


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """Converts boxes (..., 4) from left-top corner and size to corners."""
    low, size = boxes_xywh[..., :2], boxes_xywh[..., 2:]
    return torch.cat((low, low + size), dim=-1)


def xyxy_to_xywh(boxes_xyxy: Tensor) -> Tensor:
    """Converts boxes (..., 4) from corners to left-top corner and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat((low, high - low), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4); a box whose corners cross has area 0.

    >>> box_area(torch.tensor([[0.0, 0.0, 2.0, 3.0], [5.0, 0.0, 2.0, 3.0]]))
    tensor([6., 0.])
    """
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of every box of `a` (N, 4) with every box of `b` (M, 4): (N, M).

    Pairs without any area have 0. Half-precision input is computed and returned in fp32.
    """
    a, b = _at_least_float32(a_xyxy)[:, None], _at_least_float32(b_xyxy)[None]
    return _iou_and_union(a, b)[0]


def generalized_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al. 2019, eq. 3) of corresponding boxes.

    Args:
        a_xyxy: boxes (..., 4).
        b_xyxy: boxes (..., 4) that broadcast with `a_xyxy`.

    Returns:
        Values (...) in [-1, 1], also finite for boxes of zero size and for crossed corners, with a
        finite gradient. Half-precision input is computed and returned in fp32.
    """
    a, b = _at_least_float32(a_xyxy), _at_least_float32(b_xyxy)
    iou, union = _iou_and_union(a, b)
    # one coordinate at a time, here and below: operations on pairs of numbers are slow on the CPU
    left, top = (torch.minimum(a[..., i], b[..., i]) for i in (0, 1))
    right, bottom = (torch.maximum(a[..., i], b[..., i]) for i in (2, 3))
    hull = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    return iou - (hull - union).clamp(min=0) / hull.clamp(min=_MIN_AREA)


def pairwise_generalized_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """`generalized_iou` of every box of `a` (N, 4) with every box of `b` (M, 4): (N, M)."""
    return generalized_iou(a_xyxy[:, None], b_xyxy[None])


def _iou_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    left, top = (torch.maximum(a[..., i], b[..., i]) for i in (0, 1))
    right, bottom = (torch.minimum(a[..., i], b[..., i]) for i in (2, 3))
    intersection = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    union = box_area(a) + box_area(b) - intersection
    return intersection / union.clamp(min=_MIN_AREA), union


def _at_least_float32(boxes: Tensor) -> Tensor:
    if boxes.dtype == torch.float64:
        return boxes
    return boxes.float()


class BoxMode(IntEnum):
    """The format of the four numbers of a box in a record; values as in detectron2."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: Any, from_mode: int, to_mode: int) -> Any:
        """Converts boxes in pixels between corners and left-top corner plus size.

        Args:
            box: one box as a list or tuple, or boxes (..., 4) as an array or a tensor.
            from_mode: mode of `box`.
            to_mode: mode of the result.

        Returns:
            Boxes of the same type as `box`.

        Raises:
            ValueError: a mode other than `XYXY_ABS` and `XYWH_ABS`, or not four numbers.
        """
        if from_mode == to_mode:
            return box
        if {int(from_mode), int(to_mode)} != {0, 1}:
            raise ValueError(
                "BoxMode.convert modes must be XYXY_ABS or XYWH_ABS, "
                f"got {from_mode!r} and {to_mode!r}. Convert to pixels first."
            )
        if isinstance(box, (list, tuple)):
            if len(box) != 4:
                raise ValueError(f"BoxMode.convert box must be four numbers, got {box!r}.")
            x, y, p, q = box
            changed = [x, y, x + p, y + q] if from_mode == 1 else [x, y, p - x, q - y]
            return type(box)(changed)
        if isinstance(box, np.ndarray):
            sign = 1 if from_mode == 1 else -1
            low, rest = box[..., :2], box[..., 2:]
            return np.concatenate((low, rest + sign * low), axis=-1)
        return xywh_to_xyxy(box) if from_mode == 1 else xyxy_to_xywh(box)
