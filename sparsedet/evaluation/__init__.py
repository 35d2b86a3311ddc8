"""Detections in, average precision out."""

from .coco import COCOEvaluator
from .details import class_table
from .loop import evaluate

__all__ = ["COCOEvaluator", "class_table", "evaluate"]
