"""Configs of detrex's projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detrex  # pyright: ignore[reportMissingImports]
from detectron2.config import LazyConfig  # pyright: ignore[reportMissingImports]

from sparsedet.config import ConfigError


def project_config(path: str) -> Any:
    """A config of one of detrex's projects; every call loads it again.

    Args:
        path: relative to the folder ``projects`` of detrex's clone, for instance
            ``"dino/configs/dino-resnet/dino_r50_4scale_12ep.py"``.

    Raises:
        ConfigError: the file does not exist.
    """
    file = Path(detrex.__file__).resolve().parents[1] / "projects" / path
    if not file.is_file():
        raise ConfigError(
            f"project_config.path must be a file in projects of detrex's clone, got {path!r}, "
            f"and there is no {file}. The installed package lacks projects: put the clone on "
            "PYTHONPATH."
        )
    return LazyConfig.load(str(file))
