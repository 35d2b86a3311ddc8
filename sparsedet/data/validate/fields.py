"""Parse single values of annotation files: numbers, flags and strings.

No value is converted by truthiness. A parser returns None for an invalid value, and the caller
names the entry. Strings of numbers are accepted; the caller warns about them, see `said_as_text`.
"""

import difflib
import math
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LONGEST = 400  # characters of a number that is a text
_HUGE = 1e150  # beyond it, the product of two numbers is not finite
_FLAGS = {"true": True, "yes": True, "false": False, "no": False}


class _Words(reprlib.Repr):
    """Values as in JSON, except for quotes."""

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"


_shortened = _Words()
_shortened.maxstring = _shortened.maxother = 80
_shortened.maxlong = 40
_shortened.maxlevel = 3
_names = reprlib.Repr()
_names.maxstring = 300


def number(value: Any) -> float | None:
    """A finite number, or a string of one; true and false are not numbers."""
    if type(value) is float or type(value) is int:  # the usual case; the general test is slower
        # the comparison also works for integers beyond the range of floats, and fails for NaN
        return float(value) if -_HUGE < value < _HUGE else None
    if isinstance(value, str):
        return number(_parse(value))
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return number(int(value) if isinstance(value, Integral) else float(value))


def whole(value: Any) -> int | None:
    """An integer, written as 640, as 640.0 or as a string; true and false are not integers."""
    if type(value) is int:
        return value
    if isinstance(value, str):
        value = _parse(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    if isinstance(value, Integral):
        return int(value)
    found = float(value)
    return int(found) if math.isfinite(found) and found.is_integer() else None


def flag(value: Any) -> bool | None:
    """A flag: 1 or 0 as a number or string, true or false; null is false."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    found = number(value)
    return bool(found) if found in (0, 1) else None


def text(value: Any) -> str | None:
    """A string that is not blank and can be encoded; a number is converted to a string."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return str(value) if number(value) is not None else None
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates, which JSON can represent
        return None
    return value


def shown(value: Any) -> str:
    """A value for a message, shortened where it is long."""
    return _shortened.repr(value)


def quoted(name: str) -> str:
    """The name of a file for a message: in quotes, on one line, and cut in the middle if long."""
    return _names.repr(name)


def kind(value: Any) -> str:
    """What JSON calls a value."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Real):
        return "a number"
    names = ((str, "a string"), (list, "a list"), (dict, "an object"))
    return next((name for each, name in names if isinstance(value, each)), type(value).__name__)


def similar_key(entry: Mapping[str, Any], key: str) -> str:
    """A question, after a space, whether a key that an entry has stands for another; or nothing."""
    near = difflib.get_close_matches(key, [each for each in entry if isinstance(each, str)], n=1)
    return f" Did you mean its key '{near[0]}'?" if near and key not in entry else ""


def folded(name: str) -> str:
    """What names have in common that differ only in case, blanks and Unicode form."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def said_as_text(keys: str) -> str:
    """The warning about texts that were read as numbers."""
    return f"{keys} is written as a string; it is read as the number."


def _parse(value: str) -> int | float | None:
    value = value.strip()
    if len(value) > _LONGEST or not _NUMBER.fullmatch(value):
        return None
    return int(value) if value.lstrip("+-").isdecimal() else float(value)
