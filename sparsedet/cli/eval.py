"""Evaluate weights on the validation set of a config.

    sparsedet eval DIR/model_best.pth                     with the config in the file
    sparsedet eval CONFIG --weights W.pth dataset.val_json=FILE ...
    sparsedet eval --weights NAME dataset.val_json=FILE ...      published weights, or owner/model
    sparsedet eval FOLDER dataset.val_json=FILE ...              written by `sparsedet publish`
    sparsedet eval DIR/config.yaml --resume               the last checkpoint of a run
    sparsedet eval W.pth dataloader.evaluator.plots=true  also plots curves and confusion
    sparsedet eval W.pth --tiles 512                      in tiles, as `sparsedet predict --tiles`
    sparsedet eval W.pth --dtype bfloat16                 as `sparsedet predict --dtype`
    sparsedet eval detector.onnx dataset.val_json=FILE dataset.val_images=DIR      an exported file
    sparsedet eval CONFIG --weights detector.onnx         the same, on the data of CONFIG

The output folder gets predictions.json, curves.json, confusion.json, worst.json and
eval_results.json; `sparsedet report` shows them.
CONFIG is a name that `sparsedet configs` lists, or a .py or .yaml file. NAME is one that `sparsedet
weights` lists. An exported file (.onnx, .pt2) has its own class names and picture size.
Exit codes: 0 done; 2 an input is wrong; 3 something failed during the evaluation (as in
`sparsedet train`; one sentence says which).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsedet.cli.common import (
    add_config,
    add_tiles,
    answer_together,
    is_override,
    make_parser,
    take_config,
    take_tiles,
)
from sparsedet.cli.train import (
    NEEDED_TO_EVALUATE,
    Command,
    add_running,
    make_folder,
    parse,
    start,
    tables,
)
from sparsedet.config import ConfigError, LazyConfig, get_config, literal, read_config
from sparsedet.files import is_exported

if TYPE_CHECKING:
    from sparsedet.predictor import Predictor

_BUILT = ("model", "dataset", "dataloader.test", "dataloader.evaluator")
# settings that are fixed in an exported file
_FIXED = (
    "model.",
    "dataset.test_short_side",
    "dataset.max_size",
    "dataset.value_range",
    "dataset.max_image_pixels",
    "dataloader.test.mapper",
    "train.init_checkpoint",
    "train.device",
)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and evaluate."""
    parser = make_parser(__doc__, prog)
    add_config(parser)
    add_running(parser)
    parser.add_argument(
        "--weights",
        metavar="W",
        help="the same as train.init_checkpoint=W: .pth, .safetensors or NAME",
    )
    add_tiles(parser)
    parser.add_argument(
        "--dtype", default="float32", help="type of the weights: float32, bfloat16 or float16"
    )
    return answer_together(_evaluate, parse(parser, argv))


def _evaluate(args: argparse.Namespace) -> int:
    own = not args.config_file and args.weights and all(map(is_override, args.words))
    if own:
        args.config_file, args.weights = args.weights, ""
    take_config(args)
    take_tiles(args)
    given = Path(args.config_file)
    alone = own or given.suffix == ".pth" or given.is_dir() or is_exported(args.config_file)
    weights = args.config_file if alone else args.weights
    exported = is_exported(weights)
    _check(args, alone, weights, exported)
    if weights and not exported:
        args.overrides.append(f"train.init_checkpoint={weights}")
    command = Command(
        args.config_file,
        tuple(args.overrides),
        resume=args.resume,
        eval_only=True,
        num_gpus=args.num_gpus,
    )

    def run(config: str | None = None) -> int:
        if args.tiles is None and args.dtype == "float32" and not exported:
            return start(command, config)
        return _evaluate_predictor(command, config, weights, args)

    return _with_config_of(weights, run) if alone else run()


