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
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise DownloadError("this needs pip install huggingface_hub") from error
    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError as error:
            missing = error
        except Exception as error:  # those of its HTTP client have no common class
            raise DownloadError(_first_line(error)) from error
    raise DownloadError(_first_line(missing)) from missing


def fetch_from_drive(address: str, path: Path) -> None:
    """A file of Google Drive, which asks before it hands out large ones.

    Args:
        address: as a browser shows it.
        path: where it goes; what an earlier call has fetched of it is not fetched again.

    Raises:
        DownloadError: it cannot be fetched.
    """
    try:
        import gdown
    except ImportError as error:
        raise DownloadError("Google Drive needs pip install gdown") from error
    found = re.search(r"/d/([\w-]+)", address)
    assert found is not None, address
    try:
        gdown.download(id=found[1], output=str(path), resume=True)
    except Exception as error:  # its own, and those of requests
        raise DownloadError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". :")
