"""Decode all pictures of a data set in parallel, and remember intact ones by their content."""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import PIL
from tqdm import tqdm

from sparsedet.data.images import ImageHeader, inspect_image
from sparsedet.data.reading import PictureSettings

_logger = logging.getLogger(__name__)

_CHUNK = 1024  # pictures that are given to the threads at a time
_READ_BYTES = 1 << 20


class PictureCache:
    """A cache of the content hashes of pictures that could be decoded.

    A file that was changed, restored or damaged has another hash, so an entry never becomes wrong.
    Reading and hashing takes a small part of the time of decoding. Names and times of files do not
    matter: a data set that was moved or copied is still known. Broken pictures are not stored.

    Several processes may use one file. If it cannot be used, one warning says so, and every
    picture is decoded.

    Args:
        path: a SQLite file; it and its folder are created if they are missing.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # self._lock serializes the threads
            self._connection = sqlite3.connect(path, check_same_thread=False)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS sound (digest BLOB PRIMARY KEY) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def knows(self, digest: bytes) -> bool:
        """Whether the picture with this content could be decoded."""
        query = "SELECT 1 FROM sound WHERE digest = ?"
        return bool(self._do(lambda database: database.execute(query, (digest,)).fetchone()))

    def add(self, digest: bytes) -> None:
        """Adds a picture that could be decoded."""
        query = "INSERT OR IGNORE INTO sound VALUES (?)"
        self._do(lambda database: database.execute(query, (digest,)))

    def commit(self) -> None:
        """Writes added entries to disk."""
        self._do(lambda database: database.commit())

    def _do(self, action: Callable[[sqlite3.Connection], Any]) -> Any:
        with self._lock:
            if self._connection is None:
                return None
            try:
                return action(self._connection)
            except sqlite3.Error as error:
                return self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._connection = None
        _logger.warning(
            f"cache {str(self._path)!r} cannot be used ({error}), so every picture is decoded. "
            "Delete the file, or name another one."
        )


class PictureDecoder:
    """Decodes pictures as training does; an inspector for `check_files`.

    Args:
        cache: cache of pictures that are known to be intact; None = decode every picture.

    Attributes:
        num_decoded: number of pictures that were decoded so far.
        num_known: number of pictures that were in the cache.
    """

    def __init__(self, cache: PictureCache | None = None) -> None:
        self._cache = cache
        self.num_decoded = self.num_known = 0

    def __call__(
        self, paths: Sequence[str], settings: PictureSettings
    ) -> Iterator[ImageHeader | str]:
        """Header of each picture, or why it cannot be decoded; shows a bar on terminals."""
        bar = tqdm(total=len(paths), unit=" pictures", dynamic_ncols=True, disable=None)
        look = partial(self._look, settings=settings)
        with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
            for begin in range(0, len(paths), _CHUNK):
                for found, known in pool.map(look, paths[begin : begin + _CHUNK]):
                    self.num_known += known
                    self.num_decoded += not known
                    bar.update()
                    yield found
                if self._cache is not None:
                    self._cache.commit()

    def _look(self, path: str, settings: PictureSettings) -> tuple[ImageHeader | str, bool]:
        """Header or reason, and whether the picture was known."""
        if self._cache is None:
            return inspect_image(path, settings, decode=True), False
        digest = _digest(path, settings)
        known = digest is not None and self._cache.knows(digest)
        found = inspect_image(path, settings, decode=not known)
        if digest is not None and not known and isinstance(found, ImageHeader):
            self._cache.add(digest)
        return found, known


def _digest(path: str, settings: PictureSettings) -> bytes | None:
    """Hash of a file's content, Pillow's version and settings; None if it cannot be read."""
    if not os.path.isfile(path):  # a pipe or a device may have no end
        return None
    content = hashlib.blake2b(f"{PIL.__version__} {settings}".encode(), digest_size=20)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                content.update(chunk)
    except (OSError, ValueError):  # reported when it is decoded
        return None
    return content.digest()
