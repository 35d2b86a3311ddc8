"""The cache of published weights."""

from __future__ import annotations

import os
from pathlib import Path

from sparsedet.files import expand_home
from sparsedet.weights.table import Published


def cache_folder() -> Path:
    """The folder of all weights: in `SPARSEDET_HOME` if it is set, else in `~/.cache/sparsedet`.

    Raises:
        ValueError: the home folder is unknown.
    """
    home = os.environ.get("SPARSEDET_HOME") or "~/.cache/sparsedet"
    return expand_home(home, "SPARSEDET_HOME") / "weights"


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
