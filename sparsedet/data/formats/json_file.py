"""Read a JSON file; if it is another type of file, the message names the type."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from sparsedet.data.errors import DatasetError
from sparsedet.data.formats.foreign import describe_bytes, describe_lines
from sparsedet.data.formats.source import missing_file

_AGAIN = "Write or download it again."


def read_json(
    path: str, lists: tuple[str, ...], *, entry: Callable[[dict], Any] | None = None
) -> Any:
    """Reads a JSON file in UTF-8, with or without byte order mark.

    Args:
        path: the file.
        lists: keys that must not be repeated at the top level; the last would hide the others.
        entry: called with each object; returns its replacement.

    Raises:
        DatasetError: it cannot be opened, or is not JSON in UTF-8.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise missing_file(path, error.strerror or "cannot be read") from None
    if not raw.strip():
        raise DatasetError(f"annotation file {path!r} is empty. {_AGAIN}")
    if not raw.strip(b"\0"):  # left by a crash or a full disk
        raise DatasetError(f"annotation file {path!r} has only zero bytes. {_AGAIN}")
    repeated = any(raw.count(f'"{key}"'.encode()) > 1 for key in lists)
    other = describe_bytes(raw)
    if other is not None:
        raise DatasetError(f"annotation file {path!r} {other}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"annotation file {path!r} is not UTF-8 at byte {error.start}. Save it as UTF-8."
        ) from None
    del raw  # as large as the text
    content = _parse(text, path, entry)
    if repeated:
        _refuse_repeated(text, lists, path)
    return content


def _parse(text: str, path: str, entry: Callable[[dict], Any] | None) -> Any:
    try:
        return json.loads(text, object_hook=entry)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise DatasetError(f"annotation file {path!r} {describe_lines(text)}") from None
        reason = str(error)
    except RecursionError:
        reason = "its objects are nested too deeply"
    except ValueError:  # Python limits the number of digits that it converts
        reason = "a number in it has thousands of digits"
    raise DatasetError(f"annotation file {path!r} is not valid JSON: {reason}. {_AGAIN}")


def _refuse_repeated(text: str, lists: tuple[str, ...], path: str) -> None:
    """Parse the file a second time, only if a key may be repeated."""

    def of_pairs(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        last[:] = pairs  # the top level is the last that is called
        return dict(pairs)

    last: list[tuple[str, Any]] = []
    json.loads(text, object_pairs_hook=of_pairs)
    for key, count in Counter(key for key, _ in last if key in lists).items():
        if count > 1:
            raise DatasetError(
                f"annotation file {path!r} has '{key}' {count} times at its top level, but only "
                "the last one would be read. Join the lists."
            )
