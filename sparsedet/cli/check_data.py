"""Check a data set as before training, and say what is in it.

    sparsedet check-data mine/data.yaml --split train
    sparsedet check-data VOCdevkit/VOC2007 --split val
    sparsedet check-data train.json --images photos/

SOURCE is what `dataset.path` or `dataset.train_json` may be. Every picture file is opened. Objects
that training would leave out are counted in warnings, faults that would stop it end the command.
Exit codes: 0 it can be used; 2 it cannot, or something given is wrong (one sentence says what).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsedet.cli.common import add_source, answer, make_parser, open_source
from sparsedet.tables import format_table

if TYPE_CHECKING:
    from sparsedet.data import AnnotatedDataset


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add_source(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, check, and print what the set holds.

    Raises:
        DatasetError: the set cannot be used.
    """
    dataset = open_source(args)
    looked = "opened" if dataset.images is not None else "not opened, add --images"
    print(f"{dataset.source}: {dataset.format}, {len(dataset.records)} images ({looked})")
    print(_objects(dataset))
    print(_sizes(dataset))


def _objects(dataset: AnnotatedDataset) -> str:
    """Objects, ignore regions and images with any, for each class."""
    counts = {kind: Counter[int]() for kind in ("objects", "ignored", "images")}
    for record in dataset.records:
        for entry in record["annotations"]:
            counts["ignored" if entry["iscrowd"] else "objects"][entry["category_id"]] += 1
        counts["images"].update({entry["category_id"] for entry in record["annotations"]})
    rows = [
        [name, *(str(count[number]) for count in counts.values())]
        for number, name in enumerate(dataset.class_names)
    ]
    empty = sum(not record["annotations"] for record in dataset.records)
    totals = [str(counts[kind].total()) for kind in ("objects", "ignored")]
    last = ["all", *totals, str(len(dataset.records) - empty)]
    return format_table([["class", "objects", "ignore regions", "images with it"], *rows, last])


def _sizes(dataset: AnnotatedDataset) -> str:
    """Smallest, median and largest pictures, boxes and numbers of objects in an image."""
    records = list(dataset.records)
    boxes = [(e["bbox"][2] * e["bbox"][3]) ** 0.5 for r in records for e in r["annotations"]]
    measures = {
        "short side of a picture, px": [
            min(r["height"], r["width"]) for r in records if r["height"] is not None
        ],
        "long side of a picture, px": [
            max(r["height"], r["width"]) for r in records if r["height"] is not None
        ],
        "square root of a box's area, px": boxes,
        "objects in a picture": [len(r["annotations"]) for r in records],
    }
    rows = [["", "smallest", "median", "largest"]]
    for name, values in measures.items():
        if values:
            ordered = sorted(values)
            chosen = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
            rows.append([name, *(f"{value:.4g}" for value in chosen)])
    return format_table(rows)
