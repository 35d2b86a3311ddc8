"""What a training run would leave: a checkpoint with its config, and a set of odd pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sparsedet.checkpoint import save_checkpoint
from sparsedet.config import LazyCall, LazyConfig, get_config, instantiate
from sparsedet.modeling import TimmBackbone

NAMES = ["cat", "dog", "owl"]


def shrink(cfg: Any, names: Sequence[str]) -> Any:
    """A config with these classes, and as little of everything as there can be."""
    model = cfg.model
    model.embed_dim, model.num_levels = 32, 3
    model.backbone = LazyCall(TimmBackbone)(name="test_resnet")
    model.neck.in_channels, model.neck.strides = dict(res3=48, res4=192, res5=96), [8, 16, 32]
    model.encoder.num_layers, model.decoder.num_layers = 2, 1
    model.query_initializer.num_queries = 10
    model.selector.keep_ratio = 0.25
    if "size_ranges" in model.criterion.unmatched[0]:
        model.criterion.unmatched[0].size_ranges = model.criterion.unmatched[0].size_ranges[1:]
    cfg.dataset.test_short_side, cfg.dataset.max_size = 64, 128
    cfg.dataset.class_names, cfg.dataset.num_classes = list(names), len(names)
    cfg.train.device = "cpu"
    return cfg


def config(folder: Path) -> Any:
    """The quickstart's config, small, with the set of the folder."""
    cfg = shrink(get_config("quickstart"), NAMES)
    cfg.model.query_initializer.num_queries = 20
    cfg.dataset.val_json, cfg.dataset.val_images = str(folder / "val.json"), str(folder / "val")
    return cfg


def write_run(folder: Path) -> Path:
    """A folder with both; returned for fixtures."""
    write_checkpoint(folder)
    write_pictures(folder)
    return folder


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint of random weights that holds its config."""
    torch.manual_seed(0)
    cfg = config(folder)
    model = instantiate(cfg.model)
    for parameter in model.parameters():  # scores far from each other, whatever rounding does
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    LazyConfig.save(cfg, folder / "config.yaml")
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    path = folder / "model_best.pth"
    save_checkpoint({"model": model.state_dict(), "config": text}, path)
    return path


def write_pictures(folder: Path) -> list[Path]:
    """Pictures of several sizes and modes, and the annotation file of the set that they make."""
    (folder / "val").mkdir()
    generator = np.random.default_rng(0)
    pixels = generator.integers(256, size=(5, 90, 120, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[274] = 6
    deep = Image.fromarray(pixels[3, :, :, 0].astype(np.uint16) * 257)
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.png": (Image.fromarray(pixels[0]), {}),
        "small.png": (Image.fromarray(pixels[1, :50, :60]), {}),
        "turned.jpg": (Image.fromarray(pixels[2]), {"exif": turned, "quality": 95}),
        "gray.jpg": (Image.fromarray(pixels[3, :, :, 0]), {"quality": 95}),
        "deep.png": (deep, {}),
        "palette.png": (Image.fromarray(pixels[4]).quantize(64), {}),
        "clear.png": (Image.fromarray(pixels[4]).convert("RGBA"), {}),
    }
    images = []
    for index, (name, (picture, options)) in enumerate(pictures.items()):
        picture.save(folder / "val" / name, **options)
        width, height = picture.size[:: -1 if name == "turned.jpg" else 1]
        images.append(dict(id=index, file_name=name, width=width, height=height))
    boxes = [dict(id=1, image_id=0, category_id=1, bbox=[10, 10, 30, 20], area=600, iscrowd=0)]
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(NAMES)]
    content = dict(images=images, annotations=boxes, categories=categories)
    (folder / "val.json").write_text(json.dumps(content))
    return [folder / "val" / name for name in pictures]
