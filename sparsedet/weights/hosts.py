"""Files on hosts that have a client of their own: Hugging Face and Google Drive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsedet.weights.download import DownloadError

DRIVE = "drive.google.com"


class NoNetworkError(DownloadError):
    """The host cannot be reached, or must not be."""


def hub_page(name: str) -> str:
    """The address of a model of Hugging Face.

    Args:
        name: owner and model.
    """
    return f"{_hub().constants.ENDPOINT}/{name}"


def fetch_from_hub(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a model of Hugging Face, in the cache that all its users share.

    Args:
        name: owner and model, such as ``SenseTime/deformable-detr``.
        file: which of its files.
        revision: a branch, a tag or a commit; None = the newest of the main branch.

    Returns:
        None where the model has no such file.

    Raises:
        DownloadError: it cannot be fetched.
    """
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision))
    except hub.errors.LocalEntryNotFoundError as error:  # there is no network
        raise NoNetworkError(_reason(error.__cause__ or error)) from error
    except hub.errors.EntryNotFoundError:
        return None
    except Exception as error:  # those of its HTTP client have no common class
        raise DownloadError(_hub_reason(error, name, revision)) from error


def upload(files: Sequence[Path], name: str, *, private: bool) -> str:
    """Upload files as one commit to Hugging Face; the model is made where there is none.

    Args:
        files: they replace those of the same names.
        name: owner and model.
        private: of a model that is made: only its owner sees it.

    Returns:
        The address of the model.

    Raises:
        DownloadError: they cannot be uploaded.
    """
    hub = _hub()
    try:
        api = hub.HfApi()
        made = api.create_repo(name, private=private or None, exist_ok=True)
        added = [hub.CommitOperationAdd(path.name, path) for path in files]
        api.create_commit(name, added, commit_message="Upload a model of sparsedet")
    except Exception as error:
        raise DownloadError(_hub_reason(error, name, None)) from error
    return str(made)


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise DownloadError("Hugging Face needs pip install huggingface_hub") from error
    return huggingface_hub


def _hub_reason(error: BaseException, name: str, revision: str | None) -> str:
    """What an error of Hugging Face's client means for its user."""
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"its owners ask who wants it: ask at {hub_page(name)}, and {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no branch, tag or commit {revision}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no model {name}, or it is not for everybody; for your own, {log_in}"
    said = getattr(error, "server_message", None) or error
    if isinstance(said, ValueError):  # of the head of a model card, with a line for each fault
        return " ".join(str(said).split()).rstrip(".")
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return f"you may not do that at {name} ({_reason(said)}); {log_in} of somebody who may"
    return _reason(said)


def fetch_from_drive(address: str, path: Path) -> None:
    """A file of Google Drive, which asks before it hands out large ones.

    Args:
        address: as a browser shows it.
        path: where it goes; what an earlier call has fetched of it is not fetched again.

    Raises:
        DownloadError: it cannot be fetched.
    """
    try:
        import gdown  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DownloadError("Google Drive needs pip install gdown") from error
    found = re.search(r"/d/([\w-]+)", address)
    assert found is not None, address
    try:
        gdown.download(id=found[1], output=str(path), resume=True)
    except Exception as error:  # its own, and those of requests
        raise DownloadError(_reason(error)) from error


def _reason(error: BaseException | str) -> str:
    return re.split(r"\.(?:\s|$)|\n", str(error).strip() or type(error).__name__)[0].rstrip(":")
