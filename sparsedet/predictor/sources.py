"""Iterate over pictures from files, folders, patterns, videos and memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sparsedet.data import DatasetError, PictureSettings, StorageError
from sparsedet.data.images import Shrink
from sparsedet.predictor.pictures import Picture, PictureSource, is_picture, read_picture
from sparsedet.predictor.video import is_live, is_video, read_frames

__all__ = ["find_files", "read_ahead", "read_pictures"]

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}

T = TypeVar("T")


def find_files(source: str | os.PathLike[str]) -> list[str]:
    """The files that a source names.

    Args:
        source: a file; a folder, whose pictures and videos are used, including subfolders; a
            pattern such as ``photos/**/*.jpg``; ``camera:0`` or a URL.

    Raises:
        DatasetError: there is no such file.
    """
    word = os.fspath(source)
    if is_live(word) or os.path.isfile(word):
        return [word]
    if os.path.isdir(word):
        found = [path for path in Path(word).rglob("*") if _is_readable(path, Path(word))]
        what = "folder {!r} has no pictures and no videos. Its files may have other suffixes."
    elif glob.has_magic(word):
        found = [Path(path) for path in glob.glob(word, recursive=True) if os.path.isfile(path)]
        what = "no file matches {!r}. Put the pattern in quotes, and check its folder."
    else:
        found, what = [], "there is no file {!r}. Name pictures, videos, folders or patterns."
    if not found:
        raise DatasetError(what.format(word))
    return [str(path) for path in sorted(found)]


def _is_readable(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    named = path.suffix.lower() in _IMAGES or is_video(path.name)
    return named and not hidden and path.is_file()


def read_pictures(
    sources: Iterable[PictureSource] | PictureSource,
    on_error: Callable[[DatasetError | StorageError], None] | None = None,
    settings: PictureSettings | None = None,
    shrink: Shrink | None = None,
) -> Iterator[Picture]:
    """The pictures of all sources; each is decoded only when it is needed.

    Args:
        sources: a source of ``find_files`` or ``read_picture``, or several.
        on_error: called with the error of a file, which is then left out. None = raise it.
        settings: how picture files are read.
        shrink: as in ``read_picture``.

    Raises:
        DatasetError: a file cannot be read.
        StorageError: a file cannot be reached; it may be intact.
    """
    several: Any = [sources] if is_picture(sources) else sources
    if not isinstance(several, Iterable):
        read_picture(several, settings)  # raises an error that says what to pass
    for source in several:
        if not isinstance(source, (str, os.PathLike)):
            yield read_picture(source, settings)
            continue
        for path in _found(source, on_error):
            try:
                yield from _read_file(path, settings, shrink)
            except (DatasetError, StorageError) as error:
                if on_error is None:
                    raise
                on_error(error)


def _found(
    source: str | os.PathLike[str],
    on_error: Callable[[DatasetError | StorageError], None] | None,
) -> list[str]:
    try:
        return find_files(source)
    except DatasetError as error:
        if on_error is None:
            raise
        on_error(error)
        return []


def _read_file(
    path: str, settings: PictureSettings | None, shrink: Shrink | None
) -> Iterator[Picture]:
    if is_video(path):
        for number, pixels in enumerate(read_frames(path)):
            yield Picture(pixels, path, number)
    else:
        yield read_picture(path, settings, shrink)


def read_ahead(items: Iterator[T], count: int) -> Iterator[list[T]]:
    """Lists of ``count`` items (the last may be shorter); the next list is read in advance."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(lambda: list(islice(items, count)))
        while batch := coming.result():
            coming = thread.submit(lambda: list(islice(items, count)))
            yield batch
