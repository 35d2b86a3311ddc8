"""A folder with every file that the pages name, as small as the files can be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torchvision.models import resnet50

from sparsedet.checkpoint import leave_out_pretrained, save_checkpoint
from sparsedet.config import instantiate
from sparsedet.predictor.video import VideoWriter
from sparsedet.weights import find_published, published_config
from sparsedet.weights.places import Place
from tests.data.written import write_voc, write_yolo
from tests.docs.shorter import SHORT
from tests.house.source import ROOT
from tests.house.test_readme import blocks
from tests.parity.recipe import checkpoint
from tests.smoke import looking

PUBLISHED = "focus_detr_r50_12ep"
RUNS = (
    *(f"output/{name}" for name in ("mine", "photos", "a", "b", "dense", "focus", "sparse")),
    *("output/quickstart_grid/keep_ratio=0.1/seed0", "runs/a", "runs/b"),
)
LINKS = {
    "cards": "datasets/shapes",
    "coco": "datasets/coco",
    "datasets/large": "../mine",
    "pictures": "coco/val2017",
    "annotations.json": "coco/annotations/instances_val2017.json",
    "instances_val2017.json": "annotations.json",
}
PHOTOS = ("photo.jpg", "another.jpg", "a.jpg", "aerial.jpg", "more/deep/one.png")


def write_world(folder: Path) -> Path:
    """Write everything that costs little; returned for fixtures."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shapes = "sparsedet.data.shapes --output datasets/shapes --train 12 --val 6"
    trained = "sparsedet train quickstart train.output_dir=output/quickstart"
    for words in (shapes.split(), [*trained.split(), *SHORT]):
        command = [sys.executable, "-m", *words]
        subprocess.run(command, cwd=folder, env=environment, check=True)
    for name in ("configs", "projects", "tools", "examples"):
        (folder / name).symlink_to(ROOT / name)
    write_sets(folder)
    run = folder / "output/quickstart"
    (run / "checkpoint_0000001.pth").unlink()  # larger than all others
    for name in RUNS:
        shutil.copytree(run, folder / name)
    shutil.copy(run / "model_best.pth", folder)
    looking.write_run(ROOT, folder / "looking")
    for name in ("DIR", "output/large"):
        shutil.copytree(folder / "looking/run", folder / name)
        (folder / name / "model.pth").rename(folder / name / "model_best.pth")
    write_modules(folder)
    return folder


def write_sets(folder: Path) -> None:
    """Data sets of every format, and single pictures."""
    source = folder / "datasets/shapes"
    write_yolo(folder / "mine", source)
    write_voc(folder / "VOCdevkit/VOC2012", source)
    for part in ("train", "val"):
        shutil.copytree(source / part, folder / "mine" / part)
        shutil.copy(source / f"annotations/instances_{part}.json", folder / f"mine/{part}.json")
    shutil.copy(folder / "mine/val.json", folder)
    shutil.copytree(source / "val", folder / "val")
    shutil.copytree(folder / "mine/images/train", folder / "photos")
    write_coco(folder / "datasets/coco", source)
    for name, place in LINKS.items():
        (folder / name).symlink_to(place)
    shutil.copy(source / "val/000000.png", source / "val/000012.png")
    picture = Image.open(source / "val/000000.png").convert("RGB")
    for name in PHOTOS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
    if find_spec("av"):
        with VideoWriter(folder / "film.mp4", Fraction(10)) as writer:
            for _ in range(2):
                writer.write(picture)


def write_coco(folder: Path, source: Path) -> None:
    """The shapes as pictures of COCO, with its classes."""
    entry = find_published(PUBLISHED)
    assert entry is not None
    categories = [dict(id=i, name=name) for i, name in enumerate(entry.class_names or [], 1)]
    (folder / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        shutil.copytree(source / part, folder / f"{part}2017")
        content = json.loads((source / f"annotations/instances_{part}.json").read_text())
        text = json.dumps({**content, "categories": categories})
        (folder / f"annotations/instances_{part}2017.json").write_text(text)


def write_modules(folder: Path) -> None:
    """The Python files that a reader writes."""
    own = blocks(ROOT / "docs/own_scorer.md", "python")[0]
    (folder / "own.py").write_text(own, encoding="utf-8")
    pages = blocks(ROOT / "docs/published_weights.md", "python")
    evaluated = next(each for each in pages if "released/focus_detr_r50.py" in each)
    (folder / "focus_eval.py").write_text(evaluated, encoding="utf-8")


# --- large files, of which each page names a few


def write_published(name: str, path: Path | None = None) -> None:
    """Random numbers where published weights are kept, or in a file."""
    entry = find_published(name)
    assert entry is not None, name
    cfg = published_config(entry)
    leave_out_pretrained(cfg)
    path = path or Place(entry).converted
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint({"model": instantiate(cfg.model).state_dict()}, path)


def _write_released(listing: str) -> Callable[[Path], None]:
    return lambda path: torch.save({"model": checkpoint(listing)}, path)


_LARGE: dict[str, Callable[[Path], None]] = {
    "dino_r50_4scale_12ep.pth": _write_released("detrex_dino"),
    "checkpoint.pth": _write_released("pnp_r50"),
    "focus.safetensors": lambda path: write_published(PUBLISHED, path),
    "scrl_resnet50.pth": lambda path: torch.save(resnet50().state_dict(), path),
}
_NAMES = ("--model", "--weights", "train.init_checkpoint")


def provide(words: Sequence[str]) -> None:
    """Write the large files that a command reads."""
    for key, value in pairwise(part for word in words for part in word.split("=", 1)):
        if value in _LARGE and not Path(value).exists():
            _LARGE[value](Path(value))
        elif key in _NAMES and not Path(value).exists() and find_published(value):
            write_published(value)
