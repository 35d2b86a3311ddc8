"""The cache of published weights."""

from __future__ import annotations

import os
from pathlib import Path

from sparsedet.weights.table import Published


def cache_folder() -> Path:
    """The folder of all weights: in `SPARSEDET_HOME` if it is set, else in `~/.cache/sparsedet`."""
    home = os.environ.get("SPARSEDET_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache/sparsedet") / "weights"


class Place:
    """The folder of published weights in the cache.

    Args:
        entry: from the table.

    Attributes:
        folder: the folder.
        converted: the weights in our names, written atomically.
        origin: records the file that they were made from, to detect a different file later.
        by_hand: where a user can put the published file; it is used and not deleted.
        fetched: the published file as downloaded, until it is converted.
        lock: lock file of the process that downloads.
    """

    def __init__(self, entry: Published) -> None:
        self.folder = cache_folder() / entry.name.replace("/", "--")
        self.converted = self.folder / "weights.safetensors"
        self.origin = self.folder / "origin.json"
        self.by_hand = self.folder / entry.file
        self.fetched = self.folder / f"fetched-{entry.file}"
        self.lock = self.folder / "lock"
