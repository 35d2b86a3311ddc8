"""Boxes, instances and image batches: what data, models and evaluation hand to each other."""

from sparsedet.structures.boxes import (
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
from sparsedet.structures.images import pad_images
from sparsedet.structures.instances import Boxes, Instances

__all__ = [
    "BoxMode",
    "Boxes",
    "Instances",
    "box_area",
    "cxcywh_to_xyxy",
    "generalized_iou",
    "pad_images",
    "pairwise_generalized_iou",
    "pairwise_iou",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]
