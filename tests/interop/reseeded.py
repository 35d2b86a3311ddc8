"""A loader that seeds everything for each batch.

Our tool does so; the guests' tools only before they build the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sparsedet.engine.random_state import batch_seed, seed_everything


class Reseeded:
    """Another loader's batches, with the random numbers of our tool for a run of one process.

    Args:
        loader: The other loader.
        seed: Of the run.
    """

    def __init__(self, loader: Iterable[Any], *, seed: int) -> None:
        self._loader = loader
        self._seed = seed

    def __iter__(self) -> Iterator[Any]:
        for place, batch in enumerate(self._loader):
            seed_everything(batch_seed(self._seed, place, 0, "model"))
            yield batch
