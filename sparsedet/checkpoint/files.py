"""Read and write checkpoint files: atomically, and without executing code from them."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsedet.checkpoint.integrity import DamagedError, digest, stored_digest, verify_archive
from sparsedet.checkpoint.values import oddity
from sparsedet.files import ADDRESS, atomic_write, is_exported

__all__ = ["CheckpointError", "load_checkpoint", "model_weights", "require_file", "save_checkpoint"]


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read or does not fit the model."""


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint atomically: the file is either the old one or the complete new one.

    The file has a checksum, see `sparsedet.checkpoint.integrity`.

    Args:
        checkpoint: Tensors, numbers, strings, lists and dicts of these; `"model"` is a state dict.
        path: The file to write; with the suffix `.safetensors` only the weights are written.
    """
    path = Path(path)
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            weights = _contiguous(checkpoint["model"])
            file.write(_safetensors().save(weights, metadata=digest(weights)))
        else:
            torch.save(dict(checkpoint), file)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint to the host, without executing code from it.

    Its checksum is verified first; a file without one is read without this check.

    Args:
        path: A `.pth` or `.safetensors` file. A bare state dict and one under `"state_dict"` are
            accepted as weights, and averaged weights (`"ema"`, `"model_ema"`) if there are no
            others.

    Returns:
        A dict with at least `"model"`.

    Raises:
        CheckpointError: If the file is missing, truncated, damaged or not a checkpoint, has objects
            that safe loading refuses, or tensors that cannot be weights, such as sparse ones.
    """
    try:
        path = require_file(path)
        if is_exported(path):
            raise CheckpointError(
                f"{path} is an exported file. Name the checkpoint that it was made from."
            )
        read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
        content = _with_model(read(path), path)
        _require_plain(content, path)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {error.strerror or error}."
        ) from error
    return content


def require_file(path: str | os.PathLike[str]) -> Path:
    """Check that the file of a checkpoint exists; return its path.

    Raises:
        CheckpointError: it is not a file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(
            f"a checkpoint must be the path of a .pth or .safetensors file, got {path!r}."
        )
    path = Path(path)
    if not path.is_file():
        if ADDRESS.match(str(path)):
            raise CheckpointError(
                f"checkpoint {path} is a URL, and checkpoints are not downloaded. Download the "
                "file and give its path."
            )
        what = "is not a file" if path.exists() else "does not exist"
        what = "is a folder" if path.is_dir() else what
        raise CheckpointError(
            f"checkpoint {path} {what}. Give the path of a .pth or .safetensors file."
        )
    return path


def _read_pickle(path: Path) -> Any:
    try:
        verify_archive(path)
        # released DETR code stores its command line with the weights, in this plain container
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except DamagedError as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or not a checkpoint ({_reason(error)}). Copy or "
            "download it again, or use another one."
        ) from error
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise CheckpointError(
                f"checkpoint {path} is not a checkpoint or is damaged."
            ) from error
        raise CheckpointError(
            f"checkpoint {path} has an object of type {refused[1]}, which safe loading refuses. "
            'Save it again as {"model": state_dict}, or as .safetensors.'
        ) from error
    except Exception as error:  # errors caused by arbitrary bytes have no common class
        raise CheckpointError(
            f"checkpoint {path} is not a checkpoint or is truncated ({_reason(error)})."
        ) from error


def _reason(error: Exception) -> str:
    text = str(error)
    return re.split(r"\.(?:\s|$)|\n", text)[0] if text else type(error).__name__


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(
            ".safetensors files need the package safetensors. Run: pip install safetensors"
        ) from error
    return safetensors.torch


def _read_safetensors(path: Path) -> Any:
    module = _safetensors()
    data = path.read_bytes()
    try:
        weights = module.load(data)
    except Exception as error:  # its error type is not exported on all versions
        raise CheckpointError(f"checkpoint {path} is not a safetensors file ({error}).") from error
    if stored_digest(data) not in (None, digest(weights)):
        raise CheckpointError(
            f"checkpoint {path} is damaged: its tensors do not match their checksum. Copy or "
            "download it again, or use another one."
        )
    return weights


def _contiguous(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _with_model(content: Any, path: Path) -> dict[str, Any]:
    if isinstance(content, Mapping):
        for weights in (content.get("model"), content.get("state_dict"), _averaged(content)):
            if _is_state_dict(weights):
                return {**content, "model": weights}
        if _is_state_dict(content):
            return {"model": dict(content)}
    raise CheckpointError(
        f'checkpoint {path} has no weights: expected {{"model": state_dict}} or a state dict, '
        f"which maps names to tensors{_first_other(content)}."
    )


def _first_other(content: Any) -> str:
    """The first entry that does not belong in a state dict, for the message."""
    if isinstance(content, Mapping):
        content = content.get("model", content.get("state_dict", content))
    if not isinstance(content, Mapping):
        return f"; it is {type(content).__name__}"
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            return f"; {name!r} is {type(value).__name__}"
    return "; it is empty"


def _require_plain(checkpoint: Mapping[str, Any], path: Path) -> None:
    size = path.stat().st_size
    for weights in (checkpoint["model"], _averaged(checkpoint) or {}):
        for name, tensor in weights.items():
            if found := oddity(tensor, size):
                raise CheckpointError(
                    f"checkpoint {path}: {name} is {found}, but weights must be dense tensors of "
                    "numbers. Save it as a dense tensor."
                )


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that evaluation used: the averaged weights if the run had an average."""
    averaged = _averaged(checkpoint)
    return dict(checkpoint["model"] if averaged is None else averaged)


def _averaged(content: Mapping[str, Any]) -> Mapping[str, torch.Tensor] | None:
    """The averaged weights of a checkpoint, stored directly or under `"model"`."""
    for key in ("ema", "model_ema"):
        average = content.get(key)
        weights = average.get("model", average) if isinstance(average, Mapping) else None
        if _is_state_dict(weights):
            return weights
    return None


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
        and all(isinstance(tensor, torch.Tensor) for tensor in value.values())
    )
