"""Remote folders of pictures: `s3://`, `gs://`, `https://`, `zip://`, `memory://`.

Only this module imports `fsspec`. Each process opens its own connections.
"""

import errno
import io
import os
import re
import time
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote

from sparsedet.data.cache import FileCache
from sparsedet.data.errors import DatasetError, StorageError
from sparsedet.files import expand_home

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# Files on this machine need no copy.
_LOCAL = {"file", "local", "memory", "zip", "tar"}
_WEB = {"http", "https"}
_WAITS = (1.0, 4.0, 16.0)  # seconds before the next try

T = TypeVar("T")


def is_address(path: str) -> bool:
    """Whether this is a URL, such as `https://...`, rather than a local path."""
    return _ADDRESS.match(path) is not None


def join(root: str, name: str) -> str:
    """The path of a file below a folder or URL."""
    if not is_address(root):
        return os.path.join(root, name)
    head, *rest = root.split("::")  # zip://folder::https://host/set.zip
    if _protocols(root)[0] in _WEB:
        name = quote(name)
    return "::".join([f"{head}{name}" if head.endswith("/") else f"{head}/{name}", *rest])


def name_below(path: str, root: str) -> str:
    """The inverse of `join`: the part of a path below its root, with slashes."""
    if not is_address(root):
        return os.path.relpath(path, root).replace(os.sep, "/")
    name = path.split("::")[0][len(root.split("::")[0]) :].lstrip("/")
    return unquote(name) if _protocols(root)[0] in _WEB else name


def check_root(root: str) -> None:
    """Checks that a URL can be opened.

    Raises:
        DatasetError: `fsspec` or a package that it needs for the URL is not installed, or the
            folder does not exist.
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
    """The sizes in bytes of all files below a URL; None if it cannot be listed (HTTP).

    Raises:
        DatasetError: no installed package can open it.
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
    """Opens a file; remote files are read through the cache.

    Args:
        address: URL of the file.
        cache_dir: folder of the copies; None = `~/.cache/sparsedet/pictures`.
        cache_gigabytes: maximum size of that folder.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be reached after several tries.
    """
    if set(_protocols(address)) <= _LOCAL:
        return io.BytesIO(_fetch(address))
    return _cache(cache_dir, cache_gigabytes).open(address, lambda: _fetch(address))


def forget(address: str, cache_dir: str | None, cache_gigabytes: float) -> None:
    """Removes the copy of a file, so that it is downloaded again when it is needed."""
    _cache(cache_dir, cache_gigabytes).forget(address)


def _fetch(address: str) -> bytes:
    def read() -> bytes:
        filesystem, path = _filesystem(address)
        return filesystem.cat_file(path)

    return _tried(address, read)


def _tried(address: str, action: Callable[[], T]) -> T:
    """The result of an action, which is retried after growing delays if the connection fails."""
    for wait in (*_WAITS, None):
        try:
            return action()
        except (DatasetError, MemoryError):
            raise
        except (FileNotFoundError, KeyError) as error:  # ZIP files raise a KeyError
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from error
        except Exception as error:  # each kind of storage has its own error classes
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
    """Protocols from the inside out: zip and https for `zip://folder::https://host/set.zip`."""
    parts = address.split("::")
    return [part.split("://")[0].lower() if "://" in part else "file" for part in parts]


@cache
def _cache(folder: str | None, gigabytes: float) -> FileCache:
    place = expand_home(folder or "~/.cache/sparsedet/pictures", "dataset.cache_dir")
    return FileCache(place, int(gigabytes * 1e9))
