"""Check arguments against their annotations, and describe an annotation in words.

Constructors check ranges; a value of the wrong type (text in place of a number) would fail inside
torch, or run and mean something else. Only plain values, as a config file holds them, are checked.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsedet.config.naming import keyword_parameters, shown

_LARGEST = 2**63 - 1
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}
_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
# Bounds of arguments of this library by their name. Such a number of modules (or workers) is built
# one after the other, so a far too large one would take forever.
_MODULES = 1000
_BOUNDS = (
    (re.compile(r"num_(layers|levels|heads|points|workers)"), 0, _MODULES),
    (re.compile(r"\w+_dim"), 0, 2**16),
    (re.compile(r"num_\w+|max_detections"), 0, 10**7),
    (re.compile(r"(\w+_)?(weight|cost)|gamma|eps|temperature|\w*lr|weight_decay\w*"), 0, math.inf),
    (re.compile(r"dropout|\w+_dropout|alpha|\w*probability"), 0, 1),
)
_MAPPINGS = (dict, collections.abc.Mapping)


@dataclass(frozen=True)
class Wrong:
    """An invalid argument.

    Attributes:
        name: the name of the argument.
        sentence: what is wrong with it, without a full stop.
        endless: whether a call with it might take forever.
    """

    name: str
    sentence: str
    endless: bool


def wrong_kind(target: Any, arguments: Mapping[str, Any]) -> Wrong | None:
    """The first argument that does not match its annotation, or is out of bounds.

    Args:
        target: a class or function.
        arguments: its arguments by name.

    Returns:
        None if all are valid or have no readable annotation.
    """
    called = getattr(target, "__qualname__", repr(target))
    for name, kind in _kinds(target, arguments).items():
        value = arguments[name]
        allowed = None if fits(value, kind) else words(kind)
        if allowed is None and isinstance(value, (int, float)):
            allowed = _bounds(name, value)
        if allowed is not None:
            endless = isinstance(value, (int, float)) and value > _MODULES
            return Wrong(name, f"{called}.{name} must be {allowed}, got {shown(value)}", endless)
    return None


def _bounds(name: str, value: float) -> str | None:
    """The bounds for an argument of this name, if the number is outside of them; else None."""
    if math.isinf(value):
        return "finite"
    for names, low, high in _BOUNDS:
        if names.fullmatch(name) and not low <= value <= high:
            return f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
    return None


def impossible_number(arguments: Any) -> Any:
    """A number that is valid nowhere: NaN, or an integer beyond 64 bits; None if there is none.

    Args:
        arguments: values, mappings and lists of them.
    """
    if isinstance(arguments, float):
        return arguments if math.isnan(arguments) else None
    if isinstance(arguments, int):
        return arguments if abs(arguments) > _LARGEST else None
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, (list, tuple)):
        found = map(impossible_number, arguments)
        return next((each for each in found if each is not None), None)
    return None


def _kinds(target: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations of the arguments, as far as they can be resolved."""
    parameters = (keyword_parameters(target) or ({}, True))[0]
    made = target.__init__ if isinstance(target, type) else target
    names = getattr(inspect.unwrap(made), "__globals__", {})
    found = {}
    for name in arguments:
        kind = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if kind is inspect.Parameter.empty:
            continue
        try:
            found[name] = eval(kind, names) if isinstance(kind, str) else kind
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue  # imported only for type checkers
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a value matches an annotation. Values that no config file holds always match."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if not isinstance(value, _PLAIN) or kind in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if kind is None or kind in _WORDS:
        return _is_scalar(value, kind)
    if (origin or kind) in _LISTS:
        return isinstance(value, (list, tuple)) and _fit_items(value, inner, origin is tuple)
    if (origin or kind) in _MAPPINGS:
        return isinstance(value, dict) and (
            not inner or all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
        )
    base = origin or kind
    if isinstance(base, type):
        called = base in (collections.abc.Callable, type)
        return not (called or getattr(base, "_is_protocol", False)) and isinstance(value, base)
    return True  # such as a type variable


def _is_scalar(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind is None else isinstance(value, kind)


def _fit_items(values: Any, kinds: tuple[Any, ...], counted: bool) -> bool:
    if counted and kinds and kinds[-1] is not Ellipsis:
        same = len(values) == len(kinds)
        return same and all(map(fits, values, kinds))
    return not kinds or all(fits(each, kinds[0]) for each in values)


def words(kind: Any) -> str:
    """An annotation in words, such as "a list of whole numbers or null"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(words, inner)))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind is None or kind in _WORDS:
        return _WORDS[kind or type(None)]
    if (origin or kind) in _LISTS:
        if origin is tuple and inner[-1] is not Ellipsis:
            return f"a list of {len(inner)} values ({', '.join(map(words, inner))})"
        return f"a list of {_plural(words(inner[0]))}" if inner else "a list"
    if (origin or kind) in _MAPPINGS:
        return "a mapping of names to values"
    if origin is collections.abc.Callable:
        return "a function"
    if (origin or kind) is os.PathLike:
        return "a path"
    return f"a component ({getattr(kind, '__name__', kind)})"


def _plural(text: str) -> str:
    if " or " in text or text.startswith(("a list", "a component", "a mapping")):
        return f"values, each {text}"
    return {"text": "texts", "true or false": "true or false"}.get(
        text, f"{text.removeprefix('a ')}s"
    )
