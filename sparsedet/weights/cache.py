"""Find weights by name: in the cache, or download, check and convert them."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock, Timeout

from sparsedet.checkpoint import (
    CheckpointError,
    check_weights,
    leave_out_pretrained,
    load_checkpoint,
    model_weights,
    save_checkpoint,
)
from sparsedet.config import instantiate
from sparsedet.config.naming import first_line
from sparsedet.conversion import contiguous_classes, convert
from sparsedet.files import file_digest, write_json
from sparsedet.weights.download import DownloadError, download
from sparsedet.weights.folders import find_folder
from sparsedet.weights.hosts import DRIVE, fetch_from_drive, fetch_from_hub
from sparsedet.weights.places import Place
from sparsedet.weights.table import (
    CATEGORY_IDS,
    WEIGHTS,
    Published,
    find_published,
    published_config,
)

_PAGE = (b"<!doctype html", b"<html")
_BLANK = b"\xef\xbb\xbf \r\n\t"  # bytes that may precede a web page
_CHECKPOINTS = (".pth", ".pt", ".safetensors")
_UNUSABLE = (ValueError, RuntimeError, EOFError, zipfile.BadZipFile)
_logger = logging.getLogger(__name__)
_Given = TypeVar("_Given")


def weights_file(weights: _Given) -> Path | _Given:
    """The file of weights that a user names; a path is returned unchanged.

    Published weights and models on Hugging Face are downloaded if necessary. All code that takes a
    checkpoint from a user calls this function, so that names work everywhere.

    Args:
        weights: a name from the table, the path of a file, a folder of `sparsedet publish`, or a
            model on Hugging Face.

    Raises:
        ConfigError: it looks like a name, but there are no published weights of that name.
        CheckpointError: the weights cannot be downloaded or kept, or the file is not the one in
            the table.
    """
    entry = find_published(weights)
    if entry is None:
        folder = find_folder(weights)
        return weights if folder is None else folder.file(WEIGHTS)
    place = Place(entry)
    try:
        if not place.converted.is_file():
            place.folder.mkdir(parents=True, exist_ok=True)
            with _alone(place, entry):
                if not place.converted.is_file():  # another process may have written it meanwhile
                    _fill(place, entry)
    except OSError as error:
        raise CheckpointError(
            f"Weights {entry.name} cannot be kept in {place.folder} ({first_line(error)}). Set "
            "SPARSEDET_HOME to a folder that can be written and has space for them."
        ) from error
    return place.converted


@contextmanager
def _alone(place: Place, entry: Published) -> Iterator[None]:
    """Allow one process at a time; the lock of a killed process is released."""
    lock = FileLock(place.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.warning("another process is downloading %s; waiting for it", entry.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fill(place: Place, entry: Published) -> None:
    if place.by_hand.is_file():
        _logger.info("%s: using %s", entry.name, place.by_hand)
        _convert(place, entry, place.by_hand)
        return
    if entry.by_hand:
        raise CheckpointError(_sentence(place, entry, "must be downloaded by hand"))
    try:
        path = _fetch(place, entry)
    except DownloadError as error:
        what = f"cannot be downloaded ({error})"
        raise CheckpointError(_sentence(place, entry, what)) from error
    try:
        _convert(place, entry, path)
    except CheckpointError:
        place.fetched.unlink(missing_ok=True)  # the next download may be intact
        raise
    place.fetched.unlink(missing_ok=True)


def _fetch(place: Place, entry: Published) -> Path:
    path = place.fetched
    if path.is_file():  # complete: a process was killed before it could convert it
        return path
    _logger.info("%s: downloading %s (licence: %s)", entry.name, entry.where, entry.licence)
    if entry.hub:
        return _fetch_from_hub(entry.name)
    if entry.host == DRIVE:
        fetch_from_drive(entry.address, path)
    else:
        download(entry.address, path)
    return path


def _fetch_from_hub(name: str) -> Path:
    for file in (WEIGHTS, "pytorch_model.bin"):  # the latter in older models
        if (path := fetch_from_hub(name, file)) is not None:
            return path
    raise DownloadError(f"there is no {WEIGHTS}")


def _sentence(place: Place, entry: Published, what: str) -> str:
    """A message that says what is wrong, and how the user can provide the file by hand."""
    file = entry.file if entry.hub else f"the file of '{entry.title}'"
    page = "" if entry.hub else f" (listed at {entry.page})"
    return (
        f"Weights {entry.name} {what}. Download {file} from {entry.where}{page} and save it as "
        f"{place.by_hand}."
    )


def _convert(place: Place, entry: Published, path: Path) -> None:
    """Check a published file, and write its tensors under our names."""
    digest = _check(place, entry, path)
    cfg = published_config(entry)
    leave_out_pretrained(cfg)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    try:
        with _unpacked(path, place.folder) as file:
            weights = convert(model_weights(load_checkpoint(file)), entry.source)
        if entry.classes == CATEGORY_IDS:
            weights = contiguous_classes(weights)
        check_weights(model, weights, path)
    except _UNUSABLE as error:
        what = f"cannot be converted from {path} ({first_line(error)})"
        raise CheckpointError(_sentence(place, entry, what)) from error
    save_checkpoint({"model": weights}, place.converted)
    size = path.stat().st_size
    write_json(place.origin, {"from": entry.where, "bytes": size, "sha256": digest})


def _check(place: Place, entry: Published, path: Path) -> str:
    """Refuse a file that is not the one in the table, or differs from the one used before.

    Returns:
        The SHA-256 of the file.
    """
    with path.open("rb") as file:
        begin = file.read(512).lstrip(_BLANK).lower()
    size, claimed, digest = path.stat().st_size, entry.megabytes, file_digest(path)
    # a page may give megabytes of 2**20 or 10**6 bytes, rounded
    if begin.startswith(_PAGE):
        wrong = f"cannot be converted from {path}, which is a web page"
    elif claimed and not 1e6 * (claimed - 1) <= size <= 2**20 * (claimed + 1):
        wrong = f"are a file of {claimed} MB, but {path} has {size / 1e6:.1f} MB"
    elif not digest.startswith(entry.sha256):
        known = entry.sha256
        wrong = f"have a SHA-256 that starts with {known}, but that of {path} is {digest}"
    else:
        before = _used_before(place)
        if before in (None, digest):
            return digest
        raise CheckpointError(
            f"{path} is not the file that weights {entry.name} were converted from before (its "
            f"SHA-256 is {digest}; it was {before}). If the authors have replaced the file, delete "
            f"{place.origin} to accept the new one."
        )
    raise CheckpointError(_sentence(place, entry, wrong))


def _used_before(place: Place) -> str | None:
    try:
        return str(json.loads(place.origin.read_text(encoding="utf-8"))["sha256"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{place.origin} is damaged. Delete it.") from error


@contextmanager
def _unpacked(path: Path, folder: Path) -> Iterator[Path]:
    """The checkpoint in an archive; the file itself if it is not an archive.

    Raises:
        CheckpointError: the archive has no checkpoint or several, or cannot be unpacked.
        BadZipFile: the archive has no list of its files.
    """
    names = _checkpoints_in(path)
    if names is None:
        yield path
        return
    if len(names) != 1:
        raise CheckpointError(f"it must hold one checkpoint, got {', '.join(names) or 'none'}")
    inside = folder / f"unpacked{Path(names[0]).suffix}"
    try:
        _unpack(path, names[0], inside)
        yield inside
    finally:
        inside.unlink(missing_ok=True)


def _unpack(path: Path, name: str, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(name) as source,
            target.open("wb") as written,
        ):
            shutil.copyfileobj(source, written, 1 << 20)
    except Exception as error:  # each kind of compression has its own
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise CheckpointError(f"{name} in it cannot be unpacked: {first_line(error)}") from error


def _checkpoints_in(path: Path) -> list[str] | None:
    """Names of the checkpoints in an archive; None for other files, and for archives of torch."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/data.pkl") for name in names):
        return None
    return [
        name for name in names if name.endswith(_CHECKPOINTS) and not name.startswith("__MACOSX/")
    ]
