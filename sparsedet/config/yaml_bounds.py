"""YAML of unknown origin: its size is bounded, and no key may appear twice.

A few lines of aliases can expand to billions of values (a billion laughs), and a recursive reader
fails at the depth of Python's stack. So the nodes are counted before they are constructed.
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
    """Read a file, but at most one byte more than the bound."""
    with open(path, "rb") as file:
        return file.read(_MOST_BYTES + 1)


def read_bounded(text: str | bytes, loader: type[yaml.SafeLoader], what: str) -> Any:
    """Read YAML text of bounded size.

    Args:
        text: the text of one document.
        loader: constructs values from the nodes.
        what: what is read, for the message, such as "config".

    Raises:
        yaml.YAMLError: if it is not YAML, or has a key twice.
        ConfigError: if it is too large or too deep.
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
    """There are more nodes than any real file has."""


def _measure(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """The number of nodes below a node, with aliases expanded."""
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
    """Refuse duplicate keys, of which PyYAML would silently take the last."""
    seen = set()
    for key in keys:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen and key.value != "<<":
                problem = f"the key {shown(key.value)} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
