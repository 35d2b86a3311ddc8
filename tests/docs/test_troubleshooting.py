"""Each message of the library leads to one paragraph of docs/troubleshooting.md."""

from __future__ import annotations

import ast
import re

import pytest

from docs.theme.messages import (
    PAGE,
    Message,
    belongs,
    homes,
    messages,
    paragraphs,
    sentence,
    told,
    with_messages,
)

TEXT = PAGE.read_text(encoding="utf-8")
ENTRIES = paragraphs(TEXT)
EXAMPLE = re.compile(r"^### (.+)\n\n`(.+)`$", re.M)


def test_every_message_has_one_paragraph():
    lost = [(homes(each, ENTRIES), each) for each in messages()]
    assert not [pair for pair in lost if len(pair[0]) != 1]
    assert len(lost) > 800


def test_every_entry_names_something():
    for title, entries in ENTRIES.items():
        for entry in entries:
            led = [each for each in messages() if belongs(each, entry)]
            assert any(title in homes(each, ENTRIES) for each in led), f"{title}: {entry}"


def test_every_paragraph_begins_with_one_of_its_messages():
    examples = dict(EXAMPLE.findall(TEXT))
    assert examples.keys() == ENTRIES.keys()
    for title, example in examples.items():
        pattern = re.compile(".*".join(map(re.escape, example.split("..."))), re.S)
        own = [each.text for each in messages() if homes(each, ENTRIES) == [title]]
        assert any(map(pattern.fullmatch, own)), f"{title}: no message reads {example}"


def test_a_new_room_has_no_paragraph():
    for kind in ("DatasetError", "ValueError", "warning"):
        assert homes(Message("newroom.part", 1, kind, "text"), ENTRIES) == []


def test_the_narrowest_entry_counts():
    page = {"a": ["data"], "b": ["data.images"], "c": ["*:ImportError", "data:DatasetError"]}
    for module, kind, home in (
        ("data.loader", "ValueError", "a"),
        ("data.images", "ValueError", "b"),
        ("data.images", "DatasetError", "c"),
        ("modeling", "ImportError", "c"),
    ):
        assert homes(Message(module, 1, kind, ""), page) == [home]
    assert homes(Message("database", 1, "ValueError", ""), page) == []


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("raise ValueError(f'{a} must be {b}.')", "ValueError", "... must be ...."),
        ("raise errors.DatasetError('no ' + name)", "DatasetError", "no ..."),
        ("logger.warning('%s is %.1f', a, b)", "warning", "... is ..."),
        ("findings.error(label, f'its {name} is odd.')", "error", "its ... is odd."),
        ("raise CheckpointError(message)", "CheckpointError", ""),
    ],
)
def test_messages_are_found_in_source(code, kind, text):
    ((_, found, node),) = told(ast.parse(code), "data")
    assert (found, sentence(node)) == (kind, text)


def test_what_python_asks_of_a_container_is_no_message():
    assert not list(told(ast.parse("raise IndexError(f'{i} is out of range.')"), "structures"))
    assert not list(told(ast.parse("try:\n    f()\nexcept ValueError as e:\n    raise e"), "data"))


def test_the_site_lists_all_messages():
    made = with_messages(TEXT)
    assert "<!-- messages" not in made
    counts = map(int, re.findall(r"All (\d+) messages of this kind", made))
    assert sum(counts) == made.count("\n    - ")
    assert r"    - CheckpointStore.max\_to\_keep must be at least 1, got ...." in made
