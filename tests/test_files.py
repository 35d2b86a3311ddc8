"""Files that are the old one or the whole new one."""

import errno
import hashlib
import json
import math
import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from sparsedet.files import atomic_write, file_digest, write_json, write_json_lists


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": math.nan, "b": [1.5, (-math.inf, {"c": math.inf})], "d": "NaN", "e": 3})
    refuse = {"parse_constant": lambda text: pytest.fail(f"{text} is no JSON")}
    expected = {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN", "e": 3}
    assert json.loads(path.read_text(), **refuse) == expected


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1], indent=None)
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert path.read_text() == "[1]\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("full", [True, False])
def test_an_error_of_the_disk_names_the_file(tmp_path, full):
    path = tmp_path / "a.json"
    if not full:
        path.mkdir()
    with pytest.raises(OSError, match=rf"{path}'$"), atomic_write(path):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_on_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Or the power fails in between, and an empty file stands where the old one was."""
    path, seen = tmp_path / "a.json", []
    sync, replace = os.fsync, os.replace

    def recorded(descriptor):
        seen.append(("disk", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def renamed(source, target):
        seen.append(("name", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", renamed)
    write_json(path, [1])
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert seen == [("disk", file), ("name", file), ("disk", folder)]


def test_lists_are_written_entry_by_entry(tmp_path):
    outlines = [array("d", [0.1, math.nan]), array("d", [2.0])]
    content = {"a": 1, "b": iter([{"c": outlines}, {"c": math.inf}]), "d": iter(()), "e": [1.5]}
    write_json_lists(tmp_path / "a.json", content)
    expected = {"a": 1, "b": [{"c": [[0.1, None], [2.0]]}, {"c": None}], "d": [], "e": [1.5]}
    assert json.loads((tmp_path / "a.json").read_text()) == expected
    write_json(tmp_path / "b.json", expected, indent=None)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_threads_that_write_one_file_do_not_mix(tmp_path):
    both_open = Barrier(2)

    def write(letter):
        with atomic_write(tmp_path / "a.txt") as file:
            both_open.wait(10)
            file.write(letter * 9)
            both_open.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (b"a", b"b")))
    assert (tmp_path / "a.txt").read_bytes() in (b"a" * 9, b"b" * 9)
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_digest_is_computed_once_for_each_content(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = file_digest(path)
    assert first == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: pytest.fail("read again"))
        assert file_digest(path) == first
    path.write_bytes(b"other")
    assert file_digest(path) == hashlib.sha256(b"other").hexdigest()
