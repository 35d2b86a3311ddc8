"""A small run that looks at some tiles of its pictures, for the tests of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sparsedet.checkpoint import save_checkpoint
from sparsedet.config import LazyCall, LazyConfig, instantiate
from sparsedet.data.haystack import CLASS_NAMES, HaystackOptions, write_haystack
from sparsedet.modeling import TimmBackbone

CONFIG = "projects/large_images/configs/glance_and_look_haystack.py"
SIZE, TILE = (192, 256), 64  # 12 tiles
FEW = {"0.05": 1, "0.1": 2, "0.2": 3, "0.5": 7}  # of the 12 tiles


def small(cfg: Any, folder: Path) -> Any:
    """The config of the haystack set with as little of everything as there can be."""
    model, dataset = cfg.model, cfg.dataset
    model.embed_dim = 32
    model.backbone = LazyCall(TimmBackbone)(
        name="test_resnet", out_features=["res3", "res4", "res5"]
    )
    model.neck.in_channels = dict(res3=48, res4=192, res5=96)
    model.encoder.num_layers, model.decoder.num_layers = 2, 1
    model.query_initializer.num_queries = 10
    model.selector.layer_ratios = None
    model.regions.update(tile=TILE, halo=16, look_ratio=0.2)
    for split in ("train", "val"):
        dataset[f"{split}_json"] = str(folder / f"set/annotations/instances_{split}.json")
        dataset[f"{split}_images"] = str(folder / f"set/{split}")
    dataset.class_names, dataset.num_classes = list(CLASS_NAMES), len(CLASS_NAMES)
    cfg.dataloader.test.num_workers = 0
    cfg.train.device, cfg.train.output_dir = "cpu", str(folder / "run")
    return cfg


def write_run(root: Path, folder: Path, *changes: str) -> Path:
    """Write pictures, and what a training would leave: config and random weights.

    Args:
        root: of the repository.
        folder: gets `set` and `run`.
        changes: of the config.

    Returns:
        The folder of the run, with `config.yaml` and `model.pth`.
    """
    options = HaystackOptions(size=SIZE, objects=6, diameters=(12, 24))
    if not (folder / "set").exists():
        write_haystack(folder / "set", num_train=4, num_val=3, options=options)
    cfg = LazyConfig.apply_overrides(small(LazyConfig.load(root / CONFIG), folder), changes)
    run = folder / "run"
    LazyConfig.save(cfg, run / "config.yaml")
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    save_checkpoint({"model": model.state_dict(), "config": text}, run / "model.pth")
    return run
