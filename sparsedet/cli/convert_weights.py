"""Convert a published checkpoint to the names of this package.

    tools/convert_checkpoint.py --source sparse-detr published.pth converted.safetensors
    tools/convert_checkpoint.py --source sparse-detr --classes contiguous published.pth out.pth
    tools/convert_checkpoint.py --source detrex in.pth out.pth --config-file F key=value ...

Published heads have either 91 rows, one per COCO category id with gaps, or 80, one per class that
there is. ``--classes contiguous`` picks the 80 of 91, so that the result fits configs of COCO's 80
classes. Every tensor of the file is used or named in an error, and every tensor of a model must be
there in its shape: of the one of ``--config-file``, else of one in projects/*/configs/released.
docs/published_weights.md lists the files that there are. Exit codes: 0 done; 2 something given is
wrong (one sentence says what), nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.checkpoint import (
    CheckpointError,
    Differences,
    check_weights,
    compare_weights,
    load_checkpoint,
    model_weights,
    save_checkpoint,
)
from sparsedet.config import ConfigError, LazyConfig, instantiate
from sparsedet.conversion import SOURCES, contiguous_classes, convert, num_classes
from sparsedet.loading import leave_out_pretrained

_ROOT = Path(__file__).resolve().parent.parent
_RELEASED = "projects/*/configs/released/*.py"
_SUFFIXES = (".pth", ".safetensors")


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
    parser.add_argument("--source", required=True, choices=sorted(SOURCES), help="who made it")
    parser.add_argument(
        "--classes", choices=["contiguous"], help="pick COCO's 80 classes of 91 category ids"
    )
    parser.add_argument("--config-file", metavar="F", help="a config whose model it must fit")
    parser.add_argument("input", type=Path, help=".pth or .safetensors file")
    parser.add_argument("output", type=Path, help=".pth or .safetensors file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config")
    return parser


def run(args: argparse.Namespace) -> None:
    """Convert, check, write and say what was done.

    Raises:
        ValueError: something given is wrong; nothing has been written then.
    """
    if args.output.suffix not in _SUFFIXES:
        raise CheckpointError(
            f"output {args.output} must end in {' or '.join(_SUFFIXES)}. Choose such a name."
        )
    if args.output.exists() and args.output.samefile(args.input):
        raise CheckpointError(f"output {args.output} is the input. Choose another name.")
    if args.overrides and args.config_file is None:
        raise ConfigError(f"{args.overrides[0]} changes a config, and none is given. Add one.")
    published = model_weights(load_checkpoint(args.input))
    weights = convert(published, args.source)
    found = num_classes(weights)
    if args.classes == "contiguous":
        weights = contiguous_classes(weights)
    if args.config_file is None:
        configs = fitting(weights, found)
    else:
        check_weights(load_model(args, num_classes(weights)), weights, args.input)
        configs = [args.config_file]
    save_checkpoint({"model": weights}, args.output)
    joined = f"{len(published)} tensors of {args.input} became {len(weights)}"
    print(f"{joined}, copies and parts joined: {args.output}")
    print(f"classes: {_classes(found, num_classes(weights))}")
    print(*(f"fits: {config}" for config in configs), sep="\n")


def load_model(args: argparse.Namespace, classes: int) -> nn.Module:
    """The model of the config, without memory for its weights.

    Raises:
        ConfigError: the config has no model.
    """
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.overrides)
    if "model" not in cfg:
        raise ConfigError(f"{args.config_file} has no model. Use a config that describes one.")
    if "dataset" in cfg and cfg.dataset.get("num_classes") is None:
        cfg.dataset.num_classes = classes  # follows from data that need not be here
    return _build(cfg)


def _build(cfg: Any) -> nn.Module:
    leave_out_pretrained(cfg)
    with torch.device("meta"):
        return instantiate(cfg.model)


def fitting(weights: Mapping[str, Tensor], published: int) -> list[str]:
    """The released configs whose model has these tensors, with the override that makes it fit.

    Configs of as many classes as were published go first; those of another number count where
    none of these fits.

    Args:
        weights: converted ones.
        published: classes before some were picked.

    Raises:
        CheckpointError: no model has them; it names the nearest and what is different.
    """
    classes = num_classes(weights)
    others: list[tuple[str, Differences]] = []
    configs = {path: LazyConfig.load(path) for path in sorted(_ROOT.glob(_RELEASED))}
    first = [path for path, cfg in configs.items() if cfg.model.num_classes == published]
    for paths in (first, [path for path in configs if path not in first]):
        fits = []
        for path in paths:
            model = configs[path].model
            override = "" if model.num_classes == classes else f" model.num_classes={classes}"
            name = f"{path.relative_to(_ROOT)}{override}"
            model.num_classes = classes
            differences = compare_weights(_build(configs[path]).state_dict(), weights)
            if differences:
                others.append((name, differences))
            else:
                fits.append(name)
        if fits:
            return fits
    name, differences = min(others, key=lambda other: len(other[1]))
    raise CheckpointError(
        f"the file fits no config in {_RELEASED}. The nearest is {name}: tensors {differences}. "
        "If the file is whole, name the config of its model with --config-file."
    )


def _classes(before: int, after: int) -> str:
    if after != before:
        return f"{after} of {before}, in the order of COCO's category ids"
    if after == 91:
        return "91, COCO's category ids (--classes contiguous picks the 80 that there are)"
    return f"{after}, contiguous"


if __name__ == "__main__":
    sys.exit(main())
