"""Read a Python config without importing what it names.

A config names classes of torch, timm and this package, whose import takes seconds. Their dotted
paths are enough to check whether a key exists: in this mode, imports in a config return stand-ins
that know their path, and the arguments of a class are read from its source.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

_DESCRIBING: ContextVar[bool] = ContextVar("describing", default=False)


class CannotDescribe(Exception):
    """The question can only be answered by importing the objects."""


class StandIn:
    """Replaces an imported object in a config that is only described.

    Args:
        dotted: the path of the object.
    """

    def __init__(self, dotted: str) -> None:
        self._dotted = dotted

    def __str__(self) -> str:
        return self._dotted

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("_"):
            raise AttributeError(name)
        return StandIn(f"{self._dotted}.{name}")

    def _cannot(self, *args: Any, **kwargs: Any) -> Any:
        raise CannotDescribe(self._dotted)

    __call__ = __bool__ = __eq__ = __iter__ = __getitem__ = _cannot
    __hash__ = object.__hash__


def is_describing() -> bool:
    """Whether configs are only described at present, see :func:`describing`."""
    return _DESCRIBING.get()


@contextmanager
def describing() -> Iterator[None]:
    """Inside this context, configs hold stand-ins for what they import or name."""
    token = _DESCRIBING.set(True)
    try:
        yield
    finally:
        _DESCRIBING.reset(token)


def stand_in(module: str, fromlist: Sequence[str]) -> StandIn | None:
    """The result of an import in a config file; None if the import is to be made."""
    root = module.partition(".")[0]
    own = module == "sparsedet" or f"{module}.".startswith("sparsedet.config.")
    if not is_describing() or own or root in sys.stdlib_module_names:
        return None
    return StandIn(module if fromlist else root)


# --- arguments of a callable, from its source


def described_parameters(target: StandIn) -> list[str]:
    """Names of the arguments that the object takes.

    Raises:
        CannotDescribe: they cannot be read from its source.
    """
    found = source_parameters(str(target))
    if found is None:
        raise CannotDescribe(str(target))
    return found


def described_retired(target: StandIn) -> set[str]:
    """Names of removed arguments of a class, see :func:`sparsedet.registry.retires`."""
    calls = getattr(_found(str(target)), "decorator_list", [])
    return {
        call.args[0].value
        for call in calls
        if _is_call(call, "retires") and isinstance(call.args[0], ast.Constant)
    }


@cache
def source_parameters(dotted: str) -> list[str] | None:
    """Names of the arguments that a class or function takes, without importing it.

    Args:
        dotted: its path.

    Returns:
        None if its source is not enough: inherited constructors, decorators that may change it,
        ``**kwargs``, code that is not Python.
    """
    node = _found(dotted)
    bound = isinstance(node, ast.ClassDef)
    if isinstance(node, ast.ClassDef):
        node = _constructor(node)
    if not isinstance(node, ast.FunctionDef) or node.args.kwarg or node.decorator_list:
        return None
    skipped = int(bound and not node.args.posonlyargs)
    return [each.arg for each in (*node.args.args[skipped:], *node.args.kwonlyargs)]


def _is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(names)


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    """The class's own ``__init__``; None if something else may construct its instances."""
    registered = all(_is_call(each, ".register", "retires") for each in node.decorator_list)
    own = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    plain = registered and not node.keywords and "__new__" not in own
    return own.get("__init__") if plain else None


def _found(dotted: str) -> ast.AST | None:
    try:
        return _definition(dotted, hops=8)
    except (OSError, SyntaxError, ValueError):
        return None


def _definition(dotted: str, hops: int) -> ast.AST | None:
    """The definition of the class or function, found through re-exports."""
    parts = dotted.split(".")
    path = _source(parts[:-1])
    if path is None or not hops:
        return None
    found = None
    for node in _body(path):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == parts[-1]:
            found = node
        elif isinstance(node, ast.Assign) and parts[-1] in map(ast.unparse, node.targets):
            found = None
        elif isinstance(node, ast.ImportFrom):
            package = parts[:-1] if path.name == "__init__.py" else parts[:-2]
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                if (alias.asname or alias.name) == parts[-1]:
                    found = _definition(".".join([*base, alias.name]), hops - 1)
    return found


@cache
def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_bytes()).body


def _source(module: list[str]) -> Path | None:
    """The file of a module, found without importing its parent packages."""
    spec = importlib.util.find_spec(module[0]) if module else None
    for part in module[1:]:
        folders = spec.submodule_search_locations if spec else None
        spec = importlib.machinery.PathFinder.find_spec(part, folders) if folders else None
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None