def _with_config_of(weights: str, run: Callable[[str], int]) -> int:
    """Write the config that is stored with the weights to a file, and run with it."""
    from sparsedet.loading import trained_config

    exported = is_exported(weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        cfg = _without_set(weights) if exported else trained_config(weights, *_BUILT)
        LazyConfig.save(cfg, path)
        try:
            return run(str(path))
        except ConfigError as error:
            place = "exported file" if exported else "the config in checkpoint"
            own = str(error).replace(str(path), f"{place} {weights}")
            raise ConfigError(own) from error


def _without_set(path: str) -> Any:
    """Evaluation settings for an exported file, which has none; without a data set."""
    cfg = get_config("photos")
    cfg.dataset.val_json = cfg.dataset.val_images = None
    cfg.train.output_dir = f"output/{Path(path).stem}"
    return cfg


def _check(args: argparse.Namespace, alone: bool, weights: str, exported: bool) -> None:
    """Refuse options that contradict each other."""
    fixed = [word for word in args.overrides if word.lstrip("+").startswith(_FIXED)]
    if exported and fixed:
        raise ValueError(
            f"{weights} is an exported file, in which {fixed[0].partition('=')[0]} is fixed. Leave "
            "the override out, or export the checkpoint again."
        )
    if alone and args.weights:
        raise ValueError(
            f"{args.config_file} and --weights {args.weights} are both weights. Give a config "
            "instead of the first, or leave --weights out."
        )
    if weights and args.resume:
        raise ValueError(
            f"--resume evaluates the last checkpoint of a run, but {weights} is also given. Leave "
            "one of them out."
        )
    option = "--dtype" if args.dtype != "float32" else "--tiles" if args.tiles is not None else ""
    if (option or exported) and (not weights or args.num_gpus > 1):
        one = f"{weights} is evaluated" if exported else f"{option} evaluates given weights"
        raise ValueError(
            f"{one} in one process. Name the weights with --weights, and leave --num-gpus out."
        )


def _evaluate_predictor(
    command: Command, config: str | None, weights: str, args: argparse.Namespace
) -> int:
    """Evaluate as `sparsedet predict` runs: in tiles, with a dtype, or with an exported file."""
    cfg = read_config(config or command.config, command.overrides, needs=NEEDED_TO_EVALUATE)
    from sparsedet.config import instantiate
    from sparsedet.engine.hooks import plain_metrics
    from sparsedet.files import write_json
    from sparsedet.predictor.evaluation import evaluate_predictor

    predictor = _load(cfg, weights, args)
    make_folder(cfg.train.output_dir)
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = evaluate_predictor(predictor, instantiate(cfg.dataloader.test.dataset), evaluator)
    print(tables(results))
    content = {"metrics": plain_metrics(results), "weights": weights, "dtype": args.dtype}
    folder = Path(cfg.train.output_dir)
    if args.tiles is not None:
        content |= {"tiles": args.tiles, "overlap": args.overlap}
    write_json(folder / "eval_results.json", content)
    return 0


def _load(cfg: Any, weights: str, args: argparse.Namespace) -> Predictor:
    """Load the model to evaluate, and resolve `cfg` with the classes of an exported file."""
    from sparsedet.predictor import Predictor
    from sparsedet.predictor.exported import ExportedDetector
    from sparsedet.training import resolve_run

    how = {"tiles": args.tiles, "overlap": args.overlap, "dtype": args.dtype}
    if not is_exported(weights):
        resolve_run(cfg, evaluates=True)
        return Predictor(weights, cfg, device=cfg.train.device, **how)
    predictor = Predictor(weights, **how)
    assert isinstance(predictor.model, ExportedDetector)
    contract = predictor.model.contract
    if cfg.dataset.get("class_names") is None:
        cfg.dataset.class_names = [literal(name) for name in contract.class_names]
    cfg.dataset.value_range = contract.value_range and list(contract.value_range)
    cfg.dataset.max_image_pixels = contract.max_pixels
    resolve_run(cfg, evaluates=True)
    return predictor
