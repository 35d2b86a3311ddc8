"""Evaluate a predictor on files, including its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sparsedet.data import AnnotatedDataset
from sparsedet.evaluation.loop import Evaluator, evaluate
from sparsedet.predictor import Predictor

__all__ = ["evaluate_predictor"]


def evaluate_predictor(
    predictor: Predictor, dataset: AnnotatedDataset, evaluator: Evaluator
) -> dict[str, Any]:
    """Run a predictor on the pictures of a data set, one at a time, and evaluate its detections.

    Args:
        predictor: a predictor with the classes of the data set, in the same order.
        dataset: the data set.
        evaluator: an evaluator of the same data set.

    Returns:
        As ``sparsedet.evaluation.evaluate``; ``seconds_per_image`` includes reading the file.

    Raises:
        ValueError: the classes differ.
        DatasetError: a file cannot be read.
    """
    if tuple(dataset.class_names) != predictor.class_names:
        raise ValueError(
            f"evaluate_predictor.dataset must have the classes {list(predictor.class_names)} of "
            f"the predictor, got {list(dataset.class_names)}. Open it with them as class_names."
        )
    return evaluate(_Predicting(predictor), ([record] for record in dataset.records), evaluator)


class _Predicting(nn.Module):
    """A predictor as a model whose inputs are records with file names."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self._predictor = predictor

    def forward(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = []
        for record in records:
            found = self._predictor(record["file_name"], score_threshold=0.0)
            kept = {} if found.keep_ratio is None else {"keep_ratio": found.keep_ratio}
            outputs.append({"instances": found.instances, **kept})
        return outputs
