"""Calibration of selectors that choose a number of tokens by their scores."""

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
    """Fit selectors to the scores of some images, so that ``keep_ratio`` is the mean over them.

    This calibrates the selector of the tokens and, with regions, the selector of the tiles; a
    selector that needs no calibration is not changed. Earlier calibrations are discarded. Only
    backbone, neck and scorers run. The tokens depend on the chosen tiles, so the selector of the
    tiles is calibrated first, and the images are processed once for each of the two.

    Args:
        model: its selectors are changed in place; it runs in eval mode.
        batches: lists of samples as ``model.forward`` takes them, of typical images. A few hundred
            images are enough. It must be iterable twice if both selectors are calibrated.

    Returns:
        The number of images.

    Raises:
        ValueError: if no selector needs calibration, or there are no images.
    """
    calibrated = _calibrated_selectors(model)
    if not calibrated:
        raise ValueError(
            "calibrate_selector.model must have a selector that needs calibration, got "
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
                "or an iterable that can be iterated twice."
            )
    return images


class _Shown(Exception):
    """Ends a pass after a selector has seen the scores of a batch."""


@contextmanager
def calibrated_for_a_while(model: nn.Module) -> Iterator[None]:
    """Calibrate selectors with the images of the passes inside, and undo it afterwards."""
    selectors = _calibrated_selectors(model)
    known = [copy.deepcopy(cast(nn.Module, each).state_dict()) for each in selectors]
    with ExitStack() as shown:
        for each in selectors:
            shown.enter_context(_showing(each))
        yield
    for each, state in zip(selectors, known, strict=True):
        cast(nn.Module, each).load_state_dict(state)


def _calibrated_selectors(model: nn.Module) -> list[CalibratedSelector]:
    """In the order in which they run: the selector of the tiles comes first."""
    selectors = [getattr(getattr(model, "regions", None), "selector", None)]
    selectors += [getattr(model, "selector", None)]
    return [each for each in selectors if isinstance(each, CalibratedSelector)]


@contextmanager
def _showing(selector: Any, *, and_stop: bool = False) -> Iterator[None]:
    """Show a selector the scores that it chooses from; the pass may end there."""

    def show(_: Any, given: tuple[Any, ...]) -> None:
        selector.calibrate(*given[:2])
        if and_stop:
            raise _Shown

    hook = selector.register_forward_pre_hook(show)
    try:
        yield
    finally:
        hook.remove()
