"""The messages of the library, read from its source, and the paragraph that explains each.

A paragraph of docs/troubleshooting.md names its messages by a comment, such as
``<!-- messages: data.images weights:DownloadError *:ImportError -->``: all of a module (and of what
is below it), those of one kind in a module, and those of one kind anywhere. A kind counts more than
a module, and a longer module more than a shorter one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[2] / "sparsedet"
PAGE = Path(__file__).resolve().parents[1] / "troubleshooting.md"
PLACE = re.compile(r"^<!-- messages: ([^>]+) -->$", re.M)
WARNING = "warning"
# What steers the library itself, what Python asks of containers, and what is raised as it came.
INTERNAL = {
    "AssertionError",
    "AttributeError",
    "EvaluationStopped",
    "IndexError",
    "RecursionError",
    "StopTraining",
    "SystemExit",
    "_Shown",
    "_Stopped",
    "_TooLarge",
}
# Modules whose functions return or yield the sentences, which others raise or log.
TELLERS = ("engine.faults", "survey.misfits", "survey.looking")


@dataclass(frozen=True)
class Message:
    """A place in the source that tells a user something.

    Attributes:
        module: below ``sparsedet``, such as ``data.images``.
        line: number.
        kind: class of the error, the function that makes it, or "warning".
        text: the sentence with ``...`` for what is filled in; "" = it is made elsewhere.
    """

    module: str
    line: int
    kind: str
    text: str


@cache
def messages() -> tuple[Message, ...]:
    """All messages of the library."""
    found: list[Message] = []
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        if parts[0] not in ("configs", "projects"):
            module = ".".join(part for part in parts if part != "__init__")
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += (
                Message(module, node.lineno, kind, sentence(text))
                for node, kind, text in told(tree, module)
            )
    return tuple(found)


def told(tree: ast.AST, module: str) -> Iterator[tuple[ast.stmt | ast.expr, str, ast.expr | None]]:
    """Statements that raise, log or return a message: the node, its kind and its text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind = ast.unparse(node.exc.func).rpartition(".")[2]
            if kind not in INTERNAL:
                yield node, kind, node.exc.args[0] if node.exc.args else None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            notes = isinstance(node.func.value, ast.Name) and node.func.value.id == "findings"
            if notes and node.func.attr in ("warn", "error"):
                yield node, node.func.attr, node.args[1]
            elif node.func.attr in ("warning", "warn"):
                yield node, WARNING, node.args[0]
        elif isinstance(node, (ast.Return, ast.Yield)) and module in TELLERS:
            told_here = sentence(node.value)
            yield node, "sentence", node.value if told_here.endswith(".") else None


def sentence(node: ast.expr | None) -> str:
    """The text of an expression, with ``...`` for all that is not written there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = re.sub(r"%(?:\.\d+)?[sdfg]", "...", node.value)
    elif isinstance(node, ast.JoinedStr):
        parts = [each.value if isinstance(each, ast.Constant) else "..." for each in node.values]
        text = "".join(map(str, parts))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = (sentence(node.left) or "...") + (sentence(node.right) or "...")
    else:
        text = ""
    return text if re.search("[A-Za-z]{2}", text) else ""


def paragraphs(page: str) -> dict[str, list[str]]:
    """The entries of the comments of a page, by the heading above each."""
    headings = [(each.start(), each[1]) for each in re.finditer(r"^#+ (.+)$", page, re.M)]
    found = {}
    for comment in PLACE.finditer(page):
        title = [name for start, name in headings if start < comment.start()][-1]
        found[title] = comment[1].split()
    return found


def belongs(message: Message, entry: str) -> tuple[int, int] | None:
    """How narrowly an entry names a message; None = it does not."""
    module, _, kind = entry.partition(":")
    if kind and kind != message.kind:
        return None
    if module != "*" and not f"{message.module}.".startswith(f"{module}."):
        return None
    return len(kind) > 0, 0 if module == "*" else module.count(".") + 1


def homes(message: Message, page: dict[str, list[str]]) -> list[str]:
    """Headings of the paragraphs that name a message most narrowly: one, if all is well."""
    ranks = {
        title: max((rank for each in entries if (rank := belongs(message, each))), default=None)
        for title, entries in page.items()
    }
    best = max((rank for rank in ranks.values() if rank is not None), default=None)
    return [title for title, rank in ranks.items() if rank is not None and rank == best]


def with_messages(page: str) -> str:
    """The page with the messages of each paragraph in the place of its comment."""
    entries = paragraphs(page)
    texts: dict[str, set[str]] = {title: set() for title in entries}
    for message in messages():
        for title in homes(message, entries):
            texts[title].add(message.text)
    titles = iter(entries)
    return PLACE.sub(lambda _: listing(texts[next(titles)] - {""}), page)


def listing(texts: Iterable[str]) -> str:
    """A list that opens by a click; the search of the site looks into it all the same."""
    lines = [f"    - {escape(each)}" for each in sorted(texts, key=str.casefold)]
    return "\n".join([f'??? note "All {len(lines)} messages of this kind"', "", *lines])


def escape(text: str) -> str:
    """A message as Markdown that shows it as it is."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", flat)
