r"""Escape texts that are data in a config.

In a config ``${...}`` is a reference and ``???`` a value that is not set yet. A backslash before it
makes it plain text: omegaconf reads ``\${`` as ``${``, and :func:`instantiate` and :func:`texts`
read ``\???`` as ``???``.
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
    """The escaped form of ``text`` in a config."""
    if _MISSING.fullmatch(text):
        return f"\\{text}"
    return _REFERENCE.sub(lambda found: found[1] * 2 + r"\${", text)


def plain(value: Any) -> Any:
    """The meaning of a value that omegaconf returned."""
    escaped = isinstance(value, str) and value.startswith("\\") and _MISSING.fullmatch(value)
    return value[1:] if escaped else value


def texts(node: Iterable[Any]) -> list[Any]:
    """The items of a list of texts in a config, unescaped.

    Raises:
        ConfigError: an item is a reference that leads nowhere, or is not set yet (``???``).
    """
    try:
        return [plain(each) for each in node]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{node} has an item without a value: {reason}. To use ??? or ${{ as text, write a "
            "backslash before it."
        ) from None
