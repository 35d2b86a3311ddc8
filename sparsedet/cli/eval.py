"""Evaluate weights on the test set of a config.

    sparsedet eval DIR/model_best.pth                     with the config in the file
    sparsedet eval CONFIG --weights W.pth dataset.val_json=FILE ...
    sparsedet eval --weights NAME dataset.val_json=FILE ...      published weights, owner/model
    sparsedet eval FOLDER dataset.val_json=FILE ...              of `sparsedet publish`
    sparsedet eval DIR/config.yaml --resume               the last checkpoint of a run
    sparsedet eval W.pth dataloader.evaluator.plots=true  with plots of curves and confusions
    sparsedet eval W.pth --tiles 512                      pictures in tiles, see `sparsedet predict`

The output folder gets predictions.json, curves.json, confusion.json and eval_results.json.
CONFIG is a name that `sparsedet configs` lists, or a .py or .yaml file. NAME is one that `sparsedet
weights` lists.
Exit codes: 0 done; 2 an input is wrong; 3 something failed during the evaluation (as in
`sparsedet train`; one sentence says which).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sparsedet.cli.common import (
    add_config,
    answer_together,
    is_override,
    make_parser,
    take_config,
)
from sparsedet.cli.train import (
    NEEDED_TO_EVALUATE,
    Command,
    add_running,
    parse,
    start,
    tables,
)
from sparsedet.config import ConfigError, LazyConfig, read_config

_BUILT = ("model", "dataset", "dataloader.test", "dataloader.evaluator")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and evaluate."""
    parser = make_parser(__doc__, prog)
    add_config(parser)
    add_running(parser)
    parser.add_argument(
        "--weights", metavar="W", help="as train.init_checkpoint=W: .pth, .safetensors or NAME"
    )
    parser.add_argument("--tiles", type=int, metavar="N", help="process tiles of N x N pixels")
    parser.add_argument(
        "--overlap", type=float, default=0.2, metavar="SHARE", help="overlap of the tiles (0.2)"
    )
    return answer_together(_evaluate, parse(parser, argv))


def _evaluate(args: argparse.Namespace) -> int:
    own = not args.config_file and args.weights and all(map(is_override, args.words))
    if own:
        args.config_file, args.weights = args.weights, ""
    take_config(args)
    given = Path(args.config_file)
    alone = own or given.suffix == ".pth" or given.is_dir()
    weights = args.config_file if alone else args.weights
    _check(args, alone, weights)
    if weights:
        args.overrides.append(f"train.init_checkpoint={weights}")
    command = Command(
        args.config_file,
        tuple(args.overrides),
        resume=args.resume,
        eval_only=True,
        num_gpus=args.num_gpus,
    )

    def run(config: str | None = None) -> int:
        if args.tiles is None:
            return start(command, config)
        return _evaluate_tiles(command, config, weights, tiles=args.tiles, overlap=args.overlap)

    if not alone:
        return run()
    with tempfile.TemporaryDirectory() as folder:
        from sparsedet.loading import trained_config

        path = Path(folder) / "config.yaml"
        LazyConfig.save(trained_config(weights, *_BUILT), path)
        try:
            return run(str(path))
        except ConfigError as error:
            own = str(error).replace(str(path), f"the config in checkpoint {weights}")
            raise ConfigError(own) from error


def _check(args: argparse.Namespace, alone: bool, weights: str | None) -> None:
    """Refuse options of which one leaves the other no meaning."""
    if alone and args.weights:
        raise ValueError(
            f"{args.config_file} is a checkpoint, and --weights {args.weights} names another. Give "
            "a config before --weights, or leave --weights out."
        )
    if weights and args.resume:
        raise ValueError(
            f"--resume evaluates the last checkpoint of a run, and {weights} is named. Leave one "
            "of them out."
        )
    if args.tiles is not None and (not weights or args.num_gpus > 1):
        raise ValueError(
            "--tiles evaluates named weights in one process. Name them with --weights, and leave "
            "--num-gpus out."
        )


def _evaluate_tiles(
    command: Command, config: str | None, weights: str, *, tiles: int, overlap: float
) -> int:
    """Evaluate the predictor that processes pictures in tiles."""
    cfg = read_config(config or command.config, command.overrides, needs=NEEDED_TO_EVALUATE)
    from sparsedet.config import instantiate
    from sparsedet.engine.hooks import plain_metrics
    from sparsedet.files import write_json
    from sparsedet.predictor import Predictor
    from sparsedet.predictor.evaluation import evaluate_predictor
    from sparsedet.training import resolve_run

    resolve_run(cfg, evaluates=True)
    device = cfg.train.device
    predictor = Predictor(weights, cfg, device=device, tiles=tiles, overlap=overlap)
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = evaluate_predictor(predictor, instantiate(cfg.dataloader.test.dataset), evaluator)
    print(tables(results))
    content = {"metrics": plain_metrics(results), "weights": weights}
    folder = Path(cfg.train.output_dir)
    write_json(folder / "eval_results.json", content | {"tiles": tiles, "overlap": overlap})
    return 0
