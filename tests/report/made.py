"""Detectors of several families with random weights, pictures, and what an explorer page holds."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sparsedet.checkpoint import leave_out_pretrained, save_checkpoint
from sparsedet.config import LazyConfig, get_config, instantiate

CLASSES = ["cat", "</script><b>", "h\u00e9ron"]
BLOCK = re.compile(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', re.S)


def small(name: str, *changes: str) -> Any:
    """A config that comes with the package, for small pictures."""
    sizes = ["dataset.test_short_side=96", "dataset.max_size=128"]
    return LazyConfig.apply_overrides(get_config(name), [*sizes, *changes])


def write_detector(folder: Path, cfg: Any) -> Path:
    """A checkpoint of random weights that finds something."""
    torch.manual_seed(0)
    leave_out_pretrained(cfg)
    cfg.dataset.class_names, cfg.dataset.num_classes = CLASSES, len(CLASSES)
    model = instantiate(cfg.model).eval()
    for name, parameter in model.named_parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))  # scores far from each other
        if name.endswith("class_embed.bias"):
            parameter.data.add_(4.0)
    folder.mkdir(parents=True, exist_ok=True)
    LazyConfig.save(cfg, folder / "config.yaml")
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    path = folder / "model_best.pth"
    save_checkpoint({"model": model.state_dict(), "config": text}, path)
    return path


def draw_picture(path: Path | bytes, size: tuple[int, int], seed: int = 0) -> Any:
    """A picture (height, width) of soft blobs, written to a path."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(256, size=(6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    with open(path, "wb") as file:
        picture.save(file, "PNG")
    return path


def blocks(page: Path) -> dict[str, Any]:
    """The data of a page, by id."""
    return {name: json.loads(text) for name, text in BLOCK.findall(page.read_text("utf-8"))}


class Opened:
    """The data of one model and picture, unpacked."""

    def __init__(self, view: dict[str, Any]) -> None:
        self.view = view
        self.content = zlib.decompress(base64.b64decode(view["pack"]))
        self.cells = sum(level["rows"] * level["columns"] for level in view["levels"])

    def array(self, place: list[int], dtype: str) -> np.ndarray:
        first, length = place
        return np.frombuffer(self.content[first : first + length], dtype=dtype)

    def bits(self, place: list[int]) -> np.ndarray:
        """One boolean for each cell."""
        bits = np.unpackbits(self.array(place, "u1"), bitorder="little")
        return bits[: self.cells].astype(bool)

    def run(self, ratio: float | None) -> dict[str, Any]:
        """The pass of a keep ratio."""
        return next(each for each in self.view["passes"] if each["ratio"] == ratio)
