"""Models written by `sparsedet publish`: in a local folder, or on Hugging Face."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparsedet import __version__
from sparsedet.checkpoint import CheckpointError
from sparsedet.weights.download import DownloadError
from sparsedet.weights.hosts import NoNetworkError, fetch_from_hub, hub_page
from sparsedet.weights.table import CONFIG, HUB, WEIGHTS, find_published

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
REPOSITORY = re.compile(f"{_PART}/{_PART}", re.ASCII)
"""The name of a model on Hugging Face: owner/model."""
_NAME = re.compile(rf"({HUB})?({REPOSITORY.pattern})(?:@([\w.-][\w./-]*))?", re.ASCII)
_FILES = re.compile(r"\.(pth?|safetensors|bin|onnx|pt2|ya?ml|py|zip)$")
_VERSION = re.compile(r"# Written by sparsedet (\S+)\n")


@dataclass(frozen=True)
class ModelFolder:
    """A model with its config.

    Attributes:
        name: the name that the user gave.
        folder: folder of the files. For a model on Hugging Face, it has the files of one commit
            that were downloaded so far, and is named after the commit.
        repository: owner/model on Hugging Face; empty for a local folder.
    """

    name: str
    folder: Path
    repository: str = ""

    def file(self, name: str) -> Path:
        """The path of one of its files, which is downloaded if necessary.

        Raises:
            CheckpointError: the model has no such file, or it cannot be downloaded.
        """
        path = self.folder / name
        if not path.is_file() and self.repository:
            return _fetch(self.name, self.repository, name, self.folder.name)
        if not path.is_file():
            raise CheckpointError(_without(self.name, name) + _other_files(self.folder))
        return path

    @contextmanager
    def telling_versions(self) -> Iterator[None]:
        """Add to errors in the block that another version of this package wrote the model."""
        try:
            yield
        except ValueError as error:
            path = self.folder / CONFIG
            found = _VERSION.match(path.read_text(errors="replace") if path.is_file() else "")
            if found is None or found[1] == __version__:
                raise
            raise CheckpointError(
                f"{error} {self.name} was written by sparsedet {found[1]}, and this is "
                f"{__version__}."
            ) from error


def version_line() -> str:
    """The first line of a config, which tells other versions which version wrote it."""
    return f"# Written by sparsedet {__version__}\n"


def telling_versions(weights: Any) -> Any:
    """`ModelFolder.telling_versions` if `weights` is such a model; else no effect."""
    folder = None if weights is None else find_folder(weights)
    return nullcontext() if folder is None else folder.telling_versions()


def find_folder(weights: Any) -> ModelFolder | None:
    """The model in a folder or on Hugging Face; None for anything else.

    Published weights and existing paths take precedence over models on Hugging Face. A name that
    starts with ``hf://`` is never a path.

    Args:
        weights: what the user gave: a folder, ``owner/model`` or ``hf://owner/model``, optionally
            with ``@`` and a branch, tag or commit.

    Raises:
        ConfigError: it looks like the name of published weights, but there are none of that name.
        CheckpointError: it is not a model on Hugging Face, or cannot be downloaded.
    """
    if not isinstance(weights, (str, os.PathLike)) or find_published(weights) is not None:
        return None
    name = os.fspath(weights)
    if os.path.isdir(name):
        folder = Path(name)
        known = any((folder / each).is_file() for each in (CONFIG, WEIGHTS))
        return ModelFolder(name, folder) if known else None
    found = _NAME.fullmatch(name)
    if found is None and name.startswith(HUB):
        raise CheckpointError(
            f"{name} is not a model on Hugging Face. Write {HUB}owner/model, or "
            f"{HUB}owner/model@revision."
        )
    if found is None or os.path.exists(name):
        return None
    explicit, repository, revision = found[1], found[2], found[3]
    if not explicit and _FILES.search(name):
        return None
    if not explicit and os.path.isdir(os.path.dirname(name)):
        raise CheckpointError(
            f"{name} is neither a file nor a folder. If it is a model on Hugging Face, write "
            f"{HUB}{name}."
        )
    return ModelFolder(name, _snapshot(name, repository, revision), repository)


@lru_cache
def _snapshot(name: str, repository: str, revision: str | None) -> Path:
    """The folder of one commit, which a process uses for all files of the model."""
    return _fetch(name, repository, CONFIG, revision).parent


def _fetch(name: str, repository: str, file: str, revision: str | None) -> Path:
    try:
        path = fetch_from_hub(repository, file, revision)
    except NoNetworkError as error:
        raise CheckpointError(
            f"{name} cannot be downloaded from Hugging Face ({error}). Save {CONFIG} and {WEIGHTS} "
            f"from {hub_page(repository)} in a folder, and give that folder instead."
        ) from error
    except DownloadError as error:
        raise CheckpointError(f"{name} cannot be downloaded from Hugging Face: {error}.") from error
    if path is None:
        raise CheckpointError(_without(name, file))
    return path


def _without(name: str, file: str) -> str:
    return f"{name} has no {file}, which `sparsedet publish` writes."


def _other_files(folder: Path) -> str:
    best = folder / "model_best.pth"
    return f" Name a checkpoint in it, such as {best}." if best.is_file() else ""
