"""A config as lines of Python, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsedet.config.calls import is_plain, own_keys, structure, value_at
from sparsedet.config.naming import ConfigError, dotted_name, join

_WIDTH = 88


class _Group:
    """A bracketed expression: a call, a dict or a list; each item has a label before it."""

    def __init__(self, opening: str, items: list[tuple[str, _Group | str]], closing: str) -> None:
        self.opening, self.items, self.closing = opening, items, closing

    def __str__(self) -> str:
        return f"{self.opening}{self._body()}{self.closing}"

    def _body(self) -> str:
        return ", ".join(f"{label}{value}" for label, value in self.items)

    def lines(self, label: str, end: str, indent: str) -> str:
        """On one line if it fits, else the content on its own line, else one item per line."""
        whole, inner = f"{indent}{label}{self}{end}", f"{indent}    "
        if len(whole) <= _WIDTH:
            return whole
        body = f"{inner}{self._body()}"
        if len(body) > _WIDTH:
            body = "\n".join(_lines(label, value, ",", inner) for label, value in self.items)
        return f"{indent}{label}{self.opening}\n{body}\n{indent}{self.closing}{end}"


def _lines(label: str, value: _Group | str, end: str, indent: str) -> str:
    if isinstance(value, _Group):
        return value.lines(label, end, indent)
    return f"{indent}{label}{value}{end}"


def to_source(cfg: Any, prefix: str) -> str:
    """See :meth:`sparsedet.config.LazyConfig.to_py`."""
    return "".join(f"{line}\n" for line in _assignments(cfg, prefix.removesuffix("."), ""))


def _assignments(node: Any, name: str, path: str) -> Iterator[str]:
    """An assignment for every call and value below a group of settings."""
    if not (is_plain(node) and structure(node) is None and len(node)):
        yield _lines(f"{name} = ", _source(node, path), "", "")
        return
    for key in node:
        member = join(name, key) if str(key).isidentifier() else f"{name}[{_text(key)}]"
        if _is_missing(node, key):
            yield f'{member} = "???"'
        else:
            yield from _assignments(value_at(node, key, path), member, join(path, key))


def _source(value: Any, path: str) -> _Group | str:
    if isinstance(value, (ListConfig, list, tuple)):
        return _Group("[", [("", _member(value, i, path)) for i in range(len(value))], "]")
    if not isinstance(value, Mapping):
        return _text(value)
    members = {key: _member(value, key, path) for key in own_keys(value)}
    target = structure(value) or value.get("_target_")
    if target is None:
        return _Group("{", [(f"{_text(key)}: ", each) for key, each in members.items()], "}")
    members.pop("_target_", None)
    called = target if isinstance(target, str) else _source(target, path)
    return _Group(f"{called}(", [(f"{key}=", each) for key, each in members.items()], ")")


def _member(node: Any, key: Any, path: str) -> _Group | str:
    if _is_missing(node, key):
        return '"???"'
    return _source(value_at(node, key, path), join(path, key))


def _is_missing(node: Any, key: Any) -> bool:
    return isinstance(node, (DictConfig, ListConfig)) and OmegaConf.is_missing(node, key)


def _text(value: Any) -> str:
    """A value as Python source; classes and functions by their dotted path."""
    try:
        return dotted_name(value)
    except ConfigError:
        text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and '"' not in text else text
