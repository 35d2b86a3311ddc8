"""Overrides from the command line: ``key=value``, ``+key=value``, and component swaps by name."""

from __future__ import annotations

import ast
import dataclasses
import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from sparsedet.config.calls import is_plain, own_keys, raw_value, structure, value_at
from sparsedet.config.components import find_class, with_dotted_targets
from sparsedet.config.earlier import EARLIER_NAMES, present_argument, rename
from sparsedet.config.files import parse_yaml, raw_values
from sparsedet.config.naming import (
    ConfigError,
    ConfigKeyError,
    close_matches,
    dotted_name,
    first_line,
    join,
    keyword_parameters,
    nearest,
    one_line,
    shown,
)
from sparsedet.config.stand_ins import (
    CannotDescribe,
    StandIn,
    described_parameters,
    described_retired,
    is_describing,
)
from sparsedet.registry import retired_arguments

logger = logging.getLogger(__name__)

_QUOTES = ("'", '"')
_NONES = ("None", "none", "NONE")
_KEY = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[-?\d+\])*")
_SIGNS = re.compile(r"(\+{0,2})(.*)", re.DOTALL)
_MOST_PARTS = 40


@dataclasses.dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
        parts: the parts of the key.
        value: the value to set.
        adds: whether the key has the prefix ``+``.
        sets: whether the key has the prefix ``++``: it is added if it does not exist.
        typed: the value as typed; None if it was not typed.
    """

    parts: tuple[str, ...]
    value: Any
    adds: bool = False
    sets: bool = False
    typed: str | None = None

    @property
    def quoted(self) -> bool:
        """Whether the value is quoted text."""
        return self.typed is not None and self.typed.startswith(_QUOTES)

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.parts)

    @property
    def swaps(self) -> bool:
        """Whether it swaps a component by name."""
        return len(self.parts) > 1 and self.parts[-1] == "_target_" and isinstance(self.value, str)

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read ``key=value``, ``+key=value`` or ``++key=value``; items are ``key.0``."""
        key, equals, value = text.partition("=")
        signs, name = _SIGNS.match(key.strip()).groups()  # pyright: ignore[reportOptionalMemberAccess]
        parts = tuple(filter(None, re.split(r"\.|\[(-?\d+)\]", name.strip())))
        if not equals or not _KEY.fullmatch(name.strip()) or len(parts) > _MOST_PARTS:
            raise ConfigError(
                f"The override {shown(text)} must be one word of the form key=value or +key=value."
            )
        value = value.strip()
        try:
            found = _parse_value(value)
        except ConfigError as error:
            raise ConfigError(f"In the override {shown(text)} {error}") from error
        return cls(parts, found, signs == "+", signs == "++", value)


def _parse_value(text: str) -> Any:
    """A YAML scalar, a flow list or mapping, or a tuple; anything else is plain text."""
    collection, quoted = text.startswith(("[", "{")), text.startswith(_QUOTES)
    if text.startswith(("(", "[")) and "(" in text:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
            return _as_lists(value) if isinstance(value, (list, tuple)) else text
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        if not collection and not quoted and not text.isdigit():
            return text
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"the value cannot be read: {one_line(reason)}.") from error
    if isinstance(value, (list, dict)):
        return value if collection else text  # such as a path with ': ' in it
    return text if isinstance(value, str) and not quoted else value


def _as_lists(value: Any) -> Any:
    """Replace Python tuples by lists, which configs hold."""
    return [_as_lists(each) for each in value] if isinstance(value, (list, tuple)) else value


