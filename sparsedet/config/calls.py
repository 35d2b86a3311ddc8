"""Describe calls (LazyCall), make them (instantiate), and check settings that no call checks."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsedet.config.components import find_class
from sparsedet.config.kinds import impossible_number, wrong_kind
from sparsedet.config.literal import plain
from sparsedet.config.naming import (
    ConfigError,
    Reference,
    dotted_name,
    first_line,
    join,
    keyword_parameters,
    nearest,
    one_line,
    shown,
)
from sparsedet.registry import FAMILIES, retired_arguments

FLAGS = {"allow_objects": True}  # config nodes may hold classes and functions

_OWN_SENTENCE = re.compile(r"[A-Za-z_]\w*\.(\w+)")  # Class.argument must be ...
# Packages whose annotations are reliable.
_ANNOTATED = ("sparsedet.", "torch.optim.", "fvcore.common.param_scheduler")
_SHOWN = (type(None), bool, int, float, str, list, dict)


class LazyCall:
    """Describes a call instead of making it.

    ``LazyCall(torch.nn.Linear)(in_features=2, out_features=3)`` is a config node: edit it, save it,
    and let :func:`instantiate` make the call. Config files import it as ``L``.

    Args:
        target: a class, a function, the dotted path of one, or the node of a call that returns one.
    """

    def __init__(self, target: Callable[..., Any] | str | Mapping[str, Any]) -> None:
        described = isinstance(target, Mapping) and "_target_" in target
        if not callable(target) and not isinstance(target, str) and not described:
            raise TypeError(
                f"LazyCall.target must be a callable or a dotted path, got {target!r}. "
                "Pass the class, not an instance of it."
            )
        self._target = target

    def __call__(self, **kwargs: Any) -> DictConfig:
        """The config node of a call with these keyword arguments."""
        target = self._target
        if isinstance(target, type) and (
            issubclass(target, (dict, list, tuple)) or dataclasses.is_dataclass(target)
        ):
            target = dotted_name(target)  # omegaconf would take the class for a schema
        return DictConfig({**kwargs, "_target_": target}, flags=FLAGS)


def instantiate(cfg: Any) -> Any:
    """Make the calls that a config describes, arguments first.

    Every node with a ``_target_`` becomes the result of calling the target; if the target is itself
    a node, its result is called. The node of a dataclass becomes an instance, lists become lists,
    and other mappings become dicts. Anything that is not a config is returned unchanged.

    Args:
        cfg: a config node, or anything that contains config nodes.

    Raises:
        ConfigError: if a target cannot be found, does not take an argument, misses a required one,
            or raises an error; or if an argument of a component of this library does not match its
            annotation. The message has the path of the node in the config.
    """
    path = cfg._get_full_key(None) if isinstance(cfg, (DictConfig, ListConfig)) else ""
    return _instantiate(cfg, str(path or ""))


def _instantiate(cfg: Any, path: str) -> Any:
    if isinstance(cfg, (ListConfig, list)):
        items = [_instantiate(value_at(cfg, i, path), join(path, i)) for i in range(len(cfg))]
        return cfg if _is_plain_python(cfg) and all(map(operator.is_, items, cfg)) else items
    if isinstance(cfg, Reference):
        return find_class(path, cfg.path)
    if not isinstance(cfg, (DictConfig, Mapping)):
        return cfg
    values = {k: _instantiate(value_at(cfg, k, path), join(path, k)) for k in own_keys(cfg)}
    dataclass = structure(cfg)
    if dataclass is not None:
        return _call(dataclass, values, path, cfg)
    if "_target_" in values:
        return _call(values.pop("_target_"), values, path, cfg)
    untouched = _is_plain_python(cfg) and all(values[k] is cfg[k] for k in values)
    return cfg if untouched else values


def _is_plain_python(cfg: Any) -> bool:
    return not isinstance(cfg, (DictConfig, ListConfig))


def structure(node: Any) -> type | None:
    """The dataclass that a node was made from; None for other nodes and values."""
    found = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    return None if found in (dict, type(None)) else found


def own_keys(node: Any) -> list[Any]:
    """The keys of a node; for a dataclass, the ones that its constructor takes."""
    dataclass = structure(node)
    named, takes_any = (dataclass and keyword_parameters(dataclass)) or ({}, True)
    return [key for key in node if takes_any or key in named]


def value_at(cfg: Any, key: Any, path: str) -> Any:
    """The child of a node, with references resolved.

    Raises:
        ConfigError: if the reference leads nowhere or the value is not set yet (``???``).
    """
    try:
        return plain(cfg[key])
    except (OmegaConfBaseException, RecursionError) as error:
        circle = isinstance(error, RecursionError)
        reason = "the reference points to itself" if circle else first_line(error)
        place = join(path, key)
        raise ConfigError(f"{place} has no value: {reason}. Set {place}.") from error


def _call(target: Any, kwargs: dict[str, Any], path: str, node: Any) -> Any:
    if isinstance(target, str):
        target = find_class(path, target)
    if not callable(target):
        raise ConfigError(f"{join(path, '_target_')} must be callable, got {shown(target)}.")
    _check_arguments(target, kwargs, path)
    for key, value in kwargs.items():
        strange = impossible_number(value)
        if strange is not None:
            raise ConfigError(f"{_place(node, key, path)} cannot be {shown(strange)}. Change it.")
    known = str(getattr(target, "__module__", "")).startswith(_ANNOTATED)
    wrong = wrong_kind(target, kwargs) if known else None
    mend = f"{wrong.sentence}. Set {_place(node, wrong.name, path)}." if wrong else None
    if wrong is not None and wrong.endless:
        raise ConfigError(str(mend))
    made = _made(target, kwargs, path, mend, node)
    if mend is not None:
        raise ConfigError(mend)
    return made


def _made(target: Any, kwargs: dict[str, Any], path: str, mend: str | None, node: Any) -> Any:
    """Call the target; an error gets the place in the config."""
    try:
        return target(**kwargs)
    except Exception as error:
        if not is_out_of_memory(error):
            if mend is None and _is_telling(error):
                raise
            raise ConfigError(_refusal(error, target, kwargs, path, mend, node)) from error
    raise ConfigError(  # not "from" the memory error, which a run could recover from
        f"{path or 'top level'}: there is not enough memory for {_name(target)} with "
        f"{_given(kwargs)}. Lower the argument that makes it so large."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or C++ says that memory ran out."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    texts = ("can't allocate memory", "bad_alloc", "CUDA out of memory")
    return named or any(text in str(error) for text in texts)


def _is_telling(error: Exception) -> bool:
    """Whether an error comes from the machine, or its message names its own file or key."""
    special = isinstance(error, ValueError) and type(error).__module__ != "builtins"
    return special or isinstance(error, OSError)


def _refusal(
    error: Exception,
    target: Any,
    kwargs: Mapping[str, Any],
    path: str,
    mend: str | None,
    node: Any,
) -> str:
    """The message for an error of a call: its own sentence if it has one, else the arguments."""
    text, place = one_line(error), path or "top level"
    own = _OWN_SENTENCE.match(text) if isinstance(error, (ValueError, TypeError)) else None
    text = _at_its_place(text, target, path)
    if own is not None:
        origin = _place(node, own[1], path)
        return f"{text} (config: {place if origin == join(path, own[1]) else origin})"
    if mend is not None:
        return mend
    if type(error) in (ValueError, ImportError):
        return f"{text} (config: {place})"
    return (
        f"{place}: {_name(target)} cannot be created with {_given(kwargs)} "
        f"({type(error).__name__}: {first_line(error)})."
    )


def _at_its_place(text: str, target: Any, path: str) -> str:
    """A component's sentence with its own path in place of the usual path of its family."""
    for family, registry in FAMILIES.items():
        if path and any(each is target for _, each in registry):
            return text.replace(f"Set model.{family}.", f"Set {path}.")
    return text


