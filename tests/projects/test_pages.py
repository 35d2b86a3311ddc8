"""Every project's page: published numbers, commands, and the data of what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.house.source import GUESTS, ROOT, files, name
from tests.house.test_readme import blocks

PAGES = files("projects", suffix="README.md")
OWN = [page for page in PAGES if page.parent != GUESTS]  # guests have no results of their own
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "params", "GFLOPs", "FPS")
# As the papers and repositories have them: tables 1 to 3 of Focus-DETR, table 1 of Sparse DETR, the
# READMEs of the codes with global attention, torchvision's list of weights. None: not told.
PUBLISHED = {
    "detr": {
        "detr_r50_500ep": (42.0, None, None, 20.5, 45.8, 61.1, 41, 86),
        "detr_r50_dc5_500ep": (43.3, None, None, 22.5, 47.3, 61.1, 41, 187),
        "detr_r50_50ep": (35.0, *[None] * 5, 41, 86),
    },
    "up_detr": {"up_detr_r50_300ep": (43.1, None, None, 21.6, 46.8, 62.4)},
    "conditional_detr": {
        "conditional_detr_r50_50ep": (41.0, None, None, 20.6, 44.3, 59.3, 44, 90),
        "conditional_detr_r50_dc5_50ep": (43.7, None, None, 23.9, 47.6, 60.1, 44, 195),
    },
    "dab_detr": {
        "dab_detr_r50_50ep": (42.2,),
        "dab_detr_r50_3pat_50ep": (42.6,),
        "dab_detr_r50_dc5_50ep": (44.5,),
        "dab_detr_r50_dc5_3pat_50ep": (45.7,),
    },
    "dn_detr": {"dn_detr_r50_50ep": (44.4,), "dn_detr_r50_dc5_50ep": (46.3,)},
    "pnp_detr": {
        "detr_r50_500ep": (42.0,),
        "pnp_detr_r50_500ep": (41.1,),
        "detr_r50_dc5_500ep": (43.3,),
        "pnp_detr_r50_dc5_500ep": (42.7,),
    },
    "torchvision_detectors": {
        "faster_rcnn_r50_26ep": (37.0, *[None] * 5, 41.755, 134.38),
        "retinanet_r50_26ep": (36.4, *[None] * 5, 34.015, 151.54),
        "fcos_r50_26ep": (39.2, *[None] * 5, 32.270, 128.21),
    },
    "deformable_detr": {
        "deformable_detr_r50_refine_50ep": (45.4,),
        "deformable_detr_swint_plain_50ep": (45.7, *[None] * 5, 40.3, 180.4),
        "deformable_detr_r50_plain_50ep": (43.9, 62.8, 47.8, 26.1, 47.4, 58.0, 39.8, 172.9),
        "deformable_detr_r50_two_stage_50ep": (
            *(46.2, 65.2, 50.0, 28.8, 49.2, 61.7, 40, 173, 19.0),
        ),
    },
    "efficient_detr": {
        "efficient_detr_r50_50ep": (46.0, 65.2, 49.8, 28.2, 49.1, 61.0, 40.8, 177.3),
        "efficient_detr_swint_50ep": (48.0, *[None] * 5, 41.3, 184.8),
        "efficient_detr_r50_3_1_36ep": (44.2, 62.2, 48.0, 28.4, 47.5, 56.6, 32, 159),
    },
    "dn_deformable_detr": {
        "dn_deformable_detr_r50_50ep": (48.6, 67.4, 52.7, 31.0, 52.0, 63.7, 48, 265, 18.5),
        "dab_deformable_detr_r50_50ep": (46.9, 66.0, 50.8, 30.1, 50.4, 62.5, 44, 256, 14.8),
    },
    "dino": {"dino_r50_4scale_36ep": (50.9, 69.0, 55.3, 34.6, 54.1, 64.6, 47, 279, 14.2)},
    "sparse_detr": {
        "efficient_detr_r50_50ep": (46.0, 65.2, 49.8, 28.2, 49.1, 61.0, 40.8, 177.3),
        "deformable_detr_swint_plain_50ep": (45.7, *[None] * 5, 40.3, 180.4),
        "efficient_detr_swint_50ep": (48.0, *[None] * 5, 41.3, 184.8),
        "sparse_detr_r50_rho10_50ep": (45.3, 65.8, 49.3, 28.4, 48.3, 60.1, 40.9, 105.4),
        "sparse_detr_r50_rho20_50ep": (45.6, 65.8, 49.6, 28.5, 48.6, 60.4, 40.9, 112.9),
        "sparse_detr_r50_rho30_50ep": (46.0, 65.9, 49.7, 29.1, 49.1, 60.6, 40.9, 120.5),
        "sparse_detr_r50_rho40_50ep": (46.2, 66.0, 50.3, 28.7, 49.0, 61.4, 40.9, 128.0),
        "sparse_detr_r50_rho50_50ep": (46.3, 66.0, 50.1, 29.0, 49.5, 60.8, 40.9, 135.6),
        **{
            f"sparse_detr_swint_rho{share}_50ep": (ap, *[None] * 5, 41.4, gflops)
            for share, ap, gflops in (
                (10, 48.2, 113.4), (20, 48.8, 121.0), (30, 49.1, 128.5), (40, 49.2, 136.1),
                (50, 49.3, 143.7),
            )
        },
    },
    "focus_detr": {
        "dino_r50_4scale_36ep": (50.9, 69.0, 55.3, 34.6, 54.1, 64.6, 47, 279, 14.2),
        "focus_detr_dino_sparse_36ep": (48.2, 65.9, 52.5, 30.4, 51.4, 63.1, 47, 152, 20.2),
        "focus_detr_r50_36ep": (50.4, 68.5, 55.0, 34.0, 53.5, 64.4, 48, 154, 20.0),
        "focus_detr_r101_36ep": (51.4, 70.0, 55.7, None, None, None, 67, 221),
        "focus_detr_r50_12ep": (48.8,),
        "focus_detr_r50_24ep": (50.3,),
        "focus_detr_r101_12ep": (50.8,),
        "focus_detr_r101_24ep": (51.2,),
        "focus_detr_swin_tiny_224_12ep": (50.0,),
        "focus_detr_swin_tiny_224_24ep": (51.2,),
        "focus_detr_swin_tiny_224_36ep": (52.5,),
        "focus_detr_swin_tiny_224_22k_36ep": (53.2,),
        "focus_detr_swin_base_384_22k_36ep": (56.2,),
        "focus_detr_swin_base_224_22k_36ep": (56.0,),
        "focus_detr_swin_large_384_22k_36ep": (56.3,),
    },
}  # fmt: skip
FLAGS = "../../docs/training_at_scale.md#flags-of-other-training-scripts"


def section(page: Path, heading: str) -> str:
    """The text below a heading of the second level, to the next one."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"{name(page)} has no section {heading}"
    return found[1]


