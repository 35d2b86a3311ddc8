"""Calibration of selectors whose counts depend on the scores."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import torch
from torch import nn

from sparsedet.analysis.passes import evaluating
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.parts import CalibratedSelector


def calibrate_selector(
    model: TokenSparseDetector, batches: Iterable[Sequence[Mapping[str, Any]]]
) -> int:
    """Show selectors the scores of some images, such that a ``keep_ratio`` is their mean.

    They are the selector of the tokens and the selector of the tiles, where regions have one; those
    that need no calibration are left as they are. What they knew before is forgotten. Only
    backbone, neck and scorers run. Which tokens there are depends on the tiles, so the tiles come
    first, and the images are gone through once for each.

    Args:
        model: its selectors are changed in place; it runs in eval mode.
        batches: lists of samples as ``model.forward`` takes them, of the images that the model is
            for. A few hundred will do. It must be iterable twice where both are calibrated.

    Returns:
        How many images there were.

    Raises:
        ValueError: if no selector needs calibration, or there are no images.
    """
    calibrated = _calibrated_selectors(model)
    if not calibrated:
        raise ValueError(
            "calibrate_selector.model must have a selector that is calibrated, got "
            f"{type(model.selector).__name__}. Set model.selector._target_=AdaptiveSelector."
        )
    images = 0
    for selector in calibrated:
        images = 0
        with evaluating(model), torch.no_grad(), _showing(selector, and_stop=True):
            for samples in batches:
                if not images:
                    selector.forget()
                batch = model.preprocess(samples)
                with suppress(_Shown):
                    model.detect(batch.images, batch.image_sizes, batch.targets)
                images += len(samples)
        if not images:
            raise ValueError(
                "calibrate_selector.batches must hold at least one image, got none. Pass a list, "
                "or what can be gone through twice."
            )
    return images


class _Shown(Exception):
    """A selector has seen the scores of a batch, and nothing after it is needed."""


@contextmanager
def calibrated_for_a_while(model: nn.Module) -> Iterator[None]:
    """Selectors that need calibration choose by the images of these passes; then it is undone."""
    selectors = _calibrated_selectors(model)
    known = [copy.deepcopy(cast(nn.Module, each).state_dict()) for each in selectors]
    with ExitStack() as shown:
        for each in selectors:
            shown.enter_context(_showing(each))
        yield
    for each, state in zip(selectors, known, strict=True):
        cast(nn.Module, each).load_state_dict(state)


def _calibrated_selectors(model: nn.Module) -> list[CalibratedSelector]:
    """In the order in which they choose: that of the tiles comes first."""
    selectors = [getattr(getattr(model, "regions", None), "selector", None)]
    selectors += [getattr(model, "selector", None)]
    return [each for each in selectors if isinstance(each, CalibratedSelector)]


@contextmanager
def _showing(selector: Any, *, and_stop: bool = False) -> Iterator[None]:
    """A selector is shown what it is to choose from, at which a pass may end."""

    def show(_: Any, given: tuple[Any, ...]) -> None:
        selector.calibrate(*given[:2])
        if and_stop:
            raise _Shown

    hook = selector.register_forward_pre_hook(show)
    try:
        yield
    finally:
        hook.remove()
