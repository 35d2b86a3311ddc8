"""The folder of fetched weights: one folder each, with the file in our names and what it was made of.

`weights.safetensors` is what is loaded. `origin.json` says of which file it was made, so that
another one is not taken for it later. A file that a user has put there, under the name that
:attr:`Published.file` gives, is taken in place of a download and stays.
"""

from __future__ import annotations

import json
import logging
import os
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
from sparsedet.conversion import contiguous_classes, convert
from sparsedet.files import file_digest, write_json
from sparsedet.weights.download import DownloadError, download
from sparsedet.weights.hosts import DRIVE, fetch_from_drive, fetch_from_hub
from sparsedet.weights.table import CATEGORY_IDS, Published, find_published, published_config

_PAGE = (b"<!doctype html", b"<html")
_MEMBERS = (".pth", ".pt", ".safetensors")
_logger = logging.getLogger(__name__)
_Given = TypeVar("_Given")


def weights_file(weights: _Given) -> Path | _Given:
    """The file of weights: of published ones, which are fetched if need be; else what was given.

    Everything that takes a checkpoint from a user passes here, so that a name serves everywhere.

    Args:
        weights: a name from the table, or the path of a file.

    Raises:
        ConfigError: it looks like a name, and there are no published weights of that name.
        CheckpointError: they cannot be fetched, or the file is not the one that the table means.
    """
    entry = find_published(weights)
    return weights if entry is None else Slot(entry).obtain()


def cache_folder() -> Path:
    """Where fetched weights are kept: in `SPARSEDET_HOME`, or else in the user's cache folder."""
    home = os.environ.get("SPARSEDET_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache/sparsedet") / "weights"


class Slot:
    """The place of published weights in the cache.

    Args:
        entry: from the table.

    Attributes:
        folder: what belongs to them.
        by_hand: where a user can put the published file.
        converted: the weights in our names, in which they are whole or not there.
    """

    def __init__(self, entry: Published) -> None:
        self._entry = entry
        self.folder = cache_folder() / entry.name.replace("/", "--")
        self.by_hand = self.folder / entry.file
        self.converted = self.folder / "weights.safetensors"
        self._origin = self.folder / "origin.json"

    def obtain(self) -> Path:
        """The converted file; it is fetched and converted by one process, while others wait.

        Raises:
            CheckpointError: see :func:`weights_file`.
        """
        if not self.converted.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                if not self.converted.is_file():  # another process may have made it meanwhile
                    self._fill()
        return self.converted

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _logger.info("another process fetches %s; waiting for it", self._entry.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _fill(self) -> None:
        if self.by_hand.is_file():
            _logger.info("%s: taking %s", self._entry.name, self.by_hand)
            self._convert(self.by_hand)
        elif self._entry.hub:
            self._convert(self._fetch())  # in the cache of huggingface_hub, which others share
        else:
            fetched = self._fetch()
            try:
                self._convert(fetched)
            finally:
                fetched.unlink(missing_ok=True)

    def _fetch(self) -> Path:
        entry, path = self._entry, self.folder / f"{self._entry.file}.fetched"
        if path.is_file():  # whole, of a process that was killed before it could convert it
            return path
        if entry.by_hand:
            raise CheckpointError(self._sentence("are fetched by hand"))
        _logger.info("%s: fetching %s (licence: %s)", entry.name, entry.where, entry.licence)
        try:
            if entry.hub:
                return fetch_from_hub(entry.name)
            if entry.host == DRIVE:
                fetch_from_drive(entry.address, path)
            else:
                download(entry.address, path)
        except DownloadError as error:
            raise CheckpointError(self._sentence(f"cannot be downloaded ({error})")) from error
        return path

    def _sentence(self, what: str) -> str:
        """What is the matter, and how a user can do by hand what we cannot."""
        entry = self._entry
        page = "" if entry.hub else f", which {entry.page} lists,"
        file = f"{entry.file} of {entry.where}" if entry.hub else f"the file of {entry.where}{page}"
        return f"Weights {entry.name} {what}: get {file} and put it at {self.by_hand}"

    def _convert(self, path: Path) -> None:
        """Check a published file, and write its tensors under our names."""
        digest = self._check(path)
        entry = self._entry
        try:
            with _unpacked(path, self.folder) as file:
                weights = convert(model_weights(load_checkpoint(file)), entry.source)
                if entry.classes == CATEGORY_IDS:
                    weights = contiguous_classes(weights)
                cfg = published_config(entry)
                leave_out_pretrained(cfg)
                with torch.device("meta"):
                    model = instantiate(cfg.model)
                check_weights(model, weights, file)
        except (ValueError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{path} is not the file of weights {entry.name}, or is damaged ({error}). "
                f"{self._sentence('need the whole file')}."
            ) from error
        save_checkpoint({"model": weights}, self.converted)
        write_json(
            self._origin,
            {
                "file": path.name,
                "from": entry.where,
                "bytes": path.stat().st_size,
                "sha256": digest,
            },
        )

    def _check(self, path: Path) -> str:
        """Refuse a file that is not the one that the table means, or that was used before.

        Returns:
            Its SHA-256.
        """
        with path.open("rb") as file:
            if file.read(512).lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(_PAGE):
                raise CheckpointError(self._sentence(f"are a file, and {path} is a web page"))
        size, claimed = path.stat().st_size, self._entry.megabytes
        # pages count 2**20 or 10**6 bytes, and round
        if claimed and not 0.99e6 * claimed <= size <= 1.01 * 2**20 * claimed:
            raise CheckpointError(
                self._sentence(f"are a file of {claimed} MB, and {path} has {size} bytes")
            )
        digest, known = file_digest(path), self._entry.sha256
        if not digest.startswith(known):
            raise CheckpointError(
                self._sentence(f"have a SHA-256 of {known}..., and {path} has {digest[:8]}...")
            )
        before = self._used_before()
        if before not in (None, digest):
            raise CheckpointError(
                f"{path} is not the file that weights {self._entry.name} were made of before "
                f"(SHA-256 {digest[:8]}... instead of {before[:8]}...). If its authors have "
                f"replaced it, delete {self._origin} to take the new one."
            )
        return digest

    def _used_before(self) -> str | None:
        try:
            return str(json.loads(self._origin.read_text(encoding="utf-8"))["sha256"])
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{self._origin} is damaged. Delete it.") from error


@contextmanager
def _unpacked(path: Path, folder: Path) -> Iterator[Path]:
    """The checkpoint in an archive; the file itself where it is none.

    Raises:
        CheckpointError: the archive holds none or several.
        BadZipFile: it is damaged.
    """
    names = _checkpoints_in(path)
    if names is None:
        yield path
        return
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise CheckpointError(f"{path} must hold one checkpoint, got {found}")
    inside = folder / f"unpacked{Path(names[0]).suffix}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(names[0]) as source:
            with inside.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        yield inside
    finally:
        inside.unlink(missing_ok=True)


def _checkpoints_in(path: Path) -> list[str] | None:
    """Names of the checkpoints in an archive; None for a file that is none, and for torch's own."""
    if path.name.removesuffix(".fetched").endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return [each for each in names if each.endswith(_MEMBERS) and "__MACOSX" not in each]
    return None
