"""The configs that come with the package, by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sparsedet.config.naming import ConfigError, nearest

# In a checkout these are links to the folders of the repository; a wheel has copies.
PACKAGE = Path(__file__).resolve().parent.parent
_SUFFIXES = (".py", ".yaml", ".yml")


def packaged_configs() -> dict[str, Path]:
    """Name and file of every config that describes a model of this library.

    ``focus_detr_r50_12ep`` is a training recipe, ``released/focus_detr_r50`` the model of published
    weights. Configs in ``projects/interop`` need another library and are not listed; they are named
    by their path.
    """
    found = {path.stem: path for path in sorted((PACKAGE / "configs").glob("*.py"))}
    for path in sorted((PACKAGE / "projects").glob("*/configs/*.py")):
        if path.parts[-3] != "interop":
            found[path.stem] = path
    for path in sorted((PACKAGE / "projects").glob("*/configs/released/*.py")):
        found[f"released/{path.stem}"] = path
    return found


def config_index() -> dict[str, dict[str, Any]]:
    """Facts about every packaged config, by name, without loading the configs.

    The facts are ``method``, ``backbone``, ``keep_ratio`` (mean share of the tokens over the
    encoder layers; None if it is not one number), ``epochs`` (None for released models),
    ``published_ap`` (on COCO val2017; None if none is published) and ``parameters`` (trainable
    ones, without the encoder's auxiliary heads).
    """
    return json.loads((PACKAGE / "configs/index.json").read_text(encoding="utf-8"))


def find_config(name: str | os.PathLike[str]) -> Path:
    """The file of a config.

    Args:
        name: the name of a packaged config, a ``.py`` or ``.yaml`` file, or the path of a packaged
            config in the repository (``projects/dino/configs/...``).

    Raises:
        ConfigError: there is no such config; the message lists the nearest names.
    """
    path = Path(name)
    if path.suffix in _SUFFIXES:
        packaged = PACKAGE / path
        return packaged if packaged.is_file() and not path.is_file() else path
    known = packaged_configs()
    if str(name) not in known:
        raise ConfigError(
            f"There is no config '{name}'. {nearest(str(name), known)} `sparsedet configs` lists "
            "all; a file ends in .py or .yaml."
        )
    return known[str(name)]
