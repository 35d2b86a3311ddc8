"""A loader that seeds everything when it is first asked for a batch.

Our tool does so after it has built the model; the guests' tools only before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sparsedet.engine.random_state import seed_everything


class Reseeded:
    """Another loader's batches.

    Args:
        loader: The other loader.
        seed: What the random state begins with.
    """

    def __init__(self, loader: Iterable[Any], *, seed: int) -> None:
        self._loader = loader
        self._seed = seed

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        seed_everything(self._seed)
        return batches
