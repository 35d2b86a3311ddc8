"""Whether all machines of a run have the same versions, settings and annotations."""

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

# paths of data, weights and results may differ between machines
_OWN_PLACES = re.compile(
    r"\s*(path|train_json|train_images|val_json|val_images|output_dir|init_checkpoint|weights):"
)
_ANNOTATIONS = ("dataset.train_json", "dataset.val_json", "dataset.path")


def require_agreement(cfg: Any) -> None:
    """Compare the first processes of all machines; every process must call this.

    It compares the versions of the packages that compute, the lines of the config except for paths
    of files, and the contents of annotation files.

    Args:
        cfg: the config of the run.

    Raises:
        ConfigError: two machines differ; all processes get the same message.
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
    """Refuse to resume from a checkpoint that not all processes have; every process must call this.

    Args:
        path: the checkpoint that this process resumes from; None = it starts a new run.
        folder: where it looked for a checkpoint.

    Raises:
        ConfigError: two processes would start differently; all processes get the same message.
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
