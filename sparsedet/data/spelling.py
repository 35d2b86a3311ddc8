"""Find the files that misspelled names of picture files probably mean."""

import difflib
import os
import re
import unicodedata
from collections.abc import Container, Iterable
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from sparsedet.data.roots import is_address

_TOO_MANY = 20_000  # with more names, the search for a similar one would take seconds
_TOOL_PREFIX = re.compile(r"[0-9a-f]{8}[-_]+(.+)", re.IGNORECASE)  # Label Studio's
_SIGNS = re.compile(r"[\s+_-]+")
_EXPORTED = re.compile(
    r"(.+)_(jpe?g|png|bmp|webp|tiff?)\.rf\.\w+\.\w+", re.IGNORECASE
)  # Roboflow's

_WHY = {
    "case": "upper and lower case differ",
    "NFC": "the folder has it in Unicode form NFC",
    "NFD": "the folder has it in Unicode form NFD",
    "blank": "spaces differ",
    "folder": "the folders differ",
    "address": "it is a URL, not a path",
    "quoted": "it is URL-encoded (%20)",
    "signs": "spaces or characters such as %20, + and _ differ",
    "backslash": "it contains backslashes",
    "suffix": "the suffix or the number of leading zeros differs",
    "prefix": "the beginning of the name differs",
    "tool": "a labeling tool changed its beginning or suffix",
    "similar": "the names are only similar",
}


class Meant(NamedTuple):
    """The existing files that a missing name may mean, and how the names differ."""

    names: list[str]
    why: str

    def __str__(self) -> str:
        more = f" and {len(self.names) - 2} more" if len(self.names) > 2 else ""
        return " and ".join(map(repr, self.names[:2])) + more


class FileIndex:
    """An index of the files of a folder by name.

    Args:
        names: paths below the folder, with slashes.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        self._by_signs: dict[str, list[str]] = {}
        for name in self.names:
            last = _folded(name.rpartition("/")[2])
            self._by_name.setdefault(last, []).append(name)
            stem = last.rpartition(".")[0] or last
            keys = {stem, _without_zeros(stem), *_without_tool(last)}
            for key in keys:
                self._by_stem.setdefault(key, []).append(name)
            self._by_signs.setdefault(_without_signs(last), []).append(name)

    @classmethod
    def below(cls, folder: str) -> "FileIndex":
        """An index of all files in a folder and its subfolders."""
        names = []
        for place, _, files in os.walk(folder):
            inside = os.path.relpath(place, folder).replace(os.sep, "/")
            names += files if inside == "." else [f"{inside}/{file}" for file in files]
        return cls(names)

    def find(self, name: str, *, guess: bool, taken: Container[str] = ()) -> Meant | None:
        """The file that a name means, if there is one.

        Args:
            name: the name in the annotation file.
            guess: whether to accept a similar name; only searched if there are not too many files.
            taken: files that other names mean, which are therefore excluded.
        """
        meant = self._find(name, guess)
        names = [] if meant is None else [each for each in meant.names if each not in taken]
        return Meant(names, meant.why) if meant is not None and names else None

    def _find(self, name: str, guess: bool) -> Meant | None:
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
        if alike := self._by_signs.get(_without_signs(last)):
            return Meant(alike, _WHY["signs"])
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


def _without_signs(name: str) -> str:
    return _SIGNS.sub(" ", unquote(name))


def _without_tool(name: str) -> list[str]:
    """The name of a file before a labeling program renamed it, if one did."""
    prefixed, exported = _TOOL_PREFIX.fullmatch(name), _EXPORTED.fullmatch(name)
    named = [prefixed[1]] if prefixed else []
    return [*named, f"{exported[1]}.{exported[2]}"] if exported else named


def _parts(name: str) -> list[str]:
    """Folders and name of a path, of a URL, of Windows or of a labeling tool."""
    text = name.strip()
    address = urlsplit(text) if is_address(text) or "?" in text else None
    if address is not None:
        inner = parse_qs(address.query).get("d")  # /data/local-files/?d=folder/a.png
        text = inner[0] if inner else f"{address.netloc}/{address.path}"
    text = unquote(text).replace("\\", "/")
    return [part for part in text.split("/") if part not in ("", ".", "..")]


def _deepest(found: list[str], parts: list[str]) -> list[str]:
    """The files that share the most trailing folders with a path."""
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
    """Names that the last part of a path may mean, the most likely first."""
    stem, _, suffix = last.rpartition(".")
    stem = stem or last
    cuts = [i + 1 for i, letter in enumerate(last) if letter in "-_"]
    return [
        ("suffix", [stem, *([last.partition(".")[0]] if suffix else [])]),
        ("suffix", [_without_zeros(stem)]),
        ("tool", [last]),  # the file was renamed
        ("tool", _without_tool(last)),
        ("prefix", [last[cut:] for cut in cuts]),
        ("prefix", [_without_zeros(stem[cut:]) for cut in cuts if stem[cut:].isdigit()]),
    ]
