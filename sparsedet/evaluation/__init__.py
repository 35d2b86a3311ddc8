"""Detections in, average precision out."""

from .coco import COCOEvaluator
from .loop import evaluate

__all__ = ["COCOEvaluator", "evaluate"]
