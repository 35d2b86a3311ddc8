"""Look into detectors: kept tokens, scores, attention, cost and detections in one HTML file.

    sparsedet explain model_best.pth photo.jpg photos/ 'more/*.png' --output DIR
    sparsedet explain model_best.pth photo.jpg --ratios 0.1 0.3
    sparsedet explain model_best.pth photo.jpg --beside other/model_best.pth
    sparsedet explain CONFIG:weights.pth photo.jpg
    sparsedet explain focus_detr_r50_36ep photo.jpg

DIR gets explorer.html, which needs no network and opens in a browser from disk. Each model has a
column, next to one of the same weights with all tokens (keep ratio 1). The keep ratios are computed
now: those of --ratios, the model's own and 1. A slider in the page chooses one of them.
WEIGHTS are a checkpoint with its config, published weights that `sparsedet weights` lists, a file
of `sparsedet export`, or CONFIG:FILE for weights without a config. Folders include their
subfolders.
Exit codes: 0 done; 1 some pictures were left out (each is named); 2 an input is wrong (one
sentence says which).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsedet.cli.common import (
    add_trust,
    answer,
    check_folder,
    make_parser,
    print_error,
    read_ratio,
)
from sparsedet.weights import find_published

if TYPE_CHECKING:
    from sparsedet.predictor import Predictor

_MOST = 100  # pictures of one page


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    parser.add_argument("weights", metavar="WEIGHTS", help="model_best.pth, NAME or CONFIG:FILE")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="picture, folder or pattern")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/explorer"),
        metavar="DIR",
        help="folder of explorer.html (%(default)s)",
    )
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="WEIGHTS",
        help="also show another model, in a column of its own; may be given several times",
    )
    parser.add_argument(
        "--ratios",
        nargs="+",
        metavar="R",
        help="keep ratios to compute (0.05 0.1 0.2 0.3 0.5)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        metavar="S",
        help="hide detections with lower scores at first (%(default)s)",
    )
    parser.add_argument(
        "--repetitions",
        type=int,
        default=3,
        metavar="N",
        help="timed passes of each input size and ratio; 0 = no milliseconds (%(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the page; the number of pictures left out decides the exit code.

    Raises:
        ValueError: an input is wrong; nothing has been written then.
    """
    models = [args.weights, *args.beside]
    if not args.paths:
        raise ValueError(f"No picture is given for {args.weights}. Name one or more.")
    check_folder(args.output)
    if not 0 <= args.score_threshold <= 1:
        raise ValueError(f"--score-threshold must be in [0, 1], got {args.score_threshold}.")
    if args.repetitions < 0:
        raise ValueError(f"--repetitions must be at least 0, got {args.repetitions}.")
    ratios = args.ratios and [read_ratio(word, "--ratios") for word in args.ratios]
    for model in models:
        find_published(_split(model)[1])
    from tqdm import tqdm

    from sparsedet.report import RATIOS, explain

    files = _files(args.paths)
    predictors = _load(models, args.device)
    failures: list[str] = []

    def leave_out(error: Exception) -> None:
        failures.append(str(error))
        with tqdm.external_write_mode():
            print_error(error)

    written = explain(
        predictors,
        tqdm(files, unit=" pictures", dynamic_ncols=True),
        args.output / "explorer.html",
        ratios=ratios or RATIOS,
        score_threshold=args.score_threshold,
        repetitions=args.repetitions,
        on_error=leave_out,
    )
    size = written.num_bytes / 1e6
    print(f"{written.path}: {_several(written.pictures, 'picture')}, {size:.1f} MB")
    if failures:
        print_error(f"{len(failures)} of {_several(len(files), 'picture')} were left out.")
    return int(bool(failures))


def _files(paths: Sequence[str]) -> list[str]:
    """The pictures that the words name, each once.

    Raises:
        ValueError: a word names none, or all together too many for a page, or a video.
    """
    from sparsedet.predictor.sources import find_files
    from sparsedet.predictor.video import is_live, is_video

    files = list(dict.fromkeys(file for path in paths for file in find_files(path)))
    moving = [file for file in files if is_live(file) or is_video(file)]
    if moving:
        raise ValueError(f"{moving[0]} is not a picture. `sparsedet predict` takes videos.")
    if len(files) > _MOST:
        raise ValueError(
            f"{len(files)} pictures are too many for one page. Name at most {_MOST} of them."
        )
    return files


def _load(models: Sequence[str], device: str) -> dict[str, Predictor]:
    """Each model by what tells it from the others."""
    from sparsedet.cli.visualize import distinct_names
    from sparsedet.predictor import Predictor

    pairs = [_split(model) for model in models]
    names = distinct_names([(config or "", weights) for config, weights in pairs])
    if len(models) == 1:
        names = ["/".join(Path(pairs[0][1]).parts[-2:])]
    loaded: dict[str, Predictor] = {}
    for model, name, (config, weights) in zip(models, names, pairs, strict=True):
        if name in loaded:
            raise ValueError(f"{model} is given twice. Name other weights for --beside.")
        loaded[name] = Predictor(weights, config, device=device)
    return loaded


def _split(word: str) -> tuple[str | None, str]:
    """Config and weights of a word: CONFIG:FILE, or weights alone."""
    match = re.fullmatch(r"(.+\.(?:py|ya?ml)):(.+)", word)
    return (match[1], match[2]) if match else (None, word)


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
