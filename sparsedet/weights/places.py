"""Where fetched weights are kept."""

from __future__ import annotations

import os
from pathlib import Path

from sparsedet.weights.table import Published


def cache_folder() -> Path:
    """The folder of all weights: in `SPARSEDET_HOME`, or else in the user's cache folder."""
    home = os.environ.get("SPARSEDET_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache/sparsedet") / "weights"


class Place:
    """The folder of published weights in the cache.

    Args:
        entry: from the table.

    Attributes:
        folder: which it is.
        converted: the weights in our names, which are whole or not there.
        origin: of which file they were made, so that another one is not taken for it later.
        by_hand: where a user can put the published file; it is taken and stays.
        fetched: the published file as it was downloaded, until it is converted.
        lock: held by the process that fetches.
    """

    def __init__(self, entry: Published) -> None:
        self.folder = cache_folder() / entry.name.replace("/", "--")
        self.converted = self.folder / "weights.safetensors"
        self.origin = self.folder / "origin.json"
        self.by_hand = self.folder / entry.file
        self.fetched = self.folder / f"fetched-{entry.file}"
        self.lock = self.folder / "lock"
