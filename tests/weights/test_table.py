"""The table of published weights agrees with the configs, the layouts and the page."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sparsedet.config import ConfigError, packaged_configs, read_config, setting
from sparsedet.conversion import SOURCES
from sparsedet.loading import trained_config
from sparsedet.weights import Published, find_published, published_weights
from sparsedet.weights.places import Place
from tests.house.source import files

TABLE = published_weights()
ROW = re.compile(r"^\| `([^`]+)` \| ([^|`]+) \| ([\d.]*) ?\| (.+) \|$", re.M)
FETCHED = ("github.com", "twg.kakaocdn.net", "dl.fbaipublicfiles.com", "drive.google.com")


def row(entry: Published) -> tuple[str, ...]:
    words = [entry.config.removeprefix("released/"), *entry.overrides]
    ap = "" if entry.ap is None else str(entry.ap)
    return entry.name, entry.title, ap, ", ".join(f"`{word}`" for word in words)


def test_the_page_has_every_name_and_no_other(root: Path) -> None:
    found = ROW.findall((root / "docs/published_weights.md").read_text(encoding="utf-8"))
    assert sorted(found) == sorted(map(row, TABLE.values()))


def test_every_source_and_released_config_is_on_the_page(root: Path) -> None:
    text = (root / "docs/published_weights.md").read_text(encoding="utf-8")
    assert {entry.source for entry in TABLE.values()} == SOURCES.keys() - {"pnp-detr"}
    released = {name for name in packaged_configs() if name.startswith("released/")}
    without = released - {entry.config for entry in TABLE.values()}
    assert without == {
        "released/efficient_detr_r50",
        "released/pnp_detr_r50",
        "released/pnp_detr_r50_dc5",
        "released/up_detr_r50_dc5",
    }
    assert all(f"`{name.removeprefix('released/')}`" in text for name in released)


USES = re.compile(
    r"(?:--model |--weights |init_checkpoint=|sparsedet\.load\(\"|Predictor\(\")([\w./-]+)"
)
PLACEHOLDERS = {"NAME", "FILE", "W", "owner/mine", "shared/mine"}
PROJECTS = files("projects", suffix="README.md")
PAGES = [path for place in ("docs", "projects") for path in files(place, suffix=".md")]


def test_names_on_pages_are_in_the_table(root: Path) -> None:
    pages = [root / "README.md", *PAGES]
    found = {name for page in pages for name in USES.findall(page.read_text(encoding="utf-8"))}
    names = {name for name in found if "." not in name and not name.startswith("output/")}
    assert len(names & TABLE.keys()) > 9, "every project shows one of its own"
    assert not [n for n in names - PLACEHOLDERS if find_published(n) is None]


@pytest.mark.parametrize("project", sorted({each.parent.name for each in PROJECTS}))
def test_projects_show_a_name_rather_than_a_conversion(root: Path, project: str) -> None:
    released = {path.stem for path in (root / f"projects/{project}/configs/released").glob("*.py")}
    own = {name for name, each in TABLE.items() if each.config.rpartition("/")[2] in released}
    text = (root / f"projects/{project}/README.md").read_text(encoding="utf-8")
    if own:
        for option in ("--model", "--weights"):
            assert set(re.findall(rf"{option} ([\w/-]+)", text)) & own
        assert "--source" not in text


def test_addresses() -> None:
    for entry in TABLE.values():
        parts = urlsplit(entry.address)
        assert entry.hub or parts.scheme == "https", entry.name
        assert entry.hub == (not entry.address) == ("/" in entry.name), entry.name
        assert entry.by_hand or entry.hub or parts.netloc in FETCHED, entry.name
        if "drive.google.com" in parts.netloc:
            kind = "/drive/folders/" if entry.by_hand else "/file/d/"
            assert parts.path.startswith(kind), entry.name
        assert urlsplit(entry.page).netloc in ("github.com", "huggingface.co"), entry.name
        assert entry.licence == "Apache-2.0", entry.name
    shared = Counter(entry.address for entry in TABLE.values() if entry.address)
    assert [address for address, count in shared.items() if count > 1] == [
        "https://drive.google.com/drive/folders/1ByfbyCZL8o6zOKqH6dQFCsVQ8dgRXfUU?usp=sharing"
    ], "a folder with the four of DAB-DETR"


def test_no_two_share_a_folder_of_the_cache() -> None:
    places = [Place(entry) for entry in TABLE.values()]
    assert len({place.folder for place in places}) == len(TABLE)
    own = ("weights.safetensors", "origin.json", "lock")
    assert not [place for place in places if place.by_hand.name in own]


@pytest.mark.parametrize("source", sorted({entry.source for entry in TABLE.values()}))
def test_configs_have_the_classes_of_the_file(source: str) -> None:
    entries = [entry for entry in TABLE.values() if entry.source == source]
    known = {}
    for entry in entries:
        key = entry.config, entry.overrides
        if key not in known:
            known[key] = setting(read_config(*key), "model.num_classes")
        assert known[key] == entry.classes, entry.name


@pytest.mark.parametrize(
    ("name", "ap"),
    [
        ("focus_detr_r50", 50.4),
        ("focus_detr_r50_36ep", 50.4),
        ("dino_swin_large_384_4scale", 58.1),
        ("dino_r50_4scale", 50.6),
        ("sparse_detr_r50_rho10", 45.3),
        ("SenseTime/deformable-detr", 44.5),
    ],
)
def test_names(name: str, ap: float) -> None:
    found = find_published(name)
    assert found is not None and found.ap == ap


def test_a_mistyped_name() -> None:
    with pytest.raises(ConfigError, match="Nearest: dino_swin_large_384_4scale_36ep"):
        find_published("dino_swin_large_384_4scale_36epochs")
    assert find_published("SenseTime/checkpoint") is None, "a path, for all we know"
    with pytest.raises(ConfigError, match="Nearest: SenseTime/deformable-detr"):
        find_published("SenseTime/deformable-dter")


def test_a_config_of_weights_whose_classes_have_no_names() -> None:
    cfg = trained_config("up_detr_r50_pretrained", "model", "dataloader.test.mapper")
    assert (cfg.model.num_classes, cfg.dataset.class_names) == (2, None)
    cfg = trained_config("sparse_detr_r50_scrl_rho20", "model")
    assert (cfg.model.num_classes, cfg.model.selector.keep_ratio) == (80, 0.2)
