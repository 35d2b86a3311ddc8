"""LazyConfig: whole configs, from a file and back to one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsedet.config.calls import FLAGS
from sparsedet.config.files import as_config, dump_yaml, read_yaml, run_python
from sparsedet.config.naming import ConfigError, nearest
from sparsedet.config.overrides import Override, apply_overrides
from sparsedet.config.packaged import PACKAGE, find_config
from sparsedet.config.stand_ins import CannotDescribe, describing
from sparsedet.files import atomic_write


class LazyConfig:
    """Load, override and save configs."""

    @staticmethod
    def load(path: str | os.PathLike[str]) -> DictConfig:
        """Load a config file.

        Of a Python file the result holds the top-level dicts and calls whose names do not begin
        with an underscore. Relative imports (``from ..models.dino import model``) take values from
        other config files, each time afresh; they do not need packages.

        Args:
            path: a ``.py`` file, or a ``.yaml`` file as :meth:`save` writes it.

        Raises:
            ConfigError: if the file does not exist or fails; the message names file and line.
        """
        path = Path(path)
        if path.suffix not in (".py", ".yaml", ".yml"):
            raise ConfigError(f"A config file must end in .py, .yaml or .yml, got {path}.")
        if not path.is_file():
            raise ConfigError(_no_file(path))
        if path.suffix != ".py":
            return DictConfig(read_yaml(path), flags=FLAGS)
        found = {
            name: as_config(value)
            for name, value in run_python(path).items()
            if isinstance(value, (DictConfig, ListConfig, dict)) and not name.startswith("_")
        }
        if not found:
            raise ConfigError(f"{path} defines no config: its top level has no dict and no call.")
        return DictConfig(found, flags=FLAGS)

    @staticmethod
    def save(cfg: DictConfig, path: str | os.PathLike[str]) -> None:
        """Save a config as YAML from which :meth:`load` makes an equal one.

        Classes are written as dotted paths and references between keys stay references. The file
        is replaced at once: a reader sees the old one or the new one.

        Args:
            cfg: the config.
            path: the ``.yaml`` file; its folder is made.

        Raises:
            ConfigError: if a value cannot be written, such as a lambda; the message names its key.
        """
        path = Path(path)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"A config is saved as .yaml, got {path}.")
        text = dump_yaml(OmegaConf.to_container(cfg, resolve=False))
        with atomic_write(path) as file:
            file.write(text.encode())

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """Change a config in place by ``key=value`` and ``+key=value``, and return it.

        Values are YAML scalars or lists (``1e-4``, ``true``, ``null``, ``[0.5, 0.3]``); keys lead
        through groups, arguments and list items (``model.criterion.matched.0.weight``). A key
        must exist or be an argument of its component; ``+`` adds one, or sets a value of another
        kind. ``model.scorer._target_=Name`` swaps a component, see
        :func:`sparsedet.config.swap_component`; swaps are done before other overrides.

        Args:
            cfg: the config.
            overrides: as typed in a shell.

        Raises:
            ConfigError: for an unknown key or component, with the nearest valid ones, and for a
                value of the wrong kind.
        """
        return apply_overrides(cfg, overrides)


def get_config(name: str) -> DictConfig:
    """Load one of the configs that come with the package.

    Args:
        name: as `sparsedet configs` lists it (``focus_detr_r50_12ep``), or a path under
            ``configs/`` (``common/train.py``, ``quickstart.py``), or one that begins with
            ``projects/``.

    Raises:
        ConfigError: if there is none of that name.
    """
    if not name.endswith(".py"):
        return LazyConfig.load(find_config(name))
    folder = PACKAGE if name.startswith("projects/") else PACKAGE / "configs"
    if not (folder / name).is_file():
        shown = folder / "projects" if folder == PACKAGE else folder
        names = [each.relative_to(folder).as_posix() for each in shown.rglob("*.py")]
        raise ConfigError(f"There is no packaged config '{name}'. {nearest(name, names)}")
    return LazyConfig.load(folder / name)


def read_config(
    name: str | os.PathLike[str], overrides: Sequence[str] = (), *, needs: Sequence[str] = ()
) -> DictConfig:
    """Load a config for a command: by name or file, with what was typed, checked.

    The overrides are checked before the modules of the components are imported, so that a mistyped
    key is answered at once.

    Args:
        name: as :func:`sparsedet.config.find_config` takes it.
        overrides: changes, see :meth:`LazyConfig.apply_overrides`.
        needs: keys that must be there, such as ``model`` or ``train.output_dir``.

    Raises:
        ConfigError: the config cannot be read, an override is wrong or a key is absent.
    """
    check_overrides(name, overrides)
    path = find_config(name)
    cfg = LazyConfig.apply_overrides(LazyConfig.load(path), overrides)
    absent = [key for key in needs if not setting(cfg, key)]
    if absent:
        raise ConfigError(
            f"{path} has no {', '.join(absent)}, which this needs. Use the config of a training "
            "run, or write one like it."
        )
    return cfg


def check_overrides(name: str | os.PathLike[str], overrides: Sequence[str]) -> None:
    """Refuse mistyped names and keys by a description of the config, at once.

    Nothing that the config names is imported. Where its description is not enough to tell, nothing
    is refused: :func:`read_config` tells then.

    Args:
        name: as :func:`sparsedet.config.find_config` takes it.
        overrides: changes, see :meth:`LazyConfig.apply_overrides`.

    Raises:
        ConfigError: there is no such config, or an override is wrong.
    """
    path = find_config(name)
    if any(override.swaps for override in map(Override.parse, overrides)):
        return  # components are registered when their modules are imported
    with describing(), suppress(CannotDescribe):
        try:
            cfg = LazyConfig.load(path)
        except ConfigError:
            if path.is_file():
                return
            raise
        apply_overrides(cfg, overrides)


def setting(cfg: Any, key: str) -> Any:
    """The value at a dotted key; None if there is none."""
    for part in key.split("."):
        if not isinstance(cfg, Mapping) or part not in cfg:
            return None
        cfg = cfg[part]
    return cfg


def _no_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no config file {path}: there is no folder {path.parent}."
    names = [each.name for each in path.parent.iterdir() if each.suffix in (".py", ".yaml", ".yml")]
    return f"There is no config file {path}. {nearest(path.name, names)}"
