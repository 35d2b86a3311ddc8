"""Config files: running Python ones, and YAML in both directions."""

from __future__ import annotations

import builtins
import os
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from sparsedet.config.calls import FLAGS
from sparsedet.config.naming import ConfigError, dotted_name, join, locate, nearest
from sparsedet.config.stand_ins import stand_in

_PACKAGE = "sparsedet._config_files"


def run_python(path: Path, importers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Run a config file and return its namespace.

    Relative imports in it find other config files by place. They are served through the
    ``__builtins__`` of the file's own namespace: the import system of the process stays as it is.

    Args:
        path: the file.
        importers: the files that are being run because one imports the next.

    Raises:
        ConfigError: if the file fails; the message names the file and the line.
    """
    path = path.resolve()
    if path in importers:
        circle = " -> ".join(each.name for each in (*importers[importers.index(path) :], path))
        raise ImportError(f"config files import each other in a circle: {circle}.")

    def import_(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level == 0:
            described = stand_in(name, fromlist or ())
            if described is not None:
                return described
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        return _import_config(name, fromlist or (), level, (*importers, path))

    namespace = {
        "__file__": str(path),
        "__name__": f"{_PACKAGE}.{path.stem}",
        "__package__": _PACKAGE,
        "__builtins__": {**vars(builtins), "__import__": import_},
    }
    try:
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), namespace)
    except ConfigError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}"
        raise ConfigError(f"{where}: syntax error: {error.msg}.") from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]  # omegaconf adds lines of its own state
        raise ConfigError(f"{_place(error, path)}: {type(error).__name__}: {reason}") from error
    return namespace


def _place(error: BaseException, path: Path) -> str:
    """The config file, and the line in it, at which an error came up."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{path}, line {line}" if line else str(path)


def _import_config(
    name: str, fromlist: Sequence[str], level: int, importers: tuple[Path, ...]
) -> types.ModuleType:
    """Serve ``from ..name import fromlist`` in the last of the importers."""
    if not name or "*" in fromlist or not fromlist:
        raise ImportError(
            "a relative import in a config file names a file and what it takes from it: "
            "from ..folder.file import name."
        )
    found = importers[-1].parents[level - 1].joinpath(*name.split(".")).with_suffix(".py")
    if not found.is_file():
        raise ImportError(f"there is no config file {found}.")
    namespace = run_python(found, importers)
    module = types.ModuleType(name)
    for each in fromlist:
        if each not in namespace:
            hint = nearest(each, [key for key in namespace if not key.startswith("_")])
            raise ImportError(f"{found} has no '{each}'. {hint}")
        setattr(module, each, as_config(namespace[each]))
    return module


def as_config(value: Any) -> Any:
    """Turn a plain dict into a config node."""
    return DictConfig(value, flags=FLAGS) if isinstance(value, dict) else value


# --- YAML. Scalars are those of version 1.2: 1e-4 is a number; yes, 1:30 and dates are strings.

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", "~nN"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Safe loader; of Python's tags it knows tuples and references to importable objects."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Safe dumper that quotes a string which a reader of either version could take for another."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Reference(str):
    """The dotted path of an object that is a value of its own rather than a target."""


for _kind, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _TAG + _kind, re.compile(f"^(?:{_pattern})$"), [*_first, *([""] * (_kind == "null"))]
        )
_Loader.add_constructor(f"{_TAG}python/tuple", _Loader.construct_sequence)
_Loader.add_multi_constructor(f"{_TAG}python/name:", lambda loader, suffix, node: locate(suffix))
_Dumper.add_representer(
    _Reference, lambda dumper, path: dumper.represent_scalar(f"{_TAG}python/name:{path}", "")
)


def parse_yaml(text: str | bytes) -> Any:
    """Read YAML text.

    Raises:
        yaml.YAMLError: if it is none.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML config file.

    Raises:
        ConfigError: if it is not YAML, or not a mapping; the message names the file and the line.
    """
    try:
        content = parse_yaml(path.read_bytes())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {error.problem}.") from error
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(content).__name__}.")
    return content


def dump_yaml(content: Any) -> str:
    """The YAML text of plain values, with targets and other callables as references.

    Raises:
        ConfigError: if there is a value that no file can hold; the message names its key.
    """
    plain = _to_plain(content, "")
    return yaml.dump(plain, Dumper=_Dumper, default_flow_style=None, sort_keys=False, width=100)


def _to_plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_plain(each, join(path, key)) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(each, join(path, i)) for i, each in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    try:
        name = dotted_name(value)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be saved: {error}") from error
    return name if path.endswith("_target_") else _Reference(name)
