"""Verify the checksums of checkpoint files before they are loaded.

A `.pth` file is a zip archive with a checksum (CRC-32) for each tensor, which `torch.load` does not
verify. The `.safetensors` format has no checksums; the files that we write have one in their
metadata, over names, types, shapes and values.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["DamagedError", "digest", "stored_digest", "verify_archive"]

_ZIP = b"PK\x03\x04"
_BLOCK = 1 << 20
# limit for the list of tensors; that of a thousand tensors takes 100 kB
_LARGEST_TABLE = 64 << 20
_KEY = "sha256"


class DamagedError(Exception):
    """A file whose bytes have changed, or that claims more bytes than it has."""


def verify_archive(path: Path) -> None:
    """Compare every part of a `.pth` file with its checksum.

    Files in torch's old format and archives without checksums are not checked.

    Args:
        path: The file.

    Raises:
        DamagedError: A checksum differs, or the archive claims more bytes than it has.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            _check_sizes(parts, path.stat().st_size)
            if any(part.CRC for part in parts):
                _read_all(archive)
    except DamagedError:
        raise
    except Exception as error:  # the reader may fail in any way on damaged archives
        raise DamagedError(str(error) or type(error).__name__) from error


def _check_sizes(parts: list[zipfile.ZipInfo], size: int) -> None:
    claimed = sum(part.file_size for part in parts)
    if claimed > size:
        raise DamagedError(f"it claims to have {claimed} bytes but has {size}")
    for part in parts:
        if part.filename.endswith("data.pkl") and part.file_size > _LARGEST_TABLE:
            raise DamagedError(
                f"its list of tensors has {part.file_size >> 20} MB, more than any model needs"
            )


def _read_all(archive: zipfile.ZipFile) -> None:
    for part in archive.infolist():
        with archive.open(part) as content:
            while content.read(_BLOCK):  # compares the checksum at the end
                pass


def digest(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The checksum of weights, as metadata of their file.

    Args:
        weights: Tensors on the host.
    """
    content = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {_KEY: content.hexdigest()}


def stored_digest(data: bytes) -> dict[str, str] | None:
    """The checksum in the bytes of a valid `.safetensors` file; None if there is none."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return {_KEY: metadata[_KEY]} if _KEY in metadata else None
