"""Check the entries of categories and images: their ids, names and sizes."""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sparsedet.data.validate.fields import (
    folded,
    kind,
    quoted,
    said_as_text,
    shown,
    similar_key,
    text,
    whole,
)
from sparsedet.data.validate.findings import Effect, Findings

_LARGEST_SIDE = 2**31 - 1
_REPEATED = "it is listed more than once; counted once."


def check_categories(
    categories: Sequence[Mapping], annotations: Sequence[Mapping], findings: Findings
) -> list[tuple[int, str]]:
    """Checks the categories of an annotation file.

    Entries with equal id and name count once. If two ids have the same name, an id that no
    annotation uses is left out, since some exports write such a parent category.

    Args:
        categories: entries with `id` and `name`.
        annotations: entries with `category_id`.
        findings: collects faults; ids that are not integers, names that are not strings and
            repeated ids or names are errors.

    Returns:
        (id, name) in the order of the ids.
    """
    pairs = [pair for pair in (_category(each, findings) for each in categories) if pair]
    for (identity, name), count in Counter(pairs).items():
        if count > 1:
            findings.warn(f"category {identity} ({name!r})", _REPEATED)
    pairs = _without_unused(list(dict.fromkeys(pairs)), annotations, findings)
    for identity, count in Counter(i for i, _ in pairs).items():
        if count > 1:
            fault = "the id occurs twice. Renumber one."
            findings.error(f"category {identity}", fault, whole=True)
    _compare_names([name for _, name in pairs], findings)
    for name, count in Counter(n for _, n in pairs).items():
        if count > 1:
            fault = "two ids have this name. Merge or rename them."
            findings.error(f"category {name!r}", fault, whole=True)
    return sorted(pairs)


def _category(category: Mapping, findings: Findings) -> tuple[int, str] | None:
    given, name = category.get("id"), text(category.get("name"))
    label, identity = f"category {shown(given)}", whole(given)
    if identity is None:
        fault = f"'id' must be a whole number, got {kind(given)}. Renumber the categories."
        findings.error(label, fault, whole=True)
        return None
    if isinstance(given, str):
        findings.warn(label, said_as_text("its 'id'"))
    if name is None:
        fault = "'name' must be a non-empty string. Correct it."
        findings.error(f"{label} (name {shown(category.get('name'))})", fault, whole=True)
        return None
    if not isinstance(category["name"], str):
        findings.warn(f"{label} (name {name})", "its 'name' is a number; it is read as a string.")
    return identity, name


def _compare_names(names: Sequence[str], findings: Findings) -> None:
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(folded(name), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            label = f"categories {' and '.join(map(shown, group[:3]))}"
            fault = (
                "the names differ only in case, spaces or Unicode form; they remain different "
                "classes."
            )
            findings.warn(label, fault)


def _without_unused(
    pairs: list[tuple[int, str]], annotations: Sequence[Mapping], findings: Findings
) -> list[tuple[int, str]]:
    counts = Counter(name for _, name in pairs)
    if len(counts) == len(pairs):
        return pairs
    used = {whole(entry.get("category_id")) for entry in annotations}
    kept = []
    for identity, name in pairs:
        if counts[name] > 1 and identity not in used:
            counts[name] -= 1
            findings.warn(
                f"category {identity} ({name!r})",
                "another id has the same name, and no annotation uses this id; left out.",
                Effect.LEFT_OUT,
            )
        else:
            kept.append((identity, name))
    return kept


def check_images(
    images: Sequence[Mapping], findings: Findings
) -> tuple[dict[int | str, dict], set[int | str]]:
    """Checks ids, names and sizes of the image entries; opens no file.

    Returns:
        Copies of the entries by id, whose `id`, `width` and `height` are integers (an id may also
        be a string); and the ids of unusable entries.
    """
    by_id: dict[int | str, dict] = {}
    given: dict[int | str, Mapping] = {}
    unusable: set[int | str] = set()
    names: Counter = Counter()
    for place, image in enumerate(images):
        identity = image_id(image.get("id"))
        if identity is None:
            findings.error(
                f"images[{place}] (id {shown(image.get('id'))})",
                "'id' must be a whole number or a string. Correct it.",
            )
            continue
        label = f"image {name_of(identity)}"
        if identity in by_id:
            if image == given[identity]:
                findings.warn(label, _REPEATED)
                continue
            findings.error(label, "the id occurs twice. Renumber one of the images.")
            unusable.add(identity)
        by_id[identity] = {**image, "id": identity}
        given[identity] = image
        if _check_file_name(image, label, findings):
            names[posixpath.normpath(image["file_name"])] += 1
        else:
            unusable.add(identity)
        if not _read_size(by_id[identity], label, findings):
            unusable.add(identity)
    for name, count in names.items():
        if count > 1:
            findings.warn(f"file {quoted(name)}", "several images use it; all are kept.")
    return by_id, unusable


def image_id(value: Any) -> int | str | None:
    """The id of an image: a non-empty string, or an integer."""
    return (value or None) if isinstance(value, str) else whole(value)


def name_of(identity: int | str) -> str:
    """An id as text for a message on one line."""
    name = str(identity) if isinstance(identity, str) or abs(identity) < 10**18 else ""
    return name if name.isprintable() and 0 < len(name) <= 100 else shown(identity)


def _check_file_name(image: Mapping[str, Any], label: str, findings: Findings) -> bool:
    name = image.get("file_name")
    if name is None or name == "":
        hint = similar_key(image, "file_name")
        fault = f"'file_name' is missing.{hint} Add the path below the image folder."
        findings.error(label, fault)
        return False
    if not isinstance(name, str):
        findings.error(
            f"{label} (file_name {shown(name)})",
            f"'file_name' must be a string, got {kind(name)}. Write the path in the image folder.",
        )
        return False
    return True


def _read_size(image: dict, label: str, findings: Findings) -> bool:
    given = image.get("width"), image.get("height")
    if given == (None, None):
        return True
    width, height = map(whole, given)
    image["width"] = image["height"] = None
    if width is None or height is None or not _is_side(width) or not _is_side(height):
        findings.error(
            f"{label} ({shown(image.get('file_name'))}, {shown(given[0])} x {shown(given[1])})",
            "'width' and 'height' must be positive whole numbers. Correct or delete both.",
        )
        return False
    if any(isinstance(each, str) for each in given):
        findings.warn(label, said_as_text("its 'width' or 'height'"))
    image["width"], image["height"] = width, height
    return True


def _is_side(value: int) -> bool:
    return 0 < value <= _LARGEST_SIDE
