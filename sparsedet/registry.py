"""One registry per component family, for names that a user types.

Configs import classes; an override such as ``model.scorer._target_=DAMPredictor`` looks up its name
here. A registry does not build anything.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fvcore.common.registry import Registry

BACKBONES = Registry("backbone")
NECKS = Registry("neck")
REGIONS = Registry("regions")
SCORERS = Registry("scorer")
OBJECT_SCORERS = Registry("object_scorer")
SELECTORS = Registry("selector")
POOLERS = Registry("pooler")
ENCODERS = Registry("encoder")
QUERY_INITIALIZERS = Registry("query_initializer")
DENOISINGS = Registry("denoising")
DECODERS = Registry("decoder")
LOSSES = Registry("loss")

FAMILIES: dict[str, Registry] = {
    "backbone": BACKBONES,
    "neck": NECKS,
    "regions": REGIONS,
    "scorer": SCORERS,
    "object_scorer": OBJECT_SCORERS,
    "selector": SELECTORS,
    "pooler": POOLERS,
    "encoder": ENCODERS,
    "query_initializer": QUERY_INITIALIZERS,
    "denoising": DENOISINGS,
    "decoder": DECODERS,
    "loss": LOSSES,
}


_Class = TypeVar("_Class", bound=type)


def register_alias(registry: Registry, name: str, cls: _Class) -> _Class:
    """Register a class under a second name, such as the one that its paper uses.

    Saved configs hold the class's own name.

    Args:
        registry: of the family.
        name: the second name.
        cls: the class, which is returned.
    """
    registry._do_register(name, cls)
    return cls


def _components() -> dict[str, dict[str, Any]]:
    importlib.import_module("sparsedet.modeling")  # the components register themselves on import
    return {family: dict(registry) for family, registry in FAMILIES.items()}


def list_components() -> dict[str, list[str]]:
    """Return the registered component names, sorted, by family (``"scorer"``, ...)."""
    return {family: sorted(members) for family, members in _components().items()}


def find_component(name: str) -> Any:
    """Return the class registered as ``name`` in any family.

    Raises:
        KeyError: if no family has the name; the message lists the known names by family.
    """
    for members in _components().values():
        if name in members:
            return members[name]
    known = "; ".join(
        f"{family}: {', '.join(names)}" for family, names in list_components().items()
    )
    raise KeyError(f"no component is registered as {name!r}. Known components: {known}")


# --- removed arguments


Sentence = Callable[[str, Mapping[str, Any]], str]


def retires(argument: str, sentence: Sentence) -> Callable[[_Class], _Class]:
    """Class decorator: a constructor argument was removed, and using it is an error with advice.

    The same sentence is raised for Python calls, saved configs and overrides.

    Args:
        argument: the name of the removed argument.
        sentence: makes the sentence from the class's name and the given arguments.
    """

    def decorate(cls: _Class) -> _Class:
        construct: Callable[..., None] = vars(cls)["__init__"]

        @functools.wraps(construct)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            if argument in kwargs:
                gone = [name for name in kwargs if name in retired_arguments(type(self))]
                old = {name: kwargs.pop(name) for name in gone}
                given = inspect.signature(construct).bind_partial(self, *args, **kwargs)
                given.apply_defaults()
                raise ValueError(sentence(cls.__name__, {**given.arguments, **old}))
            construct(self, *args, **kwargs)

        sentences = {**retired_arguments(cls), argument: sentence}
        for name, value in (("__init__", checked), ("_retired_arguments", sentences)):
            setattr(cls, name, value)
        return cls

    return decorate


def renamed(old: str, new: str) -> Sentence:
    """The sentence for a renamed argument, see :func:`retires`.

    Only Python calls get it; saved configs and overrides are translated, see
    ``sparsedet.config.earlier``.
    """
    return lambda name, given: f"{name}.{old} is called {new} now. Write {new} instead of {old}."


def retired_arguments(target: Any) -> Mapping[str, Sentence]:
    """Removed constructor arguments of a class, see :func:`retires`."""
    return getattr(target, "_retired_arguments", {})
