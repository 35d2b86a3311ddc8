"""Calibration of selectors whose counts depend on the scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from sparsedet.analysis.passes import evaluating
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.parts import CalibratedSelector


def calibrate_selector(
    model: TokenSparseDetector, batches: Iterable[Sequence[Mapping[str, Any]]]
) -> int:
    """Show a selector the scores of some images, such that its ``keep_ratio`` is their mean.

    What it knew before is forgotten. Only backbone, neck and scorer run.

    Args:
        model: its selector is changed in place; it runs in eval mode.
        batches: lists of samples as ``model.forward`` takes them, of the images that the model is
            for. A few hundred will do.

    Returns:
        How many images there were.

    Raises:
        ValueError: if the selector needs no calibration, or there are no images.
    """
    selector = model.selector
    if not isinstance(selector, CalibratedSelector) or model.scorer is None:
        raise ValueError(
            "calibrate_selector.model must have a selector that is calibrated, got "
            f"{type(selector).__name__}. Set model.selector._target_=AdaptiveSelector."
        )
    images = 0
    with evaluating(model), torch.no_grad():
        for samples in batches:
            if not images:
                selector.forget()
            batch = model.preprocess(samples)
            features, _ = model.see(batch.images, batch.image_sizes, batch.targets)
            scores = model.score(features, batch.targets, batch.images)
            selector.calibrate(scores, features)
            images += len(samples)
    if not images:
        raise ValueError("calibrate_selector.batches must hold at least one image, got none.")
    return images
