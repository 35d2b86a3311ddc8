"""Write configs/index.json, which `sparsedet configs` shows; run this after changing a config.

Everything is read from the configs, except the published AP, which is read from the pages of the
projects.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sparsedet.analysis import count_parameters
from sparsedet.config import LazyConfig, packaged_configs, setting
from sparsedet.files import write_json
from sparsedet.loading import build_on_meta

ROOT = Path(__file__).resolve().parents[1]
COCO_CLASSES = 80  # for configs whose number of classes depends on the data set
BACKBONES = (
    (r"resnet(\d+)", r"R\1"),
    (r"swin_t(iny_.*)?", "Swin-T"),
    (r"swin_small.*", "Swin-S"),
    (r"swin_base.*", "Swin-B"),
    (r"swin_large.*", "Swin-L"),
)


def main() -> int:
    """Write the file."""
    write_json(ROOT / "configs/index.json", {name: entry(name) for name in packaged_configs()})
    return 0


def entry(name: str) -> dict[str, Any]:
    """The entry of a config in the table.

    Args:
        name: name of the config in `packaged_configs`.
    """
    path = packaged_configs()[name]
    cfg = LazyConfig.load(path)
    project = path.parent.parent if "released" not in path.parts else path.parents[2]
    page = project / "README.md" if (project / "README.md").is_file() else None
    return {
        "method": title(page) if page else "Focus-DETR",  # the quickstart
        "backbone": backbone(cfg.model.backbone.name),
        "keep_ratio": keep_ratio(cfg.model),
        "epochs": setting(cfg, "train.epochs"),
        "published_ap": published_ap(page).get(name) if page else None,
        "parameters": parameters(cfg),
    }


def title(page: Path) -> str:
    """The method of a project, from the title of its page."""
    return page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def backbone(name: str) -> str:
    """The name of a backbone in tables."""
    for pattern, short in BACKBONES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, short, name, count=1)
    return name


def keep_ratio(model: Any) -> float | None:
    """Mean share of kept tokens over the encoder layers; None if it is not a single number."""
    if "encoder" not in model:
        return None
    selector = model.get("selector")
    return 1.0 if selector is None else selector.get("keep_ratio")


def published_ap(page: Path) -> dict[str, float]:
    """AP on COCO val2017 by config: of the page's columns of AP the first that has it."""
    found: dict[str, float] = {}
    columns: list[int] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.search(r"`(\w+)`", cells[0])
        if cells[0] == "config":
            columns = [i for i, cell in enumerate(cells) if re.match(r"AP(,|$)", cell)]
        elif not line.startswith("|"):
            columns = []
        elif name and (numbers := [cells[i] for i in columns if cells[i]]):
            found[name[1]] = float(numbers[0])
    return found


def parameters(cfg: Any) -> int:
    """Trainable ones, without the auxiliary heads of the encoder, as papers count them."""
    if "dataset" in cfg:
        cfg.dataset.num_classes = cfg.dataset.num_classes or COCO_CLASSES
    count = count_parameters(build_on_meta(cfg))
    return count.trainable - count.trainable_by_stage.get("auxiliary_heads", 0)


if __name__ == "__main__":
    sys.exit(main())
