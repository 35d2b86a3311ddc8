"""Overrides typed by a person: ``key=value``, ``+key=value``, and swapping components by name."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from sparsedet.config.calls import is_plain, own_keys, raw_value, structure, value_at
from sparsedet.config.components import find_class, with_dotted_targets
from sparsedet.config.files import parse_yaml, raw_values
from sparsedet.config.naming import (
    ConfigError,
    ConfigKeyError,
    close_matches,
    dotted_name,
    join,
    keyword_parameters,
    nearest,
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


@dataclasses.dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
        parts: the key.
        value: what to set.
        adds: whether ``+`` stood before the key.
        quoted: whether the value is text in quotes.
    """

    parts: tuple[str, ...]
    value: Any
    adds: bool
    quoted: bool = False

    @property
    def key(self) -> str:
        """The key as it is written."""
        return ".".join(self.parts)

    @property
    def swaps(self) -> bool:
        """Whether a component is named."""
        return len(self.parts) > 1 and self.parts[-1] == "_target_" and isinstance(self.value, str)

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read ``key=value`` or ``+key=value``; list items are ``key.0`` or ``key[0]``."""
        key, equals, value = text.partition("=")
        parts = tuple(re.split(r"\.|\[(\d+)\]\.?", key.removeprefix("+").strip()))
        parts = tuple(part for part in parts if part)
        if not equals or not parts:
            raise ConfigError(f"The override '{text}' must read key=value or +key=value.")
        value = value.strip()
        try:
            return cls(parts, _parse_value(value), key.startswith("+"), value.startswith(_QUOTES))
        except ConfigError as error:
            raise ConfigError(f"In the override '{text}' {error}") from error


def _parse_value(text: str) -> Any:
    """A YAML scalar or a flow list or mapping; what is neither is taken as it stands."""
    collection, quoted = text.startswith(("[", "{")), text.startswith(_QUOTES)
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        if not collection and not quoted:
            return text
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"the value cannot be read: {reason}.") from error
    if isinstance(value, (list, dict)):
        return value if collection else text  # such as a path with ': ' in it
    return text if isinstance(value, str) and not quoted else value


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """See :meth:`sparsedet.config.LazyConfig.apply_overrides`."""
    parsed = sorted(map(Override.parse, overrides), key=lambda each: not each.swaps)
    for override in parsed:
        if override.swaps:
            swap = swap_component(cfg, ".".join(override.parts[:-1]), override.value)
            level = logging.WARNING if swap.dropped or swap.missing else logging.INFO
            logger.log(level, "%s", swap)
        else:
            _refuse_retired(cfg, override, parsed)
            _apply(cfg, override)
    return cfg


def _refuse_retired(cfg: DictConfig, override: Override, typed: Sequence[Override]) -> None:
    """Refuse an argument that is gone, by what was typed beside it: that has the old meaning too.

    A config that has the argument itself is refused when the call is made.
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
    if unknown and (not override.adds or structure(node) is not None):
        raise _unknown_key(cfg, override, len(override.parts) - 1, node)
    if not override.adds:
        if isinstance(override.value, dict) and _keeps_the_rest(old, override.value):
            for key, value in override.value.items():
                _apply(cfg, Override((*override.parts, str(key)), value, adds=False))
            return
        _check_kind(override, old)
    if isinstance(node, ListConfig) and unknown:
        raise ConfigKeyError(f"{override.key}: the list has {len(node)} items.")
    _set(node, last, with_dotted_targets(override.value, override.key), override.key)


def _keeps_the_rest(old: Any, typed: dict[str, Any]) -> bool:
    """Whether typed settings go into what is there, rather than into its place."""
    return is_plain(old) or (isinstance(old, DictConfig) and "_target_" not in typed)


def _set(node: DictConfig | ListConfig, part: str, value: Any, key: str) -> None:
    """Set a child; dataclasses check it, and a frozen one is as free to edit as any."""
    frozen = OmegaConf.is_readonly(node) and not OmegaConf.is_readonly(node._get_root())
    try:
        with read_write(node) if frozen else nullcontext():
            node[_index(node, part)] = value
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key} cannot be {value!r}: {reason}.") from error


def _index(node: DictConfig | ListConfig, part: str) -> Any:
    """The key or index that a part of an override means: keys may be numbers."""
    if isinstance(node, ListConfig):
        return int(part)
    return next((key for key in node if str(key) == part), part)


