"""One registry per component family: a name typed by a person crosses here, nowhere else.

Configs import classes; a shell override such as ``model.scorer._target_=DAMPredictor`` looks its
name up here. No registry builds anything.
"""

from __future__ import annotations

import importlib
from typing import Any

from fvcore.common.registry import Registry

BACKBONES = Registry("backbone")
NECKS = Registry("neck")
SCORERS = Registry("scorer")
OBJECT_SCORERS = Registry("object_scorer")
SELECTORS = Registry("selector")
ENCODERS = Registry("encoder")
QUERY_INITIALIZERS = Registry("query_initializer")
DENOISINGS = Registry("denoising")
DECODERS = Registry("decoder")
LOSSES = Registry("loss")

FAMILIES: dict[str, Registry] = {
    "backbone": BACKBONES,
    "neck": NECKS,
    "scorer": SCORERS,
    "object_scorer": OBJECT_SCORERS,
    "selector": SELECTORS,
    "encoder": ENCODERS,
    "query_initializer": QUERY_INITIALIZERS,
    "denoising": DENOISINGS,
    "decoder": DECODERS,
    "loss": LOSSES,
}


def _components() -> dict[str, dict[str, Any]]:
    importlib.import_module("sparsedet.modeling")  # the components register themselves on import
    return {family: dict(registry) for family, registry in FAMILIES.items()}


def list_components() -> dict[str, list[str]]:
    """Return the registered component names, sorted, by family (``"scorer"``, ...)."""
    return {family: sorted(members) for family, members in _components().items()}


def find_component(name: str) -> Any:
    """Return the class registered as ``name`` in any family.

    Raises:
        KeyError: if no family knows the name; the message lists every known one by family.
    """
    for members in _components().values():
        if name in members:
            return members[name]
    known = "; ".join(
        f"{family}: {', '.join(names)}" for family, names in list_components().items()
    )
    raise KeyError(f"no component is registered as {name!r}. Known components: {known}")
