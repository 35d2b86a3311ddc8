"""Names of objects and config keys: find them, write them, and suggest names after a typo."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A config file, an override or a component's arguments are wrong; the message says where."""


class ConfigImportError(ConfigError, ImportError):
    """Something that a config imports or names cannot be imported. It is also an ImportError."""


class ConfigKeyError(ConfigError, KeyError):
    """A config has no such key. It is also a KeyError."""

    __str__ = Exception.__str__  # KeyError shows its message in quotes


class Reference:
    """The dotted path of an object in place of the object, so that reading a file imports nothing.

    Args:
        path: the dotted path, such as ``torch.nn.functional.relu``.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return self.path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)


def close_matches(name: str, names: Iterable[str]) -> list[str]:
    """The few names that a mistyped name may mean, best first."""
    by_folded = {each.lower(): each for each in map(str, names)}
    return [by_folded[each] for each in difflib.get_close_matches(name.lower(), by_folded)]


def nearest(name: str, names: Iterable[str], parent: str = "") -> str:
    """A sentence with the valid names closest to a mistyped one, or with all valid names.

    Args:
        name: the name that was given.
        names: the valid names.
        parent: path of the config node whose keys the names are; shown before each.
    """
    valid = sorted(set(names))
    if not valid:
        return "There is nothing to choose from."
    close = close_matches(name, valid)
    shown = ", ".join(join(parent, each) for each in close or valid[:12])
    if close:
        return f"Nearest: {shown}."
    return f"Valid: {shown}{', ...' if len(valid) > 12 else ''}."


def join(path: str, key: Any) -> str:
    """The path of a child: ``model`` and ``scorer`` give ``model.scorer``."""
    return f"{path}.{key}" if path else str(key)


def first_line(error: BaseException) -> str:
    """The first line of an error message; omegaconf and torch add lines about their state."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def one_line(text: object) -> str:
    """A text of several lines as one line."""
    return " ".join(str(text).split())


def shown(value: Any, length: int = 80) -> str:
    """A value for a message: on one line, with the middle left out if it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a number of thousands of digits"
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half // 2 :]}"


def locate(path: str) -> Any:
    """The object at a dotted path such as ``torch.nn.Linear``.

    Raises:
        ConfigError: if there is no such object, or importing its module fails; also an
            ImportError.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigImportError(f"'{path}' is not a dotted path such as package.module.Name.")
    for split in range(len(parts) - 1, 0, -1):
        module = _import(".".join(parts[:split]), path)
        if module is not None:
            return _descend(module, parts[:split], parts[split:])
    raise ConfigImportError(f"'{path}' cannot be imported: there is no module '{parts[0]}'.")


def _import(module: str, path: str) -> Any:
    """Import a module; None if it does not exist. An error inside the module is raised."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name
        if absent and f"{module}.".startswith(f"{error.name}."):
            return None
        raise ConfigImportError(f"'{path}' cannot be imported: {error}.") from error


def _descend(found: Any, owner: list[str], names: list[str]) -> Any:
    for name in names:
        if not hasattr(found, name):
            public = [each for each in dir(found) if not each.startswith("_")]
            raise ConfigImportError(f"{'.'.join(owner)} has no '{name}'. {nearest(name, public)}")
        found, owner = getattr(found, name), [*owner, name]
    return found


def dotted_name(target: Any) -> str:
    """The shortest dotted path under which :func:`locate` finds a class or function.

    Raises:
        ConfigError: if there is none, as for a lambda or an object that a config file defines.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not module or not name or "<" in name:
        raise ConfigError(f"{target!r} has no importable name. Define it in a module.")
    parts = module.split(".")
    for split in range(1, len(parts) + 1):
        candidate = f"{'.'.join(parts[:split])}.{name}"
        try:
            if locate(candidate) == target:
                return candidate
        except ConfigError:
            continue
    raise ConfigError(f"{module}.{name} is not importable. Define it in a module.")


def keyword_parameters(target: Any) -> tuple[dict[str, inspect.Parameter], bool] | None:
    """The parameters that can be given by name, and whether the callable takes ``**kwargs``.

    None if the callable has no signature, as some written in C.
    """
    if isinstance(target, type):
        constructor = next(each for each in target.__mro__ if "__init__" in vars(each))
        if (constructor.__module__, constructor.__name__) == ("torch.nn.modules.module", "Module"):
            return {}, False  # its signature says that it takes anything, but it takes nothing
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name: each for name, each in parameters.items() if each.kind in by_name}
    return named, any(each.kind is each.VAR_KEYWORD for each in parameters.values())