def _meant(override: Override, old: Any, is_there: bool) -> Any:
    """Interpret a typed value by the value that it replaces.

    A value that replaces text is text, even if it looks like a number: ``train.output_dir=2024``.
    Python's ``None`` is null unless it is quoted. So is ``none``, unless it replaces text or a
    missing value, where it may be a name.
    """
    typed = override.typed
    if typed is None or override.quoted:
        return override.value
    if typed in _NONES and (typed == "None" or (is_there and not isinstance(old, str))):
        return None
    nothing = override.value is None and typed != ""
    collection = typed.startswith(("[", "{"))
    return typed if isinstance(old, str) and not nothing and not collection else override.value


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """See :meth:`sparsedet.config.LazyConfig.apply_overrides`."""
    parsed = sorted(map(Override.parse, overrides), key=lambda each: not each.swaps)
    for override in parsed:
        override = _in_present_terms(cfg, override)
        if override.swaps:
            swap = swap_component(cfg, ".".join(override.parts[:-1]), override.value)
            level = logging.WARNING if swap.dropped or swap.missing else logging.INFO
            logger.log(level, "%s", swap)
        else:
            _refuse_retired(cfg, override, parsed)
            _apply(cfg, override)
    return cfg


def _in_present_terms(cfg: DictConfig, override: Override) -> Override:
    """The override with the present names of renamed arguments in its key."""
    node: Any = cfg
    parts: list[str] = []
    for part in override.parts:
        renamed = None
        if isinstance(node, DictConfig) and not _is_there(node, part) and part in EARLIER_NAMES:
            renamed = present_argument(_path(_target(node)), part)
        parts.append(renamed or part)
        is_node = isinstance(node, (DictConfig, ListConfig))
        node = _child(node, parts[-1]) if is_node else None
    present = dataclasses.replace(override, parts=tuple(parts))
    if present != override and not is_describing():
        logger.warning("%s is called %s now", override.key, present.key)
    return present


def _path(target: Any) -> str:
    """Where a class is defined; a stand-in knows it too."""
    is_class = isinstance(target, type)
    return f"{target.__module__}.{target.__qualname__}" if is_class else str(target)


def _refuse_retired(cfg: DictConfig, override: Override, typed: Sequence[Override]) -> None:
    """Refuse an override of a removed argument; the other overrides have their old meaning too.

    A config that contains the argument is refused when the call is made.
    """
    node, argument = _parent(cfg, override), override.parts[-1]
    target = _target(node)
    if isinstance(target, StandIn):
        if argument in described_retired(target):
            raise CannotDescribe(override.key)  # the class has a sentence for it
        return
    sentence = retired_arguments(target).get(argument)
    if sentence is not None and argument not in _valid_keys(node):
        siblings = (each for each in typed if each.parts[:-1] == override.parts[:-1])
        given = {each.parts[-1]: each.value for each in siblings}
        raise ConfigError(f"{sentence(target.__name__, given)} (override: {override.key})")


def _apply(cfg: DictConfig, override: Override) -> None:
    node = _parent(cfg, override)
    last = override.parts[-1]
    old = _child(node, last)
    unknown = last not in _valid_keys(node)
    adds = override.adds or (override.sets and unknown)
    is_there = not override.adds and _is_there(node, last)
    meant = _meant(override, old if is_there else None, is_there)
    override = dataclasses.replace(override, value=meant, adds=adds)
    if unknown and (not adds or isinstance(node, ListConfig) or structure(node) is not None):
        raise _unknown_key(cfg, override, len(override.parts) - 1, node)
    if not override.adds:
        if isinstance(override.value, dict) and _keeps_the_rest(old, override.value):
            for key, value in override.value.items():
                inner = Override((*override.parts, str(key)), value)
                _apply(cfg, _in_present_terms(cfg, inner))
            return
        _check_kind(override, old)
    value = with_dotted_targets(override.value, override.key)
    rename(value, override.key)
    _set(node, last, value, override.key)


def _keeps_the_rest(old: Any, typed: dict[str, Any]) -> bool:
    """Whether typed settings are merged into the present value instead of replacing it."""
    return is_plain(old) or (isinstance(old, DictConfig) and "_target_" not in typed)


def _set(node: DictConfig | ListConfig, part: str, value: Any, key: str) -> None:
    """Set a child; dataclasses check the value, and frozen ones can be edited too."""
    frozen = OmegaConf.is_readonly(node) and not OmegaConf.is_readonly(node._get_root())
    try:
        with read_write(node) if frozen else nullcontext():
            node[_index(node, part)] = value
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key} cannot be {shown(value)}: {first_line(error)}.") from error


