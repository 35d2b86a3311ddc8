"""Evaluate weights on the test set of a config.

    sparsedet eval DIR/model_best.pth                     by the config that is in the file
    sparsedet eval CONFIG --weights W.pth dataset.val_json=FILE ...
    sparsedet eval DIR/config.yaml --resume               the last checkpoint of a run

CONFIG is a name that `sparsedet configs` lists, or a .py or .yaml file.
Exit codes: 0 done; 2 something given is wrong (one sentence says what).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sparsedet.cli.common import add_config, answer, make_parser, take_config
from sparsedet.cli.train import Command, add_running, start


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and evaluate."""
    parser = make_parser(__doc__, prog)
    add_config(parser)
    add_running(parser)
    parser.add_argument(
        "--weights", metavar="W", help="the same as train.init_checkpoint=W: .pth or .safetensors"
    )
    return answer(_evaluate, parser.parse_intermixed_args(argv))


def _evaluate(args: argparse.Namespace) -> int:
    take_config(args)
    alone = Path(args.config_file).suffix == ".pth"
    weights = args.config_file if alone else args.weights
    if weights:
        args.overrides.append(f"train.init_checkpoint={weights}")
    command = Command(
        args.config_file,
        tuple(args.overrides),
        resume=args.resume,
        eval_only=True,
        num_gpus=args.num_gpus,
    )
    if not alone:
        return start(command)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(_config_in(weights), encoding="utf-8")
        return start(command, str(path))


def _config_in(weights: str) -> str:
    """The config that the checkpoint of a run holds."""
    from sparsedet.checkpoint import CheckpointError, load_checkpoint

    config = load_checkpoint(weights).get("config")
    if config is None:
        raise CheckpointError(
            f"{weights} does not hold the config of its model. Name it: sparsedet eval CONFIG "
            f"--weights {weights}"
        )
    return config
