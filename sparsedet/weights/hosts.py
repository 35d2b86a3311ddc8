"""Download files from Hugging Face and Google Drive with the clients of these hosts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsedet.weights.download import DownloadError

DRIVE = "drive.google.com"


class NoNetworkError(DownloadError):
    """The host cannot be reached, or network access is disabled."""


def hub_page(name: str) -> str:
    """The URL of a model on Hugging Face.

    Args:
        name: owner/model.
    """
    return f"{_hub().constants.ENDPOINT}/{name}"


def fetch_from_hub(name: str, file: str, revision: str | None = None) -> Path | None:
    """Download a file of a model on Hugging Face to Hugging Face's cache.

    Args:
        name: owner/model, such as ``SenseTime/deformable-detr``.
        file: name of the file in the model.
        revision: a branch, tag or commit; None = the newest commit of the main branch.

    Returns:
        The path of the file; None if the model has no such file.

    Raises:
        DownloadError: the file cannot be downloaded.
    """
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision))
    except hub.errors.LocalEntryNotFoundError as error:  # there is no network
        raise NoNetworkError(_reason(error.__cause__ or error)) from error
    except hub.errors.EntryNotFoundError:
        return None
    except Exception as error:  # errors of its HTTP client have no common class
        raise DownloadError(_hub_reason(error, name, revision)) from error


def upload(files: Sequence[Path], name: str, *, private: bool) -> str:
    """Upload files as one commit to Hugging Face; the model is created if it does not exist.

    Args:
        files: they replace files of the same names.
        name: owner/model.
        private: make a newly created model visible only to its owner.

    Returns:
        The URL of the model.

    Raises:
        DownloadError: the files cannot be uploaded.
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
    """Explain an error of Hugging Face's client to the user."""
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"access is restricted: request it at {hub_page(name)}, and {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no branch, tag or commit {revision}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no model {name}, or it is private; if it is yours, {log_in}"
    said = getattr(error, "server_message", None) or error
    if isinstance(said, ValueError):  # faults in the head of a model card, one per line
        return " ".join(str(said).split()).rstrip(".")
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return f"permission denied for {name} ({_reason(said)}); {log_in} of an authorized account"
    return _reason(said)


def fetch_from_drive(address: str, path: Path) -> None:
    """Download a file from Google Drive, which asks for confirmation of large files.

    Args:
        address: the URL as a browser shows it.
        path: the file to write; an earlier partial download is continued.

    Raises:
        DownloadError: the file cannot be downloaded.
    """
    try:
        import gdown  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DownloadError("Google Drive needs pip install gdown") from error
    found = re.search(r"/d/([\w-]+)", address)
    assert found is not None, address
    try:
        gdown.download(id=found[1], output=str(path), resume=True)
    except Exception as error:  # errors of gdown and of requests
        raise DownloadError(_reason(error)) from error


def _reason(error: BaseException | str) -> str:
    return re.split(r"\.(?:\s|$)|\n", str(error).strip() or type(error).__name__)[0].rstrip(":")
