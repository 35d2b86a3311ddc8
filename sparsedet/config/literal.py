r"""Texts that are data, in a config: how they are written so that they come out as they were.

In a config ``${...}`` is a reference and ``???`` a value that is still to be set. A backslash
before it makes it text: omegaconf reads ``\${`` as ``${``, and :func:`instantiate` and
:func:`texts` read ``\???`` as ``???``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from sparsedet.config.naming import ConfigError

_REFERENCE = re.compile(r"(\\*)\$\{")
_MISSING = re.compile(r"\\*\?\?\?")


def literal(text: str) -> str:
    """The text that stands for ``text`` in a config."""
    if _MISSING.fullmatch(text):
        return f"\\{text}"
    return _REFERENCE.sub(lambda found: found[1] * 2 + r"\${", text)


def plain(value: Any) -> Any:
    """What a value that omegaconf gave stands for."""
    escaped = isinstance(value, str) and value.startswith("\\") and _MISSING.fullmatch(value)
    return value[1:] if escaped else value


def texts(node: Iterable[Any]) -> list[Any]:
    """The items of a list in a config, as they are meant.

    Raises:
        ConfigError: one is a reference to nothing, or still to be set (``???``).
    """
    try:
        return [plain(each) for each in node]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{node} has an item without a value: {reason}. To use ??? or ${{ as text, write a "
            "backslash before it."
        ) from None
