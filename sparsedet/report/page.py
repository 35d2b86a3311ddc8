"""The shell of a page: one HTML file with its styles, scripts and data, which needs no network."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from sparsedet.files import atomic_write

_ASSETS = Path(__file__).parent / "assets"


def write_page(
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    body: str,
    styles: Sequence[str],
    scripts: Sequence[str] = (),
    data: Iterable[tuple[str, Any]] = (),
) -> None:
    """Write a page, or nothing.

    Args:
        path: of the HTML file.
        title: of the page, as text.
        subtitle: beside it, as text.
        body: the HTML inside of ``<main>``, see `render`.
        styles: names of assets, after those of the shell.
        scripts: names of assets, after those of the shell. All are in one function in strict mode.
        data: id and content of each block of JSON; a script reads one by ``readData(id)``. They are
            written one after the other, so a generator need not hold them all.
    """
    head, after_data = _asset("page.html").split("<!-- data -->")
    texts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "style": "\n".join(map(_asset, ("page.css", *styles))),
        "body": body,
        "script": "\n".join(map(_asset, ("page.js", *scripts))),
    }
    with atomic_write(path) as file:
        file.write(_filled(head, texts).encode())
        for name, content in data:
            block = f'<script type="application/json" id="{name}">{_embedded(content)}</script>\n'
            file.write(block.encode())
        file.write(_filled(after_data, texts).encode())


def render(name: str, content: Mapping[str, Any]) -> str:
    """The HTML of an asset, a template of Jinja; what is filled in is escaped.

    Args:
        name: of the asset.
        content: what it is filled with.
    """
    loader = jinja2.FileSystemLoader(_ASSETS, encoding="utf-8")
    templates = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(name).render(content)


def readable(path: str | os.PathLike[str]) -> str:
    """A path as text that every page can hold, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _filled(text: str, texts: dict[str, str]) -> str:
    """The template with each text in the place of its marker; no text is looked at again."""
    parts = text.split("<!-- ")
    filled = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition(" -->")
        filled += [texts[name], rest]
    return "".join(filled)


def _embedded(content: Any) -> str:
    """JSON that ends no script block, whatever is in it."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
