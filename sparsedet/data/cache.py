"""A cache of remote files: a folder of bounded size that processes share."""

import hashlib
import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

_logger = logging.getLogger(__name__)

_LEFT = 0.75  # share of the size that remains after the oldest files were removed
_UNSEEN = 64  # a process lists the folder again after it has written 1/64 of the size
# The cache removes only files with such names, since the folder may have other files.
_OWN_NAME = re.compile(r"\.?[0-9a-f]{62}(\.\d+\.\d+\.tmp)?")
_ABANDONED = 3600  # seconds after which an incomplete file is considered abandoned


class FileCache:
    """Files by URL; the least recently used files are removed first.

    Processes share a folder without communication: files are written atomically, and each process
    counts only its own writes between two listings of the folder. With up to 16 writers the size is
    not exceeded.

    If the folder cannot be read or written, one warning says so, and every file is downloaded.

    Args:
        folder: created when the first file is stored.
        max_bytes: maximum size of all files.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._unseen = max_bytes  # so that the first file triggers a listing
        self._lock, self._warned = threading.Lock(), False

    def open(self, address: str, fetch: Callable[[], bytes]) -> IO[bytes]:
        """The file of a URL; `fetch` is called if it is not in the cache."""
        path = self._path(address)
        try:
            file = path.open("rb")
        except OSError as error:
            content = fetch()
            if not isinstance(error, FileNotFoundError):
                self._warn(error)
            elif len(content) <= self._max_bytes:
                try:
                    self._store(path, content)
                except OSError as reason:
                    self._warn(reason)
            return io.BytesIO(content)
        with suppress(OSError):  # it may be gone, or belong to another user
            os.utime(path)
        return file

    def forget(self, address: str) -> None:
        """Removes the file of a URL, such as one that turned out to be broken."""
        with suppress(OSError):
            self._path(address).unlink()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                f"cache folder {str(self._folder)!r} cannot be used "
                f"({(error.strerror or str(error)).lower()}), so every picture is downloaded "
                "again. Free some space, give this user permission to write there, or set "
                "dataset.cache_dir."
            )

    def _path(self, address: str) -> Path:
        name = hashlib.sha256(address.encode()).hexdigest()
        return self._folder / name[:2] / name[2:]

    def _store(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        with self._lock:
            self._unseen += len(content)
            if self._unseen >= self._max_bytes / _UNSEEN:
                self._unseen = 0
                self._shrink()

    def _shrink(self) -> None:
        files = []
        for path in self._folder.glob("[0-9a-f][0-9a-f]/*"):
            if not _OWN_NAME.fullmatch(path.name):
                continue
            with suppress(OSError):  # another process has removed it
                state = path.stat()
                if not path.name.endswith(".tmp"):
                    files.append((state.st_mtime_ns, state.st_size, path))
                elif time.time() - state.st_mtime > _ABANDONED:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        if total <= self._max_bytes * (1 - 1 / _UNSEEN):
            return
        for _, size, path in sorted(files):
            with suppress(OSError):
                path.unlink()
            total -= size
            if total <= self._max_bytes * _LEFT:
                return