def _index(node: DictConfig | ListConfig, part: str) -> Any:
    """The key or index for a part of an override; keys may be numbers."""
    if isinstance(node, ListConfig):
        return int(part)
    return next((key for key in node if str(key) == part), part)


def _parent(cfg: DictConfig, override: Override) -> Any:
    """The node that holds the last part of the key; ``+`` creates missing groups on the way."""
    node: Any = cfg
    for position, part in enumerate(override.parts[:-1]):
        child = _child(node, part)
        if child is None and (override.adds or override.sets) and isinstance(node, DictConfig):
            _set(node, part, {}, override.key)
            child = node[part]
        if child is None and part not in _valid_keys(node):
            raise _unknown_key(cfg, override, position, node)
        if not isinstance(child, (DictConfig, ListConfig)):
            path = ".".join(override.parts[: position + 1])
            raise ConfigKeyError(
                f"Unknown key {override.key}: {path} is {shown(child)} and has no keys."
                + (f" Set {path}._target_ to put a component there." if child is None else "")
            )
        node = child
    return node


def _child(node: Any, part: str) -> Any:
    return value_at(node, _index(node, part), "") if _is_there(node, part) else None


def _is_there(node: Any, part: str) -> bool:
    return part in map(str, range(len(node)) if isinstance(node, ListConfig) else node)


def _valid_keys(node: DictConfig | ListConfig) -> list[str]:
    """Valid keys of a node: its present keys and the other arguments of its target."""
    if isinstance(node, ListConfig):
        return [str(i) for i in range(len(node))]
    keys = [str(key) for key in own_keys(node)]
    target = _target(node)
    if isinstance(target, StandIn):
        arguments = described_parameters(target)
    else:
        arguments = (keyword_parameters(target) or ({}, True))[0]
    return [*keys, *(key for key in arguments if key not in keys)]


def _target(node: DictConfig | ListConfig) -> Any:
    """The target of a node; None if it has none."""
    target = structure(node) or (node.get("_target_") if isinstance(node, DictConfig) else None)
    if not isinstance(target, str):
        return target
    return StandIn(target) if is_describing() else find_class(str(node._get_full_key(None)), target)


def _unknown_key(cfg: DictConfig, override: Override, position: int, node: Any) -> ConfigError:
    parent, part = ".".join(override.parts[:position]), override.parts[position]
    if isinstance(node, ListConfig):
        last = f", {join(parent, 0)} to {join(parent, len(node) - 1)}" if len(node) else ""
        return ConfigKeyError(f"Unknown key {override.key}. {parent} has {len(node)} items{last}.")
    siblings = _valid_keys(node)
    elsewhere = [key for key in _all_keys(cfg, "") if key.endswith(f".{override.parts[-1]}")]
    if elsewhere and not close_matches(part, siblings):
        hint = f"Nearest: {', '.join(elsewhere[:3])}."
    else:
        hint = nearest(part, siblings, parent)
    adding = f" Write +{override.key}=... to add it." if _takes_more(node, override) else ""
    return ConfigKeyError(f"Unknown key {override.key}. {hint}{adding}")


def _takes_more(node: DictConfig, override: Override) -> bool:
    """Whether adding a new key to the node makes sense."""
    target = _target(node)
    if target is None:
        return override.parts[0] != "train"  # whose keys are all known
    if structure(node) is not None or isinstance(target, StandIn):
        return False
    return (keyword_parameters(target) or ({}, True))[1]


def _all_keys(node: Any, path: str) -> list[str]:
    if isinstance(node, ListConfig):
        keys: list[Any] = list(range(len(node)))
    else:
        keys = own_keys(node) if isinstance(node, DictConfig) else []
    found = []
    for key in keys:
        found += [join(path, key), *_all_keys(raw_value(node, key), join(path, key))]
    return found


