"""What the tables of other scripts' flags name on our side exists."""

from __future__ import annotations

import re
import shlex

import pytest

from sparsedet.cli.common import is_override
from sparsedet.config import LazyConfig, find_config, get_config, setting
from tests.house.source import ROOT, files
from tests.house.test_readme import check_command

PAGE = ROOT / "docs/training_at_scale.md"
# what each table is about: a word of its head, and the config that its keys must fit
TABLES = {
    "Sparse DETR": "sparse_detr_r50_rho30_50ep",
    "PnP-DETR": "pnp_detr_r50_500ep",
    "DN-DETR": "dn_detr_r50_50ep",
    "| DINO": "dino_r50_4scale_12ep",
    "Focus-DETR": "focus_detr_r50_12ep",
}


def rows() -> list[tuple[str, str, str]]:
    """Config, and both cells of every row."""
    text = PAGE.read_text(encoding="utf-8").partition("## Flags of other training scripts")[2]
    found = []
    for table in re.findall(r"(?:^\|.+\n)+", text, re.M):
        head, _, *lines = table.splitlines()
        (config,) = (config for word, config in TABLES.items() if word in head)
        for line in lines:
            theirs, ours = re.fullmatch(r"\| (.+) \| (.+) \|", line).groups()
            found.append((config, theirs, ours))
    return found


def check(config: str, code: str) -> None:
    """One piece of code of a right cell."""
    words = shlex.split(code)
    if words[0] == "sparsedet":
        given = [config if word == "CONFIG" else word for word in words[1:] if word != "KEY=VALUE"]
        check_command(given)
    elif all(map(is_override, words)):
        LazyConfig.apply_overrides(get_config(config), words)
    elif code.startswith("--"):
        source = "".join(path.read_text(encoding="utf-8") for path in files("sparsedet/cli"))
        assert f'"{code}"' in source, f"there is no {code}"
    elif re.search(r"_\d+ep$", code):
        find_config(code)
    else:
        assert setting(get_config(config), code) is not None, f"{config} has no {code}"


def test_there_is_a_table_for_every_script():
    assert {config for config, _, _ in rows()} == set(TABLES.values())
    assert len(rows()) > 50


@pytest.mark.parametrize(("config", "theirs", "ours"), rows())
def test_what_a_row_names_exists(config, theirs, ours):
    pieces = re.findall(r"`(.+?)`", ours)
    assert pieces or "](#" in ours or ours.startswith("none"), f"{theirs} has no answer"
    for code in pieces:
        check(config, code)


@pytest.mark.parametrize(
    "code",
    [
        "model.selector.keep_ratoi=0.3",
        "--resum",
        "optimizer.parms",
        "sparsedet evla CONFIG",
        "a_5ep",
    ],
)
def test_a_wrong_row_would_be_found(code):
    with pytest.raises((AssertionError, ValueError)):
        check("focus_detr_r50_12ep", code)
