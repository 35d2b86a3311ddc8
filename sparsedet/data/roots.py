"""Folders of pictures that are elsewhere: `s3://`, `gs://`, `https://`, `zip://`, `memory://`.

The one place that imports `fsspec`. Each process opens its own connections.
"""

import errno
import io
import os
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote

from sparsedet.data.cache import FileCache
from sparsedet.data.errors import DatasetError, StorageError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# What is on this machine already needs no copy.
_LOCAL = {"file", "local", "memory", "zip", "tar"}
_WEB = {"http", "https"}
_WAITS = (1.0, 4.0, 16.0)  # seconds before another try

T = TypeVar("T")


def is_address(path: str) -> bool:
    """Whether this is an address, such as `https://...`, rather than a path of this machine."""
    return _ADDRESS.match(path) is not None


def join(root: str, name: str) -> str:
    """The path of a file below a folder or an address."""
    if not is_address(root):
        return os.path.join(root, name)
    head, *rest = root.split("::")  # zip://folder::https://host/set.zip
    if _protocols(root)[0] in _WEB:
        name = quote(name)
    return "::".join([f"{head}{name}" if head.endswith("/") else f"{head}/{name}", *rest])


def name_below(path: str, root: str) -> str:
    """The opposite of `join`: what of a path is below its root, with slashes."""
    if not is_address(root):
        return os.path.relpath(path, root).replace(os.sep, "/")
    name = path.split("::")[0][len(root.split("::")[0]) :].lstrip("/")
    return unquote(name) if _protocols(root)[0] in _WEB else name


def check_root(root: str) -> None:
    """Refuses an address that nothing can open.

    Raises:
        DatasetError: `fsspec` or what it needs for the address is not installed, or there is
            nothing.
        StorageError: it cannot be reached.
    """
    try:
        _tried(root, lambda: _filesystem(root))
    except FileNotFoundError:
        raise DatasetError(
            f"image folder {root!r} does not exist. Set dataset.train_images and "
            "dataset.val_images."
        ) from None


def list_files(root: str) -> dict[str, int] | None:
    """The sizes in bytes of all files below an address; None where it gives no list (HTTP).

    Raises:
        DatasetError: nothing that is installed can open it.
        StorageError: it cannot be reached.
    """
    if _protocols(root)[0] in _WEB:
        return None

    def find() -> dict[str, int]:
        filesystem, path = _filesystem(root)
        found = filesystem.find(path, detail=True)
        begin = len(path.strip("/"))
        return {
            name.strip("/")[begin:].lstrip("/"): int(info.get("size") or 0)
            for name, info in found.items()
        }

    try:
        return _tried(root, find)
    except FileNotFoundError:
        return {}


def open_file(address: str, cache_dir: str | None, cache_gigabytes: float) -> IO[bytes]:
    """A file, from the cache where it is not on this machine.

    Args:
        address: of the file.
        cache_dir: folder of the copies; None = `~/.cache/sparsedet/pictures`.
        cache_gigabytes: size of that folder.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be reached, after several tries.
    """
    if set(_protocols(address)) <= _LOCAL:
        return io.BytesIO(_fetch(address))
    return _cache(cache_dir, cache_gigabytes).open(address, lambda: _fetch(address))


def forget(address: str, cache_dir: str | None, cache_gigabytes: float) -> None:
    """Removes the copy of a file, which is fetched anew when it is needed again."""
    _cache(cache_dir, cache_gigabytes).forget(address)


def _fetch(address: str) -> bytes:
    def read() -> bytes:
        filesystem, path = _filesystem(address)
        return filesystem.cat_file(path)

    return _tried(address, read)


def _tried(address: str, action: Callable[[], T]) -> T:
    """Its result; a connection that fails is tried again after waits that grow."""
    for wait in (*_WAITS, None):
        try:
            return action()
        except (DatasetError, MemoryError):
            raise
        except (FileNotFoundError, KeyError) as error:  # what a ZIP file says is a KeyError
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from error
        except Exception as error:  # each kind of storage has errors of its own
            if wait is None:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise StorageError(
                    f"{address!r} cannot be reached after {len(_WAITS) + 1} tries ({reason}). "
                    "Check the connection and the permissions; the file itself may be intact."
                ) from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _filesystem(address: str) -> tuple[Any, str]:
    fsspec = _import(address)
    try:
        for protocol in _protocols(address):
            fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise DatasetError(
            f"{address!r} starts with a protocol that fsspec does not know. Give a local folder, "
            "or a URL such as s3://..., gs://..., https://... or zip://FOLDER::FILE.zip."
        ) from None
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{address!r} cannot be opened: {reason}. Install that package."
        ) from None
    if _protocols(address)[0] == "zip" and "::" not in address:
        raise DatasetError(
            f"{address!r} does not name the file to open. Write zip://FOLDER::FILE.zip, or "
            "zip://::FILE.zip for pictures at its top."
        )
    return fsspec.core.url_to_fs(address)


def _import(address: str) -> ModuleType:
    try:
        import fsspec
        import fsspec.core
    except ImportError:
        raise DatasetError(
            f"{address!r} is a URL, and opening it needs the package fsspec. Run pip install "
            "'sparsedet[remote]', or give a local folder."
        ) from None
    return fsspec


def _protocols(address: str) -> list[str]:
    """From the file outward: zip and https of `zip://folder::https://host/set.zip`."""
    parts = address.split("::")
    return [part.split("://")[0].lower() if "://" in part else "file" for part in parts]


@cache
def _cache(folder: str | None, gigabytes: float) -> FileCache:
    place = Path(folder or "~/.cache/sparsedet/pictures").expanduser()
    return FileCache(place, int(gigabytes * 1e9))
