"""Config files: running Python ones, and YAML in both directions."""

from __future__ import annotations

import builtins
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from sparsedet.config.calls import FLAGS, own_keys, structure
from sparsedet.config.components import find_class
from sparsedet.config.earlier import in_present_terms
from sparsedet.config.naming import (
    ConfigError,
    ConfigImportError,
    Reference,
    dotted_name,
    first_line,
    join,
    nearest,
    one_line,
    shown,
)
from sparsedet.config.stand_ins import stand_in
from sparsedet.config.yaml_bounds import read_bounded, read_start

_PACKAGE = "sparsedet._config_files"
# The chain of files that are being run: each one loads the next.
_RUNNING: ContextVar[tuple[Path, ...]] = ContextVar("running", default=())


def run_python(path: Path) -> dict[str, Any]:
    """Run a config file and return its namespace.

    Relative imports in it find other config files by their path. They are served through the
    ``__builtins__`` of the file's own namespace, so the import system of the process is unchanged.

    Args:
        path: the file.

    Raises:
        ConfigError: if the file fails; the message names the file and the line. It is also an
            ImportError if an import fails.
    """
    path = path.resolve()
    running = _RUNNING.get()
    if path in running:
        circle = " -> ".join(each.name for each in (*running[running.index(path) :], path))
        raise ImportError(f"config files import each other in a circle: {circle}.")

    namespace = {
        "__file__": str(path),
        "__name__": f"{_PACKAGE}.{path.stem}",
        "__package__": _PACKAGE,
        "__builtins__": {**vars(builtins), "__import__": _importer(path)},
    }
    token = _RUNNING.set((*running, path))
    try:
        with _named(path):
            exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), namespace)
    finally:
        _RUNNING.reset(token)
    return namespace


def _importer(path: Path) -> Callable[..., Any]:
    """The replacement of `__import__` in a config file."""

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
        return _import_config(path, name, fromlist or (), level)

    return import_


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn an error of a config file into a message with the file and the line."""
    try:
        yield
    except ConfigError:
        raise
    except SyntaxError as error:
        place = "" if error.lineno is None else f", line {error.lineno}"
        where = f"{error.filename or path}{place}"
        raise ConfigError(f"{where}: syntax error: {error.msg}.") from error
    except Exception as error:
        reason = first_line(error)
        kind = ConfigImportError if isinstance(error, ImportError) else ConfigError
        raise kind(f"{_place(error, path)}: {type(error).__name__}: {reason}") from error


def _place(error: BaseException, path: Path) -> str:
    """The config file and the line where an error was raised."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{path}, line {line}" if line else str(path)


def _import_config(
    importer: Path, name: str, fromlist: Sequence[str], level: int
) -> types.ModuleType:
    """Serve ``from ..name import fromlist`` in a config file."""
    if not name or not fromlist:
        raise ImportError(
            "a relative import in a config file must name a file and what to import from it: "
            "from ..folder.file import name."
        )
    folder = importer.parents[min(level, len(importer.parents)) - 1]
    found = folder.joinpath(*name.split(".")).with_suffix(".py")
    if not found.is_file():
        raise ImportError(f"the config file {found} does not exist.")
    namespace = run_python(found)
    module = types.ModuleType(name)
    if "*" in fromlist:
        public = [each for each in namespace if not each.startswith("_")]
        fromlist = module.__dict__["__all__"] = namespace.get("__all__", public)
    for each in fromlist:
        if each not in namespace:
            hint = nearest(each, [key for key in namespace if not key.startswith("_")])
            raise ImportError(f"{found} has no '{each}'. {hint}")
        setattr(module, each, as_config(namespace[each]))
    return module


def as_config(value: Any) -> Any:
    """Turn a plain dict into a config node.

    Raises:
        ConfigError: it has a key or a value that a config cannot hold.
    """
    try:
        return DictConfig(value, flags=FLAGS) if isinstance(value, dict) else value
    except OmegaConfBaseException as error:
        raise ConfigError(f"{first_line(error)}.") from error


# --- YAML with the scalars of version 1.2: 1e-4 is a number; yes, 1:30 and dates are strings.

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
    """Safe loader that also knows two Python tags: tuples and references to importable objects."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read a number; one that Python cannot read (thousands of digits) is a YAML error."""
        read = self.construct_yaml_int if node.tag.endswith("int") else self.construct_yaml_float
        try:
            return read(node)
        except ValueError as error:
            problem = f"{shown(node.value)} is not a number"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Safe dumper that quotes strings which YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _TAG + _kind, re.compile(f"^(?:{_pattern})$"), [*_first, *([""] * (_kind == "null"))]
        )
for _kind in ("int", "float"):
    _Loader.add_constructor(_TAG + _kind, _Loader.construct_number)
_Loader.add_constructor(f"{_TAG}python/tuple", _Loader.construct_sequence)
_Loader.add_multi_constructor(  # a dataclass as detectron2 saves it: described, not made
    f"{_TAG}python/object:",
    lambda loader, suffix, node: {"_target_": suffix, **loader.construct_mapping(node, deep=True)},
)
_Loader.add_multi_constructor(f"{_TAG}python/name:", lambda loader, suffix, node: Reference(suffix))
_Dumper.add_representer(
    Reference, lambda dumper, named: dumper.represent_scalar(f"{_TAG}python/name:{named}", "")
)


def parse_yaml(text: str | bytes) -> Any:
    """Read YAML text of bounded size. Nothing that it names is imported or called.

    Raises:
        yaml.YAMLError: if it is not YAML.
        ConfigError: if it is too large or too deep for a config.
    """
    return read_bounded(text, _Loader, "config")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML config file; one of an earlier version is translated to present terms.

    Raises:
        ConfigError: if it is not YAML, or not a mapping; the message names the file and the line.
    """
    try:
        content = parse_yaml(read_start(path))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {one_line(error.problem)}.") from error
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{path}: {one_line(error).rstrip('.')}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(content).__name__}.")
    return in_present_terms(content)


def dump_yaml(content: Any) -> str:
    """The YAML text of a config, with targets and other callables as references.

    Nodes of dataclasses become calls.

    Raises:
        ConfigError: if a value cannot be written to a file; the message names its key.
    """
    plain = _to_plain(content, "")
    return yaml.dump(plain, Dumper=_Dumper, default_flow_style=None, sort_keys=False, width=100)


def _to_plain(value: Any, path: str) -> Any:
    if isinstance(value, (DictConfig, ListConfig)):
        value = raw_values(value)
    if isinstance(value, Mapping):
        return {key: _to_plain(each, join(path, key)) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(each, join(path, i)) for i, each in enumerate(value)]
    is_target = path.rpartition(".")[2] == "_target_"
    if is_target and isinstance(value, str) and "." not in value:
        value = find_class(path.rpartition(".")[0], value)  # other loaders do not know short names
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Reference):
        return value.path if is_target else value
    try:
        name = dotted_name(value)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be saved: {error}") from error
    return name if is_target else Reference(name)


def raw_values(node: DictConfig | ListConfig) -> Any:
    """The content of a node with references as text; dataclasses inside stay nodes.

    The node of a dataclass becomes its call.
    """
    if structure(node) is None:
        return OmegaConf.to_container(
            node, resolve=False, structured_config_mode=SCMode.DICT_CONFIG
        )
    plain: Any = OmegaConf.to_container(node, resolve=False)
    values = {
        key: node[key] if isinstance(plain[key], (dict, list)) else plain[key]
        for key in own_keys(node)
    }
    return {"_target_": structure(node), **values}