def tables(text: str) -> list[list[dict[str, str]]]:
    """The rows of every table, by the names of its columns."""
    found = []
    for table in re.findall(r"(?:^\|.+\n)+", text, re.M):
        head, _, *rows = [[cell.strip() for cell in line[1:-2].split("|")] for line in
                          table.splitlines(keepends=True)]  # fmt: skip
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def number(cell: str) -> float | None:
    return float(cell.rstrip("M")) if cell else None


@pytest.mark.parametrize("page", OWN, ids=name)
def test_results_are_a_table_of_configs(page):
    rows = [row for table in tables(section(page, "Results")) for row in table]
    assert any(re.search(r"`\w+`", cell) for row in rows for cell in row.values())
    assert any(column.startswith("AP") for row in rows for column in row)


@pytest.mark.parametrize(
    ("project", "config"), [(p, config) for p, rows in PUBLISHED.items() for config in rows]
)
def test_published_numbers_are_on_the_page(project, config):
    page = ROOT / "projects" / project / "README.md"
    found = [
        {column.split(" ")[0]: number(cell) for column, cell in row.items() if cell[:1] != "["
         and column.split(" ")[0] in COLUMNS}
        for table in tables(section(page, "Results"))
        for row in table
        if f"`{config}`" in row.get("config", "") and "AP" in row
    ]  # fmt: skip
    expected = dict(zip(COLUMNS, PUBLISHED[project][config], strict=False))
    assert {k: v for k, v in expected.items() if v is not None} in [
        {key: row.get(key) for key, value in expected.items() if value is not None} for row in found
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_have_commands_and_say_where_other_flags_are(page):
    commands = section(page, "Commands?")
    assert f"]({FLAGS})" in commands
    if page in OWN:
        text = " ".join(blocks(page, "bash"))
        assert "tools/train_net.py" in text or "sparsedet train" in text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_was_measured_is_in_a_file(page):
    """A page with measurements links to them, and they have the commands that made them."""
    text, data = page.read_text(encoding="utf-8"), page.parent / "results.json"
    measured = re.search(r"^#+ .*([Mm]easured|photographs|refers to)", text, re.M)
    assert data.is_file() == ("](results.json)" in text) == bool(measured)
    if data.is_file():
        content = json.loads(data.read_text(encoding="utf-8"))
        assert "protocol" in content
        commands = re.findall(r'"commands?": (?:"|\{)', json.dumps(content))
        assert commands, f"{name(data)} has no command"
