"""Export a detector to one file that runs elsewhere, and check the file in a new process.

    sparsedet export model_best.pth detector.onnx --size 640 640
    sparsedet export model_best.pth detector.pt2
    sparsedet export model_best.pth detector.pt2 --no-custom-op
    sparsedet export model_best.pth detector.aoti.pt2
    sparsedet export model_best.pth detector.onnx --dynamic batch --dynamic size
    sparsedet export weights.pth detector.onnx --config-file CONFIG --half
    sparsedet export focus_detr_r50_36ep detector.onnx
    sparsedet export model_best.pth detector.onnx --int8           calibrated on the training set
    sparsedet export model_best.pth detector.onnx --int8 photos    calibrated on these pictures

A .onnx file uses only standard operators and runs in any ONNX runtime. torch.export.load reads a
.pt2 file, which calls the compiled operator of sparsedet unless --no-custom-op is given. An
.aoti.pt2 file is the same program compiled for this type of processor; it needs a C++ compiler.
`sparsedet predict FILE pictures` runs all of them: the file stores how pictures are resized, the
class names and the score threshold. A file takes one picture at a time, in one size, unless
--dynamic is given. `sparsedet eval FILE` measures the AP of the file, which --half and --int8
change.
Exit codes: 0 done; 1 the file was written, but differs from the model by more than rounding
(without --half and --int8); 2 an input is wrong, or the file does not run (one sentence says
which).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsedet.cli.common import add_trust, answer, make_parser, print_error
from sparsedet.files import is_exported, require_writable
from sparsedet.weights import find_published

if TYPE_CHECKING:
    from sparsedet.export import Contract, Exported


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add = parser.add_argument
    add(
        "weights",
        metavar="WEIGHTS",
        help="model_best.pth, the NAME of published weights, or a folder that `sparsedet publish` "
        "wrote",
    )
    add("output", type=Path, metavar="OUT", help="file.onnx, file.pt2 or file.aoti.pt2")
    add("--config-file", metavar="CONFIG", help="for weights without a config")
    add_trust(parser)
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size in pixels that pictures are fitted into (default: the test size of a 4:3 "
        "picture)",
    )
    add(
        "--dynamic",
        action="append",
        choices=("batch", "size"),
        default=[],
        help="batch: any number of pictures at a time; size: pictures of any size (excludes "
        "--size); may be given twice",
    )
    add("--keep-ratio", type=float, metavar="R", help="share of the tokens to keep")
    add(
        "--score-threshold",
        type=float,
        default=0.3,
        metavar="S",
        help="default threshold of the file in `sparsedet predict` (%(default)s)",
    )
    add("--no-custom-op", action="store_true", help="make a .pt2 file that runs without sparsedet")
    _add_precision(parser)
    return parser


def _add_precision(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--half", action="store_true", help="store weights in float16")
    add(
        "--int8",
        nargs="?",
        const="",
        metavar="PICTURES",
        help="quantize an .onnx file to int8, calibrated on these pictures: a file, folder or "
        "pattern (default: the training set of the config)",
    )
    add(
        "--int8-pictures",
        type=int,
        metavar="N",
        help="use at most N of these pictures, evenly spaced (100)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, compare the file with the model and print the result.

    Raises:
        ValueError: an input is wrong.
    """
    from sparsedet.export.formats import kind_of
    from sparsedet.predictor import Predictor

    kind_of(args.output)
    require_writable(args.output)
    find_published(args.weights)
    if is_exported(args.weights):
        raise ValueError(
            f"{args.weights} is already an exported file. Name the checkpoint that it was made "
            "from."
        )
    if args.int8 is None and args.int8_pictures is not None:
        raise ValueError("--int8-pictures needs --int8. Add --int8, or leave --int8-pictures out.")
    try:
        predictor = Predictor(args.weights, args.config_file, device="cpu")
        size = None if args.size is None else tuple(args.size)
        files = None if args.int8 is None else _calibration(args)
        made = predictor.export(
            args.output,
            size,
            dynamic_batch="batch" in args.dynamic,
            dynamic_size="size" in args.dynamic,
            half=args.half,
            custom_op=not args.no_custom_op,
            quantize=files,
            keep_ratio=args.keep_ratio,
            score_threshold=args.score_threshold,
        )
    except ImportError as error:  # an optional package is missing; the message names it
        print_error(error)
        return 2
    return _tell(made, files, half=args.half)


def _tell(made: Exported, files: list[str] | None, *, half: bool) -> int:
    """Print what was written and how it differs from the model; return the exit code."""
    print(f"{made.path}: {made.megabytes:.1f} MB, {_takes(made.contract)}")
    if files is not None:
        print(f"int8, calibrated on {len(files)} pictures")
    rounded = half or files is not None  # the user asked for rounding
    which = f" with scores of at least {made.contract.score_threshold}" if rounded else ""
    print(
        f"differences from the model, {made.compared} pictures, {made.differences.detections} "
        f"detections{which}: {made.differences}"
    )
    if rounded:
        print(
            f"to measure the AP of the file: sparsedet eval {made.path} dataset.val_json=FILE ..."
        )
    if made.agrees and not made.differences.small:
        print(f"rounding the pixels changes the model's own output as much: {made.rounding}")
    if made.agrees or (rounded and math.isfinite(made.differences.scores)):
        return 0
    print_error("the differences are larger than rounding errors. Evaluate the file before use.")
    return 1


def _takes(contract: Contract) -> str:
    """The pictures that a file takes, in words."""
    number = "any number of pictures" if contract.dynamic_batch else "pictures"
    if contract.size is not None:
        return f"{number} of {contract.size[0]} x {contract.size[1]}"
    sizes = contract.any_size
    assert sizes is not None
    return f"{number} of any size, in multiples of {sizes.multiple}, at least {sizes.least}"


def _calibration(args: argparse.Namespace) -> list[str]:
    """Files of the pictures to calibrate on.

    Raises:
        ValueError: there are no pictures.
    """
    from sparsedet.predictor.sources import find_files
    from sparsedet.predictor.video import is_video

    most = 100 if args.int8_pictures is None else args.int8_pictures
    if most < 1:
        raise ValueError(f"--int8-pictures must be at least 1, got {most}.")
    if args.int8:
        found = [file for file in find_files(args.int8) if not is_video(file)]
        if not found:
            raise ValueError(f"--int8 {args.int8} names only videos. Name pictures.")
    else:
        found = _training_pictures(args)
    step = max(1.0, len(found) / most)
    return [found[int(index * step)] for index in range(min(len(found), most))]


def _training_pictures(args: argparse.Namespace) -> list[str]:
    from sparsedet.config import read_config
    from sparsedet.data import DatasetError, open_dataset, part_arguments
    from sparsedet.loading import trained_config

    config = args.config_file
    cfg = read_config(config) if config else trained_config(args.weights, "dataset")
    try:
        dataset = open_dataset(**part_arguments(cfg, "train"))
    except DatasetError as error:
        raise DatasetError(f"{error} Or name pictures to calibrate on: --int8 PICTURES.") from None
    return [record["file_name"] for record in dataset.records]
