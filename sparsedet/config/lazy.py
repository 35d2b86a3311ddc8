"""LazyConfig: whole configs, from a file and back to one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsedet.config.calls import FLAGS
from sparsedet.config.files import as_config, dump_yaml, read_yaml, run_python
from sparsedet.config.naming import ConfigError, nearest
from sparsedet.config.overrides import apply_overrides

_PACKAGED = Path(__file__).resolve().parent.parent / "configs"


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
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

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
        name: path under ``configs/`` (``common/train.py``, ``quickstart.py``), or, in a checkout
            of the repository, one that begins with ``projects/``.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name.startswith("projects/"):
        root = _PACKAGED.resolve().parent  # configs/ is a link to that of the repository
        if not (root / "projects").is_dir():
            raise ConfigError(f"{name} comes with the repository, not with the installed package.")
        return LazyConfig.load(root / name)
    path = _PACKAGED / name
    if not path.is_file():
        names = [each.relative_to(_PACKAGED).as_posix() for each in _PACKAGED.rglob("*.py")]
        raise ConfigError(f"There is no packaged config '{name}'. {nearest(name, names)}")
    return LazyConfig.load(path)


def _no_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no config file {path}: there is no folder {path.parent}."
    names = [each.name for each in path.parent.iterdir() if each.suffix in (".py", ".yaml", ".yml")]
    return f"There is no config file {path}. {nearest(path.name, names)}"
