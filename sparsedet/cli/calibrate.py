r"""Calibrate the threshold of an adaptive selector for trained weights.

    sparsedet calibrate DIR/config.yaml --weights DIR/model_best.pth --output NEW \
        model.selector._target_=AdaptiveSelector

A model with `AdaptiveSelector` keeps the tokens that score above a threshold. Calibration derives
the threshold for each keep ratio from the scores on training images, which are resized by the
config's test transform. NEW gets `config.yaml`, with the overrides, and `model_calibrated.pth`.
Any keep ratio can be set afterwards.
Exit codes: 0 done; 2 an input is wrong (one sentence says which).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsedet.cli.common import add_config, answer, make_parser, take_config
from sparsedet.config import ConfigError, LazyConfig, check_overrides, instantiate, read_config


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add_config(parser)
    parser.add_argument("--weights", required=True, metavar="W", help="file, or published weights")
    parser.add_argument("--output", required=True, type=Path, metavar="NEW", help="a new folder")
    parser.add_argument(
        "--images",
        type=int,
        default=500,
        metavar="N",
        help="use about N evenly spaced training images (%(default)s)",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Calibrate, and write both files.

    Raises:
        ValueError: an input is wrong; nothing has been written then.
    """
    take_config(args)
    if args.images < 1:
        raise ConfigError(f"--images must be at least 1, got {args.images}.")
    if (args.output / "config.yaml").exists():
        raise ConfigError(f"{args.output} already holds a run. Give --output a new folder.")
    check_overrides(args.config_file, args.overrides)
    from sparsedet.analysis import calibrate_selector
    from sparsedet.checkpoint import save_checkpoint
    from sparsedet.loading import load_detector, require_tokens

    cfg = _load_config(args)
    loader = _training_images(cfg, args.images)
    model = require_tokens(load_detector(cfg, args.weights))
    images = calibrate_selector(model, loader)
    cfg.train.output_dir = str(args.output)
    LazyConfig.save(cfg, args.output / "config.yaml")
    text = (args.output / "config.yaml").read_text(encoding="utf-8")
    path = args.output / "model_calibrated.pth"
    save_checkpoint({"model": model.state_dict(), "config": text}, path)
    print(f"{path}: calibrated on {images} images")


def _load_config(args: argparse.Namespace) -> Any:
    from sparsedet.data import resolve_dataset
    from sparsedet.loading import class_names_of, require_same_classes

    needs = ("model", "dataloader", "dataset", "train")
    cfg = read_config(args.config_file, args.overrides, needs=needs)
    if cfg.dataset.class_names is None:
        cfg.dataset.class_names = class_names_of(args.weights)
    resolve_dataset(cfg, ("train",))
    require_same_classes(cfg)
    return cfg


def _training_images(cfg: Any, count: int) -> Any:
    """A loader of about `count` training images, with the test transforms."""
    shown = cfg.copy()
    shown.dataloader.test.dataset = cfg.dataloader.train.dataset
    loader = instantiate(shown.dataloader.test)
    step = max(1, sum(map(len, loader.batches)) // count)
    loader.batches = loader.batches[::step]
    return loader
