"""Files of checkpoints: whole ones only, and no code in them."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsedet.files import atomic_write

__all__ = ["CheckpointError", "load_checkpoint", "model_weights", "save_checkpoint"]


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read or does not fit the model."""


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint so that the file is either the old one or the whole new one.

    Args:
        checkpoint: Tensors, numbers, strings, lists and dicts of these; `"model"` is a state dict.
        path: Where; a name ending in `.safetensors` keeps the weights only.
    """
    path = Path(path)
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            file.write(_safetensors().save(_contiguous(checkpoint["model"])))
        else:
            torch.save(dict(checkpoint), file)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the host, without running code from it.

    Args:
        path: A `.pth` or `.safetensors` file. A bare state dict, and one under `"state_dict"`,
            count as weights; averaged ones (`"ema"`, `"model_ema"`) where there are no others.

    Returns:
        A dict with at least `"model"`.

    Raises:
        CheckpointError: If the file is missing, cut off, no checkpoint, or holds objects that safe
            loading refuses.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise CheckpointError(
            f"checkpoint {path} {what}. Give the path of a .pth or .safetensors file."
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _with_model(content, path)


def _read_pickle(path: Path) -> Any:
    try:
        # the released DETR codes store their command line beside the weights: a plain container
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise CheckpointError(
                f"checkpoint {path} is not a checkpoint or is damaged."
            ) from error
        raise CheckpointError(
            f"checkpoint {path} holds an object of type {refused[1]}, which safe loading refuses. "
            'Save it again as {"model": state_dict}, or as .safetensors.'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} is not a checkpoint or is cut off ({reason})."
        ) from error


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
    try:
        return module.load(path.read_bytes())
    except Exception as error:  # its error type is not exported on all versions
        raise CheckpointError(f"checkpoint {path} is not a safetensors file ({error}).") from error


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
        f'checkpoint {path} holds no weights: expected {{"model": state_dict}} or a state dict, '
        "which has tensors under names and nothing else."
    )


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that evaluation used: the averaged ones where the run kept an average."""
    averaged = _averaged(checkpoint)
    return dict(checkpoint["model"] if averaged is None else averaged)


def _averaged(content: Mapping[str, Any]) -> Mapping[str, torch.Tensor] | None:
    """The averaged weights of a checkpoint, alone or with other facts of the average."""
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
