"""Convert a data set to COCO's format, one file for each part.

    sparsedet convert-data mine/data.yaml train.json --split train
    sparsedet convert-data VOCdevkit/VOC2007 val.json --split val
    sparsedet convert-data labels/ all.json --images photos/

SOURCE is a value of `dataset.path` or `dataset.train_json`: a Pascal VOC folder, a YOLO set's
data.yaml, or a COCO or LVIS file (polygons without a box get one). It is checked as before
training. docs/data.md says how each field is converted. Exit codes: 0 done; 2 an input is wrong
(one sentence says which), and nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sparsedet.cli.common import add_source, answer, make_parser, open_source


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add_source(parser)
    parser.add_argument("output", type=Path, metavar="OUT.json", help="file to write")
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, check and write the data set, and print how to train on the result.

    Raises:
        DatasetError: the data set cannot be used, or the output is the source.
    """
    from sparsedet.data import DatasetError, write_coco

    if args.output.exists() and args.output.samefile(args.source):
        raise DatasetError(f"output {args.output} is also the source. Choose another name.")
    dataset = open_source(args)
    write_coco(dataset, args.output)
    print(
        f"{len(dataset.records)} images with {dataset.num_objects} objects of "
        f"{len(dataset.class_names)} classes ({dataset.format}) are in {args.output}"
    )
    if dataset.images is not None:
        part = args.split if args.split in ("train", "val") else "train"
        print(f"dataset.{part}_json={args.output} dataset.{part}_images={dataset.images}")
