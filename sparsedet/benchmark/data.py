"""A COCO-format set to read: one that is given, or the embedded set of shapes drawn for the run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsedet.benchmark.cases import image_size, positive, read_config
from sparsedet.benchmark.model import FOCUS
from sparsedet.config import ConfigError
from sparsedet.data import open_dataset, resolve_dataset, write_coco
from sparsedet.data.shapes import ShapesOptions, write_shapes
from sparsedet.modeling.stages import Size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which set, and the config that says how it is read."""
    add = parser.add_argument
    add("--config-file", default=FOCUS, metavar="F", help="of a training run (%(default)s)")
    add("--annotations", metavar="FILE", help="of a COCO-format set (default: shapes)")
    add("--images", metavar="DIR", help="of that set")
    add("--max-images", type=positive, default=100, metavar="N", help="(%(default)s)")
    add("--shapes-size", type=image_size, default=(480, 640), metavar="HxW", help="of shapes")
    add("--device", default="cpu")
    add("overrides", nargs="*", metavar="key=value", help="changes of the config")


@contextmanager
def config_with_set(args: argparse.Namespace) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The config with a set of at most so many images, and what the set is.

    Raises:
        ConfigError: the config is not a config of a training run, or one of two options is missing.
        DatasetError: the set cannot be used.
    """
    if bool(args.annotations) != bool(args.images):
        raise ConfigError("--annotations and --images go together. Give both or neither.")
    cfg = read_config(args.config_file, tuple(args.overrides))
    absent = [name for name in ("dataloader", "dataset", "optimizer") if name not in cfg]
    if absent:
        raise ConfigError(f"{args.config_file} has no {', '.join(absent)}. Use a training config.")
    with tempfile.TemporaryDirectory() as folder:
        if args.annotations:
            annotations = _first_images(args.annotations, Path(folder), args.max_images)
            images, what = args.images, {"annotations": args.annotations}
        else:
            annotations, images = _shapes(Path(folder), args.max_images, args.shapes_size)
            what = {"annotations": "shapes", "size": list(args.shapes_size)}
        dataset = cfg.dataset
        dataset.train_json = dataset.val_json = annotations
        dataset.train_images = dataset.val_images = images
        dataset.path = dataset.class_names = dataset.num_classes = None
        resolve_dataset(cfg, ("train", "val"))
        cfg.train.output_dir = folder
        yield cfg, what | {"images": args.max_images}


def _shapes(folder: Path, count: int, size: Size) -> tuple[str, str]:
    scale = min(size) / 160  # objects as large beside the picture as in the usual set
    options = ShapesOptions(size=size, scale=max(scale, 0.5))
    write_shapes(folder / "shapes", num_train=1, num_val=count, options=options)
    return str(folder / "shapes/annotations/instances_val.json"), str(folder / "shapes/val")


def _first_images(path: str, folder: Path, count: int) -> str:
    """An annotation file of the first images of another."""
    whole = open_dataset(path)
    write_coco(replace(whole, records=whole.records[:count]), folder / "first.json")
    return str(folder / "first.json")
