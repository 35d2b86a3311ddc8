"""Whether the machines of a run were given the same: versions, settings and annotations."""

from __future__ import annotations

import re
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from sparsedet import __version__, comm
from sparsedet.config import ConfigError, LazyConfig, setting
from sparsedet.files import file_digest

__all__ = ["require_agreement", "require_same_start"]

# every machine may have its data, weights and results where it likes
_OWN_PLACES = re.compile(
    r"\s*(path|train_json|train_images|val_json|val_images|output_dir|init_checkpoint|weights):"
)
_ANNOTATIONS = ("dataset.train_json", "dataset.val_json", "dataset.path")


def require_agreement(cfg: Any) -> None:
    """Compare what the first process of each machine has; every process must call it.

    Compared are the versions of the packages that compute, the lines of the config without the
    places of files, and the content of annotation files.

    Args:
        cfg: the config of the run.

    Raises:
        ConfigError: two machines differ; the same message on all.
    """
    facts = _facts(cfg) if comm.get_local_rank() == 0 else None
    found = comm.all_gather((socket.gethostname(), facts))
    host, expected = found[0]
    for rank, (other, given) in enumerate(found):
        if given is None:  # not the first process of its machine
            continue
        for name in expected:
            if given.get(name) != expected[name]:
                where = f"on {host} (process 0) {{}}, on {other} (process {rank}) {{}}"
                raise ConfigError(_differs(name, where, expected[name], given.get(name)))


def require_same_start(path: Path | None, folder: Path) -> None:
    """Refuse to go on from a checkpoint that not all processes have; every process must call it.

    Args:
        path: what this process goes on from; None = it begins at the start.
        folder: where it looked.

    Raises:
        ConfigError: two processes would begin at different places; the same message on all.
    """
    found = comm.all_gather((socket.gethostname(), path.name if path is not None else "nothing"))
    for rank, (host, name) in enumerate(found):
        if name != found[0][1]:
            raise ConfigError(
                f"train.output_dir={folder} must be a folder that all machines share to resume a "
                f"run: process 0 on {found[0][0]} finds {found[0][1]}, and process {rank} on "
                f"{host} finds {name}. Copy the checkpoint to all machines, or share the folder."
            )


def _differs(name: str, where: str, expected: Any, given: Any) -> str:
    if name == "config":
        for first, second in zip(expected, given or (), strict=False):
            if first != second:
                told = where.format(f"it says `{first.strip()}`", f"`{second.strip()}`")
                return f"the machines have different configs: {told}. Use one config on all."
        return f"the machines have different configs: {where.format('it has', 'it lacks')} lines."
    if name.startswith("dataset"):
        told = where.format(f"its SHA-256 begins with {expected}", f"with {given}")
        return f"{name} is not the same file on all machines: {told}. Copy one file to all."
    return f"{name} differs: {where.format(expected, given)}. Install one version on all machines."


def _facts(cfg: Any) -> Mapping[str, Any]:
    facts: dict[str, Any] = {
        "sparsedet": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
    with suppress(ConfigError), tempfile.TemporaryDirectory() as folder:  # functions of detrex
        path = Path(folder) / "config.yaml"
        LazyConfig.save(cfg, path)
        lines = path.read_text(encoding="utf-8").splitlines()
        facts["config"] = [line for line in lines if not _OWN_PLACES.match(line)]
    for key in _ANNOTATIONS if "dataset" in cfg else ():
        path = setting(cfg, key)
        if isinstance(path, str) and Path(path).is_file():
            facts[key] = file_digest(Path(path))[:12]
    return facts
