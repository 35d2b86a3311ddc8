"""Box formats and overlaps against hand-made values and torchvision's formulas."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from sparsedet.structures import (
    BoxMode,
    box_area,
    cxcywh_to_xyxy,
    generalized_iou,
    pairwise_generalized_iou,
    pairwise_iou,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)


def random_boxes(*leading, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(2, *leading, 2, generator=generator)
    return torch.cat((low, low + size), dim=-1)


def test_formats_by_hand():
    corners = torch.tensor([2.0, 3.0, 6.0, 11.0])
    assert xyxy_to_cxcywh(corners).tolist() == [4.0, 7.0, 4.0, 8.0]
    assert xyxy_to_xywh(corners).tolist() == [2.0, 3.0, 4.0, 8.0]


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0,)])
def test_formats_are_inverse_for_any_leading_dimensions(leading):
    boxes = random_boxes(*leading)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)


def test_overlaps_agree_with_torchvision():
    a, b = random_boxes(7), random_boxes(9, seed=1)
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b))
    torch.testing.assert_close(pairwise_generalized_iou(a, b), generalized_box_iou(a, b))


def test_elementwise_is_the_diagonal_of_pairwise():
    a, b = random_boxes(6), random_boxes(6, seed=1)
    torch.testing.assert_close(generalized_iou(a, b), pairwise_generalized_iou(a, b).diagonal())


def test_generalized_iou_by_hand():
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    b = torch.tensor([[3.0, 0.0, 4.0, 1.0]])
    assert generalized_iou(a, b).item() == pytest.approx(-0.5)
    assert generalized_iou(a, a).item() == pytest.approx(1.0)


def test_tiny_boxes_keep_their_overlap():
    a = torch.tensor([[0.5, 0.5, 0.5001, 0.5001]])
    assert pairwise_iou(a, a).item() == pytest.approx(1.0)
    assert generalized_iou(a, a).item() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_boxes_are_finite_with_finite_gradients(dtype):
    boxes = torch.tensor(
        [[0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1], [0.0, 0.0, 0.0, 1.0], [0.2, 0.2, 0.4, 0.4]],
        dtype=dtype,
        requires_grad=True,
    )
    values = torch.stack((pairwise_generalized_iou(boxes, boxes), pairwise_iou(boxes, boxes)))
    assert values.isfinite().all()
    assert values.abs().max() <= 1
    values.sum().backward()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()


def test_half_precision_does_not_overflow():
    boxes = torch.tensor([[0.0, 0.0, 1333.0, 800.0]], dtype=torch.float16)
    assert pairwise_iou(boxes, boxes).item() == pytest.approx(1.0)


def test_crossing_corners_have_no_area():
    assert box_area(torch.tensor([4.0, 0.0, 1.0, 5.0])).item() == 0


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_box_mode_keeps_the_type(kind):
    box = kind([1.0, 2.0, 3.0, 4.0])
    corners = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(corners) is type(box)
    assert [float(v) for v in corners] == [1.0, 2.0, 4.0, 6.0]
    back = BoxMode.convert(corners, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert [float(v) for v in back] == [1.0, 2.0, 3.0, 4.0]


def test_box_mode_values_and_refusals():
    assert [mode.value for mode in BoxMode] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="XYWHA_ABS"):
        BoxMode.convert([0, 0, 1, 1], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    with pytest.raises(ValueError, match="four numbers"):
        BoxMode.convert([0, 0, 1], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
