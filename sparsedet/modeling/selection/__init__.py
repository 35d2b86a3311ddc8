"""Selectors: they decide how many tokens an encoder layer updates, and which."""

from sparsedet.modeling.selection.adaptive import AdaptiveSelector
from sparsedet.modeling.selection.dense import DenseSelector, LevelScheduleSelector
from sparsedet.modeling.selection.top_k import ElasticSelector, TopKSelector

__all__ = [
    "AdaptiveSelector",
    "DenseSelector",
    "ElasticSelector",
    "LevelScheduleSelector",
    "TopKSelector",
]
