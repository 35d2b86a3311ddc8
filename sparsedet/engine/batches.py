"""Read batches from any iterable training loader."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

__all__ = ["batches_from", "epoch_length"]

logger = logging.getLogger(__name__)

Batch = Sequence[Mapping[str, Any]]


def batches_from(loader: Iterable[Batch]) -> Callable[[int], Iterator[Batch]]:
    """A function that takes a number of batches to skip and iterates over the following ones.

    A loader with `iter_from`, such as `sparsedet.data.TrainLoader`, resumes exactly at the batch
    where a run stopped. Any other loader is iterated from its start, again and again: loaders of
    detectron2, which never end, and torch's `DataLoader`, whose sampler gets the epoch if it has
    `set_epoch`. A run that is resumed with such a loader starts a new epoch, and a warning says so.

    Args:
        loader: batches of samples.
    """
    exact = getattr(loader, "iter_from", None)
    return exact if exact is not None else partial(_passes, loader)


def epoch_length(loader: Iterable[Batch]) -> int | None:
    """Batches per epoch; None if the loader has no length, such as an endless one."""
    try:
        return len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:  # also of a torch DataLoader over a set without a length
        return None


def _passes(loader: Iterable[Batch], skipped: int) -> Iterator[Batch]:
    length = epoch_length(loader) or 1
    if skipped:
        logger.warning(
            "dataloader.train (%s) has no iter_from and cannot resume in the middle of an epoch: "
            "the resumed run starts a new epoch",
            type(loader).__name__,
        )
    for epoch in itertools.count(-(-skipped // length)):
        set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError(
                f"dataloader.train ({type(loader).__name__}) must have a batch in every epoch, got "
                "none. Give a list or a loader, not an iterator that can be read only once."
            )
