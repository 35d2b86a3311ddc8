"""The public names of ``sparsedet.modeling``: what a signature mentions can be imported there."""

from __future__ import annotations

import inspect
import re
import sys
from typing import TypeVar

import pytest

from sparsedet import modeling

# Protocols of the families have names that their members have, too, so they stay where they are.
PROTOCOLS = "sparsedet.modeling.parts"


def mentioned(function) -> set[str]:
    """Names in the annotations of a function that stand for classes of our modeling."""
    home = vars(sys.modules[function.__module__])
    found = set()
    for annotation in inspect.get_annotations(function).values():
        for name in re.findall(r"[A-Za-z]\w*", str(annotation)):
            module = getattr(home.get(name), "__module__", None) or ""
            ours = module.startswith("sparsedet.modeling") and module != PROTOCOLS
            if ours and not isinstance(home[name], TypeVar):
                found.add(name)
    return found


@pytest.mark.parametrize("name", modeling.__all__)
def test_what_a_signature_mentions_is_public(name):
    thing = getattr(modeling, name)
    functions = [thing]
    if inspect.isclass(thing):
        functions = [thing.__dict__[each] for each in vars(thing) if is_public(each)]
        functions = [getattr(each, "__func__", getattr(each, "fget", each)) for each in functions]
        functions = [inspect.unwrap(each) for each in functions if inspect.isroutine(each)]
    for function in functions:
        if function.__module__.startswith("sparsedet."):
            missing = mentioned(function) - set(modeling.__all__)
            assert not missing, f"{name}.{function.__name__} mentions {sorted(missing)}"


def is_public(attribute: str) -> bool:
    return attribute in ("__init__", "__call__") or not attribute.startswith("_")


def test_the_nouns_are_seen():
    assert {"MultiScaleFeatures", "TokenScores", "Targets"} <= mentioned(
        modeling.DAMPredictor.forward
    )