def _name(target: Any) -> str:
    return getattr(target, "__qualname__", repr(target))


def _given(kwargs: Mapping[str, Any]) -> str:
    """The plain values among the arguments of a call."""
    named = {key: value for key, value in kwargs.items() if isinstance(value, _SHOWN)}
    given = ", ".join(f"{key}={shown(value, 40)}" for key, value in named.items())
    return given or "these arguments"


def _place(node: Any, key: str, path: str) -> str:
    """The key where the value of an argument is set, after following references."""
    found = node._get_node(key) if isinstance(node, DictConfig) and key in node else None
    if isinstance(found, Node) and found._is_interpolation():
        whole = found._maybe_dereference_node()
        origin = whole._get_full_key(None) if whole is not None and whole._get_parent() else ""
        if origin:
            return str(origin)
    return join(path, key)


def _check_arguments(target: Any, kwargs: Mapping[str, Any], path: str) -> None:
    parameters = keyword_parameters(target)
    if parameters is None:
        return
    named, takes_any = parameters
    name = _name(target)
    for key in kwargs:
        if key not in named and not takes_any:
            if key in retired_arguments(target):
                return  # the call has a sentence for it
            hint = nearest(key, named)
            raise ConfigError(f"{join(path, key)} is not an argument of {name}. {hint}")
    missing = [k for k, each in named.items() if each.default is each.empty and k not in kwargs]
    if missing:
        keys = ", ".join(join(path, key) for key in missing)
        raise ConfigError(f"{name} needs {', '.join(missing)}. Set {keys}.")


def check_keys(cfg: Any, valid: Any, path: str = "") -> None:
    """Refuse unknown keys in plain settings, which no call checks.

    Args:
        cfg: the settings, for instance ``cfg.train``.
        valid: a mapping with every valid key, for instance from ``configs/common/train.py``.
        path: the key of ``cfg`` in the whole config, for the message.

    Raises:
        ConfigError: for the first unknown key, with the nearest valid ones.
    """
    for key in cfg:
        if key not in valid:
            hint = nearest(key, valid, path)
            raise ConfigError(f"{join(path, key)} is not a known setting. {hint}")
        inner, reference = raw_value(cfg, key), raw_value(valid, key)
        if is_plain(inner) and is_plain(reference) and len(reference):
            check_keys(inner, reference, join(path, key))


def raw_value(cfg: Any, key: Any) -> Any:
    """A child; None if it is a reference to another key or not set yet (``???``)."""
    if isinstance(cfg, (DictConfig, ListConfig)) and (
        OmegaConf.is_interpolation(cfg, key) or OmegaConf.is_missing(cfg, key)
    ):
        return None
    return cfg[key]


def is_plain(node: Any) -> bool:
    """Whether a node is a group of settings rather than a call or a value."""
    return isinstance(node, (DictConfig, Mapping)) and "_target_" not in node
