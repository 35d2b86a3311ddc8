"""Files on hosts that have a client of their own: Hugging Face and Google Drive."""

from __future__ import annotations

import re
from pathlib import Path

from sparsedet.weights.download import DownloadError

DRIVE = "drive.google.com"


def fetch_from_hub(name: str) -> Path:
    """The weights of a model of Hugging Face, in the cache that all its users share.

    Args:
        name: owner and model, such as ``SenseTime/deformable-detr``.

    Raises:
        DownloadError: they cannot be fetched.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise DownloadError("Hugging Face needs pip install huggingface_hub") from error
    try:
        try:
            return Path(hf_hub_download(name, "model.safetensors"))
        except LocalEntryNotFoundError:  # there is no network
            raise
        except EntryNotFoundError:  # older models have no other
            return Path(hf_hub_download(name, "pytorch_model.bin"))
    except Exception as error:  # those of its HTTP client have no common class
        raise DownloadError(_first_sentence(error.__cause__ or error)) from error


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
        raise DownloadError(_first_sentence(error)) from error


def _first_sentence(error: BaseException) -> str:
    return re.split(r"\.(?:\s|$)|\n", str(error).strip() or type(error).__name__)[0].rstrip(":")
