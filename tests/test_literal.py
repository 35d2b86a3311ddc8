"""Texts that are data come out of a config as they were."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sparsedet.config import ConfigError, LazyConfig, instantiate, literal, texts
from sparsedet.config import LazyCall as L

PARTS = [*"\\${}a?:\"' \n#[\t\x00\u2028~-&*|", "${", "???", "oc.env:HOME", "null", "1e3", "0x1"]
NAMES = ["???", "\\???", "\\\\???", "${oc.env:HOME}", "\\${x}", "${", "null", "true", "1e3", "007"]


def any_texts(count: int) -> list[str]:
    return ["".join(random.choices(PARTS, k=random.randint(1, 6))) for _ in range(count)]


def test_any_text_comes_back_from_a_config_and_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "what the environment says")
    names = NAMES + any_texts(300)
    cfg = L(dict)(names=[literal(name) for name in names], same="${names}")
    LazyConfig.save(cfg, tmp_path / "config.yaml")
    for each in (cfg, LazyConfig.load(tmp_path / "config.yaml")):
        assert texts(each.names) == texts(each.same) == names
        assert instantiate(each) == {"names": names, "same": names}


def test_what_needs_no_backslash_has_none() -> None:
    for name in ("cat", "a\\b", "??", "????", "a???", "$HOME", "{x}", ""):
        assert literal(name) == name


@pytest.mark.parametrize("value", ["???", "${nothing.there}"])
def test_an_item_without_a_value_is_one_sentence(value: str) -> None:
    with pytest.raises(ConfigError, match=r"has an item without a value: .*write a backslash"):
        texts(L(dict)(names=["cat", value]).names)
