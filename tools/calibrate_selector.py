"""Tell the selector of trained weights how the scores of images lie, for its threshold.

    tools/calibrate_selector.py --config-file DIR/config.yaml --weights DIR/model_best.pth \\
        --output NEW model.selector._target_=AdaptiveSelector

A model with `AdaptiveSelector` keeps the tokens that score above a threshold, which follows from
its keep ratio once it has seen some images: the training set, resized as the config's test set.
NEW gets `config.yaml`, with the changes, and `model_calibrated.pth`. Any keep ratio can be set
afterwards.
Exit codes: 0 done; 2 something given is wrong (one sentence says what).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsedet.analysis import calibrate_selector
from sparsedet.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.config import ConfigError, LazyConfig, instantiate
from sparsedet.data import resolve_dataset
from sparsedet.loading import load_detector, require_same_classes, trained_class_names


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    args = _parser().parse_intermixed_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F", help=".py or .yaml config")
    parser.add_argument("--weights", required=True, metavar="W", help=".pth or .safetensors file")
    parser.add_argument("--output", required=True, type=Path, metavar="NEW", help="a new folder")
    parser.add_argument(
        "--images",
        type=int,
        default=500,
        metavar="N",
        help="about so many of the training set, at even distances (%(default)s)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config")
    return parser


def run(args: argparse.Namespace) -> None:
    """Calibrate, and write both files.

    Raises:
        ValueError: something given is wrong; nothing has been written then.
    """
    if args.images < 1:
        raise ConfigError(f"--images must be at least 1, got {args.images}.")
    if (args.output / "config.yaml").exists():
        raise ConfigError(f"{args.output} holds a run already. Name a new folder by --output.")
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.overrides)
    absent = [name for name in ("model", "dataloader", "dataset", "train") if name not in cfg]
    if absent:
        raise ConfigError(
            f"{args.config_file} has no {', '.join(absent)}. Use the config of a training run."
        )
    if cfg.dataset.class_names is None:
        cfg.dataset.class_names = trained_class_names(load_checkpoint(args.weights))
    resolve_dataset(cfg, ("train",))
    require_same_classes(cfg)
    shown = cfg.copy()
    shown.dataset.update(val_json=cfg.dataset.train_json, val_images=cfg.dataset.train_images)
    loader = instantiate(shown.dataloader.test)
    step = max(1, sum(map(len, loader.batches)) // args.images)
    loader.batches = loader.batches[::step]
    model = load_detector(cfg, args.weights)
    images = calibrate_selector(model, loader)
    cfg.train.output_dir = str(args.output)
    LazyConfig.save(cfg, args.output / "config.yaml")
    text = (args.output / "config.yaml").read_text(encoding="utf-8")
    path = args.output / "model_calibrated.pth"
    save_checkpoint({"model": model.state_dict(), "config": text}, path)
    print(f"{path}: calibrated on {images} images")


if __name__ == "__main__":
    sys.exit(main())
