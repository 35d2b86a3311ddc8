"""YAML of unknown origin: how much of it is read, and that each key stands there once.

A few lines of aliases stand for billions of values (a billion laughs), and a reader that follows
each level with a call ends at the depth of Python's stack. So the nodes are measured before
anything is made of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import yaml

from sparsedet.config.naming import ConfigError, shown

_MOST_BYTES = 1 << 20
_MOST_NODES = 50_000
_MOST_LEVELS = 40


def read_start(path: str | os.PathLike[str]) -> bytes:
    """The content of a file, of which no more is read than shows that it is too large."""
    with open(path, "rb") as file:
        return file.read(_MOST_BYTES + 1)


def read_bounded(text: str | bytes, loader: type[yaml.SafeLoader], what: str) -> Any:
    """Read YAML text of bounded size.

    Args:
        text: of one document.
        loader: makes values of the nodes.
        what: is read, for the message, such as "config".

    Raises:
        yaml.YAMLError: if it is none, or has a key twice.
        ConfigError: if it is larger or deeper than such a file is.
    """
    if len(text) > _MOST_BYTES:
        raise ConfigError(f"it is larger than {_MOST_BYTES >> 20} MB, which no {what} is.")
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, ())
        return reader.construct_document(node)
    except (_TooLarge, RecursionError) as error:
        levels = f"it is nested more than {_MOST_LEVELS} levels deep, which no {what} is."
        values = f"it has more than {_MOST_NODES} values, which no {what} has."
        raise ConfigError(values if isinstance(error, _TooLarge) else levels) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise yaml.YAMLError("a value does not match its tag (!!...)") from error
    finally:
        reader.dispose()


class _TooLarge(Exception):
    """There are more nodes than any file of use has."""


def _measure(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many nodes there are below one, each alias counted as what it stands for."""
    if id(node) in above or len(above) > _MOST_LEVELS:
        raise RecursionError
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        mapping = isinstance(node, yaml.MappingNode)
        if mapping:
            _refuse_twice([key for key, _ in node.value])
        children = [each for pair in node.value for each in pair] if mapping else node.value
        known[id(node)] = 1 + sum(_measure(each, known, (*above, id(node))) for each in children)
    if known[id(node)] > _MOST_NODES:
        raise _TooLarge
    return known[id(node)]


def _refuse_twice(keys: Sequence[yaml.Node]) -> None:
    """Of a key that stands there twice, YAML's reader would silently take the last."""
    seen = set()
    for key in keys:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen and key.value != "<<":
                problem = f"the key {shown(key.value)} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
