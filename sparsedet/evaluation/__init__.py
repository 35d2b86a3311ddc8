"""Evaluation of detections: average precision by COCO's definition."""

from sparsedet.evaluation.coco import COCOEvaluator
from sparsedet.evaluation.details import class_table
from sparsedet.evaluation.loop import evaluate

__all__ = ["COCOEvaluator", "class_table", "evaluate"]
