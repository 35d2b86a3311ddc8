"""Names of picture files that are not there, and the file that is meant."""

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from .roots import is_address

_TOO_MANY = 20_000  # names among which a similar one is not looked for: it takes seconds
_TOOL_PREFIX = re.compile(r"[0-9a-f]{8}-(.+)", re.IGNORECASE)  # Label Studio's
_EXPORTED = re.compile(
    r"(.+)_(jpe?g|png|bmp|webp|tiff?)\.rf\.\w+\.\w+", re.IGNORECASE
)  # Roboflow's

_WHY = {
    "case": "upper and lower case differ",
    "NFC": "the folder has it in Unicode form NFC",
    "NFD": "the folder has it in Unicode form NFD",
    "blank": "blanks differ",
    "folder": "the folders in front of the name differ",
    "address": "it is an address and no path",
    "quoted": "it is written as in an address (%20)",
    "backslash": "it has backslashes",
    "suffix": "the suffix or the number of zeros differs",
    "prefix": "the beginning of the name differs",
    "similar": "the name is only similar",
}


class Meant(NamedTuple):
    """A file that is there in place of one that is not."""

    names: list[str]
    why: str

    def __str__(self) -> str:
        more = f" and {len(self.names) - 2} more" if len(self.names) > 2 else ""
        return " and ".join(map(repr, self.names[:2])) + more


class FileIndex:
    """The files of a folder by their names.

    Args:
        names: paths below the folder, with slashes.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in self.names:
            last = _folded(name.rpartition("/")[2])
            self._by_name.setdefault(last, []).append(name)
            stem = last.rpartition(".")[0] or last
            tool = _TOOL_PREFIX.fullmatch(last)
            for key in {stem, _without_zeros(stem), *(tool.groups() if tool else ())}:
                self._by_stem.setdefault(key, []).append(name)

    @classmethod
    def below(cls, folder: str) -> "FileIndex":
        """All files in a folder and in those below it, found in one pass."""
        names = []
        for place, _, files in os.walk(folder):
            inside = os.path.relpath(place, folder).replace(os.sep, "/")
            names += files if inside == "." else [f"{inside}/{file}" for file in files]
        return cls(names)

    def find(self, name: str, *, guess: bool) -> Meant | None:
        """The file that a name means, where there is one.

        Args:
            name: as the annotation file has it.
            guess: whether a similar name will do; it is looked for among few files only.
        """
        parts = _parts(name)
        if not parts:
            return None
        last = _folded(parts[-1])
        found = self._by_name.get(last, [])
        if found:
            found = _deepest(found, parts)
            return Meant(found, _WHY[_difference(name, parts, found)])
        for why, keys in _other_names(last):
            found = next((files for key in keys if (files := self._either(key))), [])
            if found:
                return Meant(found, _WHY[why])
        if guess and len(self.names) <= _TOO_MANY:
            near = difflib.get_close_matches(last, list(self._by_name), n=1, cutoff=0.85)
            if near:
                return Meant(self._by_name[near[0]], _WHY["similar"])
        return None

    def _either(self, key: str) -> list[str]:
        return self._by_name.get(key) or self._by_stem.get(key) or []


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _without_zeros(stem: str) -> str:
    return stem.lstrip("0") if stem.isdigit() else stem


def _parts(name: str) -> list[str]:
    """Folders and name of a path, whatever wrote it: an address, Windows, a tool for labelling."""
    text = name.strip()
    address = urlsplit(text) if is_address(text) or "?" in text else None
    if address is not None:
        inner = parse_qs(address.query).get("d")  # /data/local-files/?d=folder/a.png
        text = inner[0] if inner else f"{address.netloc}/{address.path}"
    text = unquote(text).replace("\\", "/")
    return [part for part in text.split("/") if part not in ("", ".", "..")]


def _deepest(found: list[str], parts: list[str]) -> list[str]:
    """Those that have most of the last folders of a path in common with it."""
    depths = []
    for name in found:
        pairs = zip(reversed(name.split("/")), reversed(parts), strict=False)
        same = [_folded(a) == _folded(b) for a, b in pairs]
        depths.append(same.index(False) if False in same else len(same))
    return [name for name, depth in zip(found, depths, strict=True) if depth == max(depths)]


def _difference(name: str, parts: list[str], found: list[str]) -> str:
    if is_address(name) or "?" in name:
        return "address"
    if name.strip() in (found[0], found[0].strip()):
        return "blank"
    if _folded(name.replace("\\", "/")) != _folded(found[0]) and unquote(name) == name:
        return "folder"
    for form in ("NFC", "NFD"):
        if unicodedata.normalize(form, name) == found[0]:
            return form
    if "\\" in name:
        return "backslash"
    return "quoted" if unquote(name) != name else "case"


def _other_names(last: str) -> list[tuple[str, list[str]]]:
    """Names that the last part of a path may stand for, the likeliest first."""
    stem, _, suffix = last.rpartition(".")
    stem = stem or last
    cuts = [i + 1 for i, letter in enumerate(last) if letter in "-_"]
    exported = _EXPORTED.fullmatch(last)
    return [
        ("suffix", [stem, *([last.partition(".")[0]] if suffix else [])]),
        ("suffix", [_without_zeros(stem)]),
        ("prefix", [last]),  # a tool's in front of the file's
        ("suffix", [f"{exported[1]}.{exported[2]}"] if exported else []),
        ("prefix", [last[cut:] for cut in cuts]),
        ("prefix", [_without_zeros(stem[cut:]) for cut in cuts if stem[cut:].isdigit()]),
    ]