def _check_kind(override: Override, old: Any) -> None:
    """Refuse a scalar in place of a group, and text in place of a component or number."""
    key, new = override.key, override.value
    text = isinstance(new, str) and "${" not in new
    other = text or isinstance(new, (int, float, list))
    if isinstance(old, DictConfig) and is_plain(old) and other:
        names = ", ".join(join(key, each) for each in old)
        raise ConfigError(f"{key} is a group of settings, got {shown(new)}. Set one of {names}.")
    if isinstance(old, DictConfig) and text:
        raise ConfigError(
            f"{key} is a component, got {shown(new)}. "
            f"Use {key}._target_=Name to swap it, or {key}=null to remove it."
        )
    if isinstance(old, (bool, int, float)) and text and not override.quoted:
        kind = "true or false" if isinstance(old, bool) else "a number"
        raise ConfigError(f"{key} must be {kind}, got {shown(new)}.")


# --- components


@dataclasses.dataclass(frozen=True)
class ComponentSwap:
    """The changes that a component swap made.

    Attributes:
        key: the key of the component.
        target: dotted path of the new class.
        dropped: removed arguments, which the new class does not take.
        filled: arguments of the new class that now refer to ``model.*`` values of the same name.
        missing: required arguments of the new class that are not set yet.
    """

    key: str
    target: str
    dropped: tuple[str, ...]
    filled: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.key} is now {self.target}"]
        parts += [f"dropped {', '.join(self.dropped)}"] if self.dropped else []
        parts += [f"from model: {', '.join(self.filled)}"] if self.filled else []
        parts += [f"still to be set: {', '.join(self.missing)}"] if self.missing else []
        return "; ".join(parts)


def swap_component(cfg: DictConfig, key: str, name: str) -> ComponentSwap:
    """Replace the class of a component, in place.

    Arguments that the new class does not take are dropped. Missing arguments for which ``model``
    has a value of the same name (``embed_dim``, ``num_levels``) become references to it.

    Args:
        cfg: the whole config.
        key: the component, such as ``model.scorer``; its present value may be null.
        name: a registered name of the component's family, or a dotted path.

    Raises:
        ConfigError: if there is no such key or component; the message lists the nearest names.
    """
    override = Override((*key.split("."), "_target_"), name)
    holder: Any = _parent(cfg, Override(override.parts[:-1], None))
    last = override.parts[-2]
    if last not in _valid_keys(holder):
        raise _unknown_key(cfg, override, len(override.parts) - 2, holder)
    node = _child(holder, last)
    target = find_class(key, name, node.get("_target_") if isinstance(node, DictConfig) else None)
    if not callable(target):
        kind = f"the {type(target).__name__} {name}"
        raise ConfigError(f"{override.key} must be a class or a function, got {kind}.")
    if not isinstance(node, DictConfig) or structure(node) is not None:
        fields = raw_values(node) if isinstance(node, DictConfig) else {}
        fields.pop("_target_", None)
        _set(holder, last, fields, key)
        node = _child(holder, last)
    named, takes_any = keyword_parameters(target) or ({}, True)
    taken = ("_target_", *named, *retired_arguments(target))  # the call refuses removed arguments
    dropped = [k for k in node if k not in taken and not takes_any]
    for each in dropped:
        del node[each]
    filled = [k for k in named if k not in node and key.startswith("model.") and _shared(cfg, k)]
    for each in filled:
        node[each] = f"${{model.{each}}}"
    node["_target_"] = dotted_name(target)
    missing = [k for k, p in named.items() if p.default is p.empty and k not in node]
    return ComponentSwap(
        key, node["_target_"], tuple(map(str, dropped)), tuple(filled), tuple(missing)
    )


def _shared(cfg: DictConfig, name: str) -> bool:
    """Whether ``model`` has a plain value of this name, to which components can refer."""
    model = cfg["model"]
    return name in model and not isinstance(raw_value(model, name), (DictConfig, ListConfig))
