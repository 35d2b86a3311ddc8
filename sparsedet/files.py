"""Read JSON files; write files atomically: a file is either the old one or the complete new one."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import sys
import threading
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of a URL, also after `Path` has removed one of its slashes."""
EXPORTED = (".pt2", ".onnx")
"""Suffixes of exported detectors."""
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path`, synced to disk, when the block succeeds.

    Otherwise `path` is unchanged, the temporary file is deleted, and a disk error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = _name_file(error, path)
        if cause is not None and isinstance(error, RuntimeError):
            raise cause from None  # torch.save reports it as an unexpected position
        raise
    _sync_directory(path.parent)


def is_exported(path: Any) -> bool:
    """Whether a path names an exported detector, judging by its suffix."""
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() in EXPORTED


def expand_home(path: str | os.PathLike[str], key: str) -> Path:
    """A path with the home folder in place of its ``~``.

    Args:
        path: the path.
        key: the setting that names the path, for the message.

    Raises:
        ValueError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path} begins with ~, but this home folder is unknown. Set {key} to a path without ~."
        ) from error


def require_writable(path: Path) -> None:
    """Check that a file, or a new folder, can be written, before the work that creates it.

    Args:
        path: the file or the folder; missing folders above it are created later.

    Raises:
        OSError: the path is a folder, or cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file.")
    folder = next(each for each in path.absolute().parents if each.exists())
    try:
        with TemporaryFile(dir=folder):  # file permissions alone do not tell
            pass
    except OSError as error:
        raise type(error)(
            f"{path} cannot be written: {folder}: {error.strerror}. Name another path."
        ) from error


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files of killed processes; files that are being written are kept."""
    for path in directory.glob(".*.tmp"):
        if _LEFTOVER.fullmatch(path.name):
            with suppress(OSError), path.open("rb") as file:
                if _lock(file):
                    path.unlink()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed, which also happens when the process ends for any reason."""
    if sys.platform == "win32":  # leftovers are not deleted there
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds it, or the file system has no locks
        return False
    return True


def _name_file(error: BaseException | None, path: Path) -> OSError | None:
    """The system error that an error is or was caused by, with the file added."""
    while error is not None:
        if isinstance(error, OSError):
            error.filename = str(path)
            del error.filename2  # the message would end in "-> None"
            return error
        error = error.__cause__ or error.__context__
    return None


def file_digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal; cached until the file changes."""
    state = path.stat()
    return _digest(path.resolve(), (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache
def _digest(path: Path, stamp: tuple[int, ...]) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file. Numbers that are not finite are None.

    Raises:
        ValueError: the file holds something else, or cannot be read.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_nothing)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path.name} is damaged ({reason}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is damaged (it holds no object).")
    return content


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in the lines of a log; none if there is no file.

    Other lines are left out: a killed run may have left an incomplete last one. Numbers that are
    not finite are None, as `write_json` writes them.
    """
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                row = json.loads(line, parse_constant=_nothing)
                if isinstance(row, dict):
                    yield row


def _nothing(_: str) -> None:
    """What stands for NaN and Infinity, which are not JSON."""


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file atomically; numbers that are not finite become null."""
    text = _json_text(content, indent)
    with atomic_write(path) as file:
        file.write((text + "\n").encode())


def write_json_lists(path: Path, content: Mapping[str, Any]) -> None:
    """`write_json` for an object with long lists: iterators are written entry by entry."""
    with atomic_write(path) as file:
        for place, (key, value) in enumerate(content.items()):
            file.write(f"{', ' if place else '{'}{json.dumps(key)}: ".encode())
            if not isinstance(value, Iterator):
                file.write(_json_text(value).encode())
                continue
            file.write(b"[")
            for number, entry in enumerate(value):
                file.write(f"{', ' if number else ''}{_json_text(entry)}".encode())
            file.write(b"]")
        file.write(b"}\n")


def _json_text(content: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(content, indent=indent, allow_nan=False, default=_as_list)
    except ValueError:  # JSON cannot represent NaN and infinity
        return json.dumps(_finite(content), indent=indent, allow_nan=False, default=_as_list)


def _as_list(value: Any) -> list:
    if isinstance(value, array):
        return _finite(value.tolist())
    raise TypeError(f"JSON cannot represent {type(value).__name__}")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_figure(path: Path, figure: Any, *, dpi: int = 100) -> None:
    """Write a matplotlib figure as a PNG file atomically."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # not every file system supports it
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
