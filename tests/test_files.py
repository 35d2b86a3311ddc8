"""Files that are the old one or the whole new one."""

import json
import math
import os

import pytest

from sparsedet.files import write_json


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
