"""The config of a training run with the embedded set of shapes, drawn for the run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsedet.benchmark.cases import image_size, positive, read_config
from sparsedet.benchmark.model import FOCUS
from sparsedet.config import ConfigError
from sparsedet.data import resolve_dataset
from sparsedet.data.shapes import ShapesOptions, write_shapes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the set, and of the config that says how it is read."""
    add = parser.add_argument
    add("--config-file", default=FOCUS, metavar="F", help="config of a training run (%(default)s)")
    add(
        "--max-images",
        type=positive,
        default=100,
        metavar="N",
        help="use at most N images (%(default)s)",
    )
    add(
        "--shapes-size",
        type=image_size,
        default=(480, 640),
        metavar="HxW",
        help="size of the pictures",
    )
    add("--device", default="cpu")
    add("overrides", nargs="*", metavar="key=value", help="overrides of the config")


@contextmanager
def config_with_set(args: argparse.Namespace) -> Iterator[Any]:
    """The config, with the set of shapes for training and for the test.

    Raises:
        ConfigError: the config is not a config of a training run.
    """
    cfg = read_config(args.config_file, tuple(args.overrides))
    absent = [name for name in ("dataloader", "dataset", "optimizer") if name not in cfg]
    if absent:
        raise ConfigError(f"{args.config_file} has no {', '.join(absent)}. Use a training config.")
    scale = min(args.shapes_size) / 160  # objects as large beside the picture as in the usual set
    options = ShapesOptions(size=args.shapes_size, scale=max(scale, 0.5))
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(Path(folder), num_train=1, num_val=args.max_images, options=options)
        dataset = cfg.dataset
        dataset.train_json = dataset.val_json = f"{folder}/annotations/instances_val.json"
        dataset.train_images = dataset.val_images = f"{folder}/val"
        dataset.path = dataset.class_names = dataset.num_classes = None
        resolve_dataset(cfg, ("train", "val"))
        cfg.train.output_dir = folder
        yield cfg
