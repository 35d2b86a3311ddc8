"""Convert a published checkpoint to the names of this package.

    sparsedet convert-weights --source sparse-detr published.pth converted.safetensors
    sparsedet convert-weights --source sparse-detr --classes contiguous published.pth out.pth
    sparsedet convert-weights --source detrex in.pth out.pth --config-file F key=value ...

Published heads have either 91 rows, one per COCO category id with gaps, or 80, one per class.
--classes contiguous picks the 80 of 91, so that the result fits configs of COCO's 80 classes.
Every tensor of the file is used, or an error names it. The result must have every tensor of the
model, with the right shape. The model comes from --config-file or, without it, from one of the
released configs that `sparsedet configs released` lists.
docs/published_weights.md lists the known files. Exit codes: 0 done; 2 an input is wrong (one
sentence says which), and nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsedet.cli.common import add_trust, answer, make_parser
from sparsedet.config import ConfigError, check_overrides, read_config

if TYPE_CHECKING:
    from torch import nn

SOURCES = (
    "conditional-detr", "dab-detr", "deformable-detr", "detr", "detrex", "dn-detr", "focus-detr",
    "huggingface", "huggingface-conditional-detr", "huggingface-dab-detr", "huggingface-detr",
    "pnp-detr", "sparse-detr", "up-detr",
)  # fmt: skip
_SUFFIXES = (".pth", ".safetensors")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        "--source", required=True, choices=SOURCES, help="the code base that wrote the checkpoint"
    )
    parser.add_argument(
        "--classes", choices=["contiguous"], help="keep COCO's 80 classes of the 91 category ids"
    )
    parser.add_argument(
        "--config-file", metavar="F", help="config (name or file) whose model the result must fit"
    )
    add_trust(parser)
    parser.add_argument("input", type=Path, help=".pth or .safetensors file")
    parser.add_argument("output", type=Path, help=".pth or .safetensors file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    return parser


def run(args: argparse.Namespace) -> None:
    """Convert, check and write the weights, and print what was done.

    Raises:
        ValueError: an input is wrong; nothing has been written then.
    """
    if args.config_file is not None:
        check_overrides(args.config_file, args.overrides)
    elif args.overrides:
        raise ConfigError(f"{args.overrides[0]} overrides a config. Add --config-file.")
    from sparsedet.checkpoint import (
        CheckpointError,
        check_weights,
        load_checkpoint,
        model_weights,
        save_checkpoint,
    )
    from sparsedet.conversion import contiguous_classes, convert, left_out, num_classes
    from sparsedet.loading import fitting_configs

    if args.output.suffix not in _SUFFIXES:
        raise CheckpointError(
            f"output {args.output} must end in {' or '.join(_SUFFIXES)}. Choose such a name."
        )
    if args.output.exists() and args.output.samefile(args.input):
        raise CheckpointError(f"output {args.output} is also the input. Choose another name.")
    published = model_weights(load_checkpoint(args.input))
    weights = convert(published, args.source)
    found = num_classes(weights)
    if args.classes == "contiguous":
        weights = contiguous_classes(weights)
    if args.config_file is None:
        configs = fitting_configs(weights, found)
    else:
        check_weights(load_model(args, num_classes(weights)), weights, args.input)
        configs = [args.config_file]
    save_checkpoint({"model": weights}, args.output)
    print(f"converted {len(published)} tensors of {args.input} to {len(weights)}: {args.output}")
    if dropped := left_out(published, args.source):
        print(f"left out, used only in pre-training: {', '.join(dropped)}")
    print(f"classes: {_classes(found, num_classes(weights))}")
    print(*(f"fits: {config}" for config in configs), sep="\n")


def load_model(args: argparse.Namespace, classes: int) -> nn.Module:
    """Build the model of the config on the meta device.

    Raises:
        ConfigError: the config has no model.
    """
    from sparsedet.loading import build_on_meta

    cfg = read_config(args.config_file, args.overrides, needs=("model",))
    if "dataset" in cfg and cfg.dataset.get("num_classes") is None:
        cfg.dataset.num_classes = classes  # would be read from data, which need not be here
    return build_on_meta(cfg)


def _classes(before: int, after: int) -> str:
    if after != before:
        return f"{after} of {before}, in the order of COCO's category ids"
    if after == 91:
        return "91, COCO's category ids (--classes contiguous keeps the 80 that are in use)"
    return f"{after}, contiguous"