def _parent(cfg: DictConfig, override: Override) -> Any:
    """The node that holds the last part of the key; ``+`` makes the groups on the way."""
    node: Any = cfg
    for position, part in enumerate(override.parts[:-1]):
        child = _child(node, part)
        if child is None and override.adds and isinstance(node, DictConfig):
            _set(node, part, {}, override.key)
            child = node[part]
        if child is None and part not in _valid_keys(node):
            raise _unknown_key(cfg, override, position, node)
        if not isinstance(child, (DictConfig, ListConfig)):
            path = ".".join(override.parts[: position + 1])
            raise ConfigKeyError(
                f"Unknown key {override.key}: {path} is {child!r} and holds no keys."
                + (f" Set {path}._target_ to put a component there." if child is None else "")
            )
        node = child
    return node


def _child(node: Any, part: str) -> Any:
    keys = range(len(node)) if isinstance(node, ListConfig) else node
    return value_at(node, _index(node, part), "") if part in map(str, keys) else None


def _valid_keys(node: DictConfig | ListConfig) -> list[str]:
    """What may be set at a node: the keys it has, and the other arguments of its target."""
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
    """What a node calls, None if it calls nothing."""
    target = structure(node) or (node.get("_target_") if isinstance(node, DictConfig) else None)
    if not isinstance(target, str):
        return target
    return StandIn(target) if is_describing() else find_class(str(node._get_full_key(None)), target)


def _unknown_key(cfg: DictConfig, override: Override, position: int, node: Any) -> ConfigError:
    parent, part = ".".join(override.parts[:position]), override.parts[position]
    siblings = _valid_keys(node)
    elsewhere = [key for key in _all_keys(cfg, "") if key.endswith(f".{override.parts[-1]}")]
    if elsewhere and not close_matches(part, siblings):
        hint = f"Nearest: {', '.join(elsewhere[:3])}."
    else:
        hint = nearest(part, siblings, parent)
    adding = f" Write +{override.key}=... to add it." if structure(node) is None else ""
    return ConfigKeyError(f"Unknown key {override.key}. {hint}{adding}")


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
    """Refuse a scalar in the place of a group, and text in that of a component or number."""
    key, new = override.key, override.value
    text = isinstance(new, str) and "${" not in new
    if isinstance(old, DictConfig) and is_plain(old) and (text or isinstance(new, (int, float))):
        names = ", ".join(join(key, each) for each in old)
        raise ConfigError(f"{key} is a group of settings, got {new!r}. Set one of {names}.")
    if isinstance(old, DictConfig) and text:
        raise ConfigError(
            f"{key} is a component, got {new!r}. "
            f"Use {key}._target_=Name to swap it, or {key}=null to take it away."
        )
    if isinstance(old, (bool, int, float)) and text and not override.quoted:
        kind = "true or false" if isinstance(old, bool) else "a number"
        raise ConfigError(f"{key} must be {kind}, got {new!r}.")


# --- components


@dataclasses.dataclass(frozen=True)
class ComponentSwap:
    """What swapping a component changed.

    Attributes:
        key: where.
        target: dotted path of the new class.
        dropped: arguments that the new class does not take.
        filled: arguments of the new class taken from ``model.*``, which has values of those names.
        missing: arguments that the new class needs and that are still to be set.
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
    """Put another class in the place of a component, in place.

    Arguments that the new class does not take are dropped. Those that are not set and for which
    ``model`` has a value of the same name (``embed_dim``, ``num_levels``) become references to it.

    Args:
        cfg: the whole config.
        key: the component, such as ``model.scorer``; it may be null so far.
        name: a registered name of the component's family, or a dotted path.

    Raises:
        ConfigError: if there is no such key or component; the message lists the nearest names.
    """
    override = Override((*key.split("."), "_target_"), name, adds=False)
    holder: Any = _parent(cfg, Override(override.parts[:-1], None, adds=False))
    last = override.parts[-2]
    if last not in _valid_keys(holder):
        raise _unknown_key(cfg, override, len(override.parts) - 2, holder)
    node = _child(holder, last)
    target = find_class(key, name, node.get("_target_") if isinstance(node, DictConfig) else None)
    if not isinstance(node, DictConfig) or structure(node) is not None:
        fields = raw_values(node) if isinstance(node, DictConfig) else {}
        fields.pop("_target_", None)
        _set(holder, last, fields, key)
        node = _child(holder, last)
    named, takes_any = keyword_parameters(target) or ({}, True)
    taken = ("_target_", *named, *retired_arguments(target))  # the call refuses those that are gone
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
    """Whether ``model`` has a plain value of this name that its components can refer to."""
    model = cfg["model"]
    return name in model and not isinstance(raw_value(model, name), (DictConfig, ListConfig))
