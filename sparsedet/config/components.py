"""The classes of components, by registered name or dotted path."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sparsedet.config.naming import (
    ConfigError,
    ConfigImportError,
    close_matches,
    dotted_name,
    join,
    locate,
    nearest,
)
from sparsedet.registry import find_component, list_components

# Modules of other libraries whose classes configs name, besides the parts of a detector.
_OTHERS = ("torch.optim", "fvcore.common.param_scheduler", "torch.utils.data")


def find_class(key: str, name: str, current: Any = None) -> Any:
    """The class that a target names.

    Args:
        key: the component, such as ``model.scorer``; its last part may be the family.
        name: a registered name, or a dotted path.
        current: the present target, which determines the family if the key does not.

    Raises:
        ConfigError: if there is no such class; the message has the key and the nearest names.
    """
    if "." in name:
        try:
            return locate(name)
        except ConfigError as error:
            raise ConfigImportError(f"{join(key, '_target_')}: {error}") from error
    families = list_components()
    family = key.rsplit(".", 1)[-1]
    if family not in families:
        old = current.rsplit(".", 1)[-1] if isinstance(current, str) else None
        old = old or getattr(current, "__name__", "")
        family = next((each for each, names in families.items() if old in names), "")
    names = families.get(family) or [each for names in families.values() for each in names]
    if name in names:
        return find_component(name)
    kind = family or "component"
    other = next((each for each, members in families.items() if name in members), "")
    note = f" ({name} is one of the family '{other}'.)" if other else ""
    where = f"{key or 'top level'}: "
    hint = nearest(name, names)
    if not family and not other:
        paths = _beside(name, current)
        hint = f"Write the dotted path: {join(key, '_target_')}={paths[0]}." if paths else hint
    raise ConfigImportError(f"{where}there is no {kind} '{name}'. {hint}{note}")


def _beside(name: str, current: Any) -> list[str]:
    """Dotted paths of classes with a similar name, in the present target's module or others."""
    try:
        current = locate(current) if isinstance(current, str) else current
        modules = [dotted_name(current).rpartition(".")[0]] if current is not None else []
    except ConfigError:
        modules = []
    found = []
    for module in (*modules, *_OTHERS):
        members = {k: v for k, v in vars(import_module(module)).items() if isinstance(v, type)}
        matches = [name] if name in members else close_matches(name, members)
        found += [f"{module}.{each}" for each in matches]
    exact = [each for each in found if each.rpartition(".")[2] == name]
    return exact or found


def with_dotted_targets(value: Any, key: str) -> Any:
    """Replace registered names by dotted paths inside a list or mapping of an override."""
    if isinstance(value, list):
        return [with_dotted_targets(each, join(key, i)) for i, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    found = {k: with_dotted_targets(each, join(key, k)) for k, each in value.items()}
    if isinstance(found.get("_target_"), str):
        found["_target_"] = dotted_name(find_class(key, found["_target_"]))
    return found
