r"""Evaluate a model at several keep ratios or look ratios: accuracy, cost and time.

    sparsedet sweep DIR/config.yaml --weights DIR/model_best.pth --ratios 0.05 0.1 0.2 0.3 0.5
    sparsedet sweep CONFIG --weights W --fixed A/config.yaml:A/model_best.pth \
        B/config.yaml:B/model_best.pth --output DIR key=value
    sparsedet sweep CONFIG --weights W --beside A/config.yaml:A/model_best.pth
    sparsedet sweep CONFIG --weights W --look 0.05 0.1 0.2 0.4

The selector of the model must have a keep_ratio; `ElasticSelector` trains a model for many ratios.
--ratios sets keep_ratio as in configs. The column keep_ratio is the measured mean over layers and
images, which is a little higher because the number of tokens is rounded up. --beside adds models
to sweep as well; --fixed adds models that are evaluated unchanged, dense or trained for one ratio.
Overrides apply to all models. Results that `sweep.json` already has for the same weights and
settings are not measured again, so the same command resumes an interrupted sweep.
The results are written as JSON, a table and a plot.

--look sweeps model.regions.look_ratio instead: the share of the tiles that a model with regions
processes. Its rows also have the share of objects whose center is in a chosen tile (tile_recall),
the same share for the best choice of as many tiles (oracle) and for a random choice (random).

`AdaptiveSelector` keeps a different share of each image. Its cost is the mean over a few validation
images, and `kept.png` plots the share of each image against the area and number of its objects.
Exit codes: 0 done; 2 an input is wrong (one sentence says which).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sparsedet.cli.common import (
    add_config,
    answer,
    make_parser,
    read_ratio,
    split_overrides,
    take_config,
)
from sparsedet.config import ConfigError, check_overrides


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add_config(parser)
    parser.add_argument("--weights", required=True, metavar="W", help="file, or published weights")
    _add_shares(parser)
    parser.add_argument(
        "--beside",
        nargs="+",
        default=[],
        metavar="CONFIG:WEIGHTS",
        help="models to sweep as well",
    )
    parser.add_argument(
        "--fixed",
        nargs="+",
        default=[],
        metavar="CONFIG:WEIGHTS",
        help="models to compare with, evaluated unchanged",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: 'sweep', or 'sweep_look', in train.output_dir",
    )
    parser.add_argument(
        "--image-size",
        metavar="HxW",
        help="input size for GFLOPs and milliseconds (default: the test image of median area)",
    )
    parser.add_argument(
        "--repetitions", type=int, default=20, metavar="N", help="timed passes (%(default)s)"
    )
    return parser


def _add_shares(parser: argparse.ArgumentParser) -> None:
    shares = parser.add_mutually_exclusive_group()
    shares.add_argument(
        "--ratios",
        nargs="+",
        default=["0.05", "0.1", "0.2", "0.3", "0.5"],
        metavar="R",
        help="values of model.selector.keep_ratio, the mean over encoder layers "
        "(0.05 0.1 0.2 0.3 0.5)",
    )
    shares.add_argument(
        "--look",
        nargs="+",
        metavar="R",
        help="values of model.regions.look_ratio, instead of --ratios",
    )


def run(args: argparse.Namespace) -> None:
    """Measure the missing results, and print all of them.

    Raises:
        ValueError: an input is wrong; nothing has been measured then.
    """
    option = "--ratios" if args.look is None else "--look"
    ratios, more = split_overrides(args.ratios if args.look is None else args.look)
    beside, others = split_overrides(args.beside)
    fixed, last = split_overrides(args.fixed)
    args.words = [*args.words, *more, *others, *last]  # overrides may follow any list
    take_config(args)
    if args.repetitions < 1:
        raise ConfigError(f"--repetitions must be at least 1, got {args.repetitions}.")
    shares = sorted({read_ratio(word, option) for word in ratios})
    swept = [_read_pair(word, "--beside") for word in beside]
    as_they_are = [_read_pair(word, "--fixed") for word in fixed]
    size = _read_size(args.image_size) if args.image_size else None
    check_overrides(args.config_file, args.overrides)
    from sparsedet.sweep import KEEP, LOOK, content_table, run_sweep, table

    sheet = run_sweep(
        args.config_file,
        args.weights,
        ratios=shares,
        share=KEEP if args.look is None else LOOK,
        beside=swept,
        fixed=as_they_are,
        overrides=args.overrides,
        output=args.output,
        image_size=size,
        repetitions=args.repetitions,
        report=partial(print, flush=True),
    )
    print(table(sheet.models))
    print(f"{sheet.path}, {sheet.path.with_name('sweep.png')}")
    if sheet.by_content:
        print(content_table(sheet.models, sheet.share))
        print(sheet.path.with_name("kept.png"))


def _read_pair(word: str, option: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+\.(?:py|ya?ml)):(.+)", word)
    if match is None:
        raise ConfigError(
            f"{option} must name a config file and weights as CONFIG:WEIGHTS, got {word!r}."
        )
    return match[1], match[2]


def _read_size(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word)
    if match is None:
        raise ConfigError(f"--image-size must be HxW, such as 800x1066, got {word!r}.")
    return int(match[1]), int(match[2])
