"""LazyConfig: load whole configs from files and save them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

from omegaconf import DictConfig, ListConfig

from sparsedet.config.calls import FLAGS, value_at
from sparsedet.config.files import as_config, dump_yaml, read_yaml, run_python
from sparsedet.config.naming import ConfigError, ConfigKeyError, join, nearest, shown
from sparsedet.config.overrides import Override, apply_overrides
from sparsedet.config.packaged import PACKAGE, find_config
from sparsedet.config.source import to_source
from sparsedet.config.stand_ins import CannotDescribe, describing
from sparsedet.config.trust import require_trusted
from sparsedet.files import atomic_write


class LazyConfig:
    """Load, override and save configs."""

    @overload
    @staticmethod
    def load(path: str | os.PathLike[str], keys: None = None) -> DictConfig: ...

    @overload
    @staticmethod
    def load(path: str | os.PathLike[str], keys: str | Sequence[str]) -> Any: ...

    @staticmethod
    def load(path: str | os.PathLike[str], keys: str | Sequence[str] | None = None) -> Any:
        """Load a config file.

        For a Python file, the result holds the top-level dicts and calls whose names do not start
        with an underscore. Relative imports (``from ..models.dino import model``) take values from
        other config files, which run anew for each import; no packages are needed.

        Args:
            path: a ``.py`` file, or a ``.yaml`` file as :meth:`save` writes it.
            keys: return only the value of this name, or a tuple of the values of these names. In a
                Python file it may be any value, such as a number.

        Raises:
            ConfigError: if the file does not exist or fails; the message names file and line. It is
                also an ImportError if an import fails, and a KeyError if a key is missing.
        """
        path = Path(path)
        if path.suffix not in (".py", ".yaml", ".yml"):
            raise ConfigError(f"A config file must end in .py, .yaml or .yml, got {path}.")
        if not path.is_file():
            raise ConfigError(_no_file(path))
        content: Any = run_python(path) if path.suffix == ".py" else _read_data(path)
        if keys is not None:
            names = (keys,) if isinstance(keys, str) else keys
            if not isinstance(names, Sequence) or not all(isinstance(each, str) for each in names):
                raise ConfigError(
                    f"LazyConfig.load.keys must be a name or a tuple of names, got {keys!r}."
                )
            picked = tuple(as_config(_pick(content, name, path)) for name in names)
            return picked[0] if isinstance(keys, str) else picked
        if path.suffix != ".py":
            return content
        found = {
            name: as_config(value)
            for name, value in content.items()
            if isinstance(value, (DictConfig, ListConfig, dict)) and not name.startswith("_")
        }
        if not found:
            raise ConfigError(f"{path} defines no config: its top level has no dict and no call.")
        return DictConfig(found, flags=FLAGS)

    @staticmethod
    def load_rel(path: str | os.PathLike[str], keys: str | Sequence[str] | None = None) -> Any:
        """Load a config file whose path is relative to the file that calls this.

        In a config file it replaces a relative import for file names that Python cannot import
        (``LazyConfig.load_rel("../models/r50-4scale.py", "model")``).

        Args:
            path: as :meth:`load` takes it.
            keys: as :meth:`load` takes them.

        Raises:
            ConfigError: as :meth:`load` does, or if the caller is not in a file.
        """
        caller = Path(sys._getframe(1).f_code.co_filename)
        if not caller.is_file():
            raise ConfigError(
                f"LazyConfig.load_rel('{path}') is relative to the file that calls it, and "
                f"{caller} is not a file. Use LazyConfig.load."
            )
        return LazyConfig.load(caller.parent / path, keys)

    @staticmethod
    def save(cfg: DictConfig, path: str | os.PathLike[str]) -> None:
        """Save a config as YAML; :meth:`load` reads an equal config from it.

        Classes are written as dotted paths, dataclasses as calls, and references between keys stay
        references. The file is replaced atomically.

        Args:
            cfg: the config.
            path: the ``.yaml`` file; its folder is created.

        Raises:
            ConfigError: if a value cannot be written, such as a lambda; the message names its key.
        """
        path = Path(path)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"A config is saved as .yaml, got {path}.")
        text = dump_yaml(cfg)
        with atomic_write(path) as file:
            file.write(text.encode())

    @staticmethod
    def to_py(cfg: Any, prefix: str = "cfg.") -> str:
        """A config as lines of Python, to read rather than to run.

        A call is shown as :func:`sparsedet.config.instantiate` makes it, with references replaced
        by their present values; other settings get one line each.

        Args:
            cfg: the config.
            prefix: text before each key.

        Raises:
            ConfigError: if a reference leads nowhere; the message names its key.
        """
        return to_source(cfg, prefix)

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """Change a config in place by ``key=value`` and ``+key=value``, and return it.

        Values are YAML scalars or lists (``1e-4``, ``true``, ``null``, ``[0.5, 0.3]``), or Python's
        ``None`` and tuples. A value that replaces text is taken as text (``train.output_dir=7``),
        and a quoted value is text even if it replaces a number (``'"123"'``). Keys go through
        groups, arguments and list items (``model.criterion.matched.0.weight``). A key must exist or
        be an argument of its component; ``+`` adds a key, or sets a value of another type; ``++``
        sets a key that exists and adds one that does not. ``model.scorer._target_=Name`` swaps a
        component, see :func:`sparsedet.config.swap_component`; swaps are done before other
        overrides.

        Args:
            cfg: the config.
            overrides: as typed in a shell.

        Raises:
            ConfigError: for an unknown key or component, with the nearest valid ones, and for a
                value of the wrong type. For an unknown key it is also a KeyError.
        """
        return apply_overrides(cfg, overrides)


# Sections that commands and training read; each may be missing.
_SECTIONS = ("model", "dataset", "dataloader", "train", "optimizer", "lr_multiplier")


def get_config(name: str) -> DictConfig:
    """Load one of the configs that come with the package.

    Args:
        name: a name that `sparsedet configs` lists (``focus_detr_r50_12ep``), a path under
            ``configs/`` (``common/train.py``, ``quickstart.py``), or a path that starts with
            ``projects/``.

    Raises:
        ConfigError: if there is no such config.
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
    """Load a config for a command, by name or file, and apply checked overrides.

    The overrides are checked before the modules of the components are imported, so a mistyped key
    is an immediate error. A ``.yaml`` file may come from anywhere, so what it would call is checked
    (:func:`sparsedet.config.trusting` turns this off). Overrides come from the user, so they are
    trusted.

    Args:
        name: as :func:`sparsedet.config.find_config` takes it.
        overrides: changes, see :meth:`LazyConfig.apply_overrides`.
        needs: required keys, such as ``model`` or ``train.output_dir``.

    Raises:
        ConfigError: the config cannot be read, a ``.yaml`` file would call code that is not
            trusted, an override is wrong, or a required key is missing.
    """
    check_overrides(name, overrides)
    path = find_config(name)
    cfg = LazyConfig.load(path)
    if path.suffix != ".py":
        require_trusted(cfg, str(path))
    LazyConfig.apply_overrides(cfg, overrides)
    for key in _SECTIONS:
        if key in cfg and not isinstance(value_at(cfg, key, ""), Mapping):
            raise ConfigError(
                f"{key} must be a group of settings or a component, got {shown(cfg[key])} ({path})."
            )
    absent = [key for key in needs if not setting(cfg, key)]
    if absent:
        raise ConfigError(
            f"{path} has no {', '.join(absent)}, which this command needs. Use the config of a "
            "training run, or write one like it."
        )
    return cfg


def check_overrides(name: str | os.PathLike[str], overrides: Sequence[str]) -> None:
    """Refuse mistyped names and keys quickly, without importing what the config names.

    If the source of a config is not enough to decide, nothing is refused here, and
    :func:`read_config` finds the error.

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
    above = ""
    for part in key.split("."):
        if not isinstance(cfg, Mapping) or part not in cfg:
            return None
        cfg = value_at(cfg, part, above)
        above = join(above, part)
    return cfg


def _pick(content: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in content:
        hint = nearest(name, [key for key in map(str, content) if not key.startswith("_")])
        raise ConfigKeyError(f"{path} has no '{name}'. {hint}")
    return value_at(content, name, "")


def _read_data(path: Path) -> DictConfig:
    content = read_yaml(path)
    try:
        return as_config(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _no_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no config file {path}: there is no folder {path.parent}."
    names = [each.name for each in path.parent.iterdir() if each.suffix in (".py", ".yaml", ".yml")]
    return f"There is no config file {path}. {nearest(path.name, names)}"
