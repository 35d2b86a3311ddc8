"""The training loader: images per second that are read, augmented and batched.

With 0 workers, this process reads the pictures on one thread, which gives images/s per core. With
workers, the table has images/s in total and per worker.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import torch

from sparsedet.analysis import Clock, summarize, time_in_turns, timed
from sparsedet.benchmark import data
from sparsedet.benchmark.cases import positive
from sparsedet.benchmark.report import Row, Table, number, print_table, spread
from sparsedet.config import instantiate

WARM_UP_BATCHES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    data.add_arguments(parser)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0], metavar="N", help="worker processes (0)"
    )
    parser.add_argument(
        "--batch", type=positive, default=4, metavar="N", help="images per batch (%(default)s)"
    )


def run(args: argparse.Namespace) -> Row:
    """Read batches for a time, for every number of workers.

    Raises:
        ValueError: an input is wrong.
    """
    rows = []
    with data.config_with_set(args) as cfg:
        for workers in args.workers:
            cfg.dataloader.train.num_workers = workers
            cfg.dataloader.train.total_batch_size = args.batch
            rows.append(_read(instantiate(cfg.dataloader.train), workers, args))
    print_table(table({"rows": rows}))
    return {"rows": rows}


def _read(loader: Any, workers: int, args: argparse.Namespace) -> Row:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batches = loader.iter_from(0)
    passes = time_in_turns(
        {"read": timed(lambda: next(batches), Clock(torch.device("cpu")))},
        seconds=args.seconds,
        rounds=args.rounds,
        warm_up=max(args.warm_up, WARM_UP_BATCHES) + 2 * workers,  # what was read ahead
    )["read"]
    torch.set_num_threads(threads)
    rate = 1e3 * args.batch * len(passes) / sum(each["total"] for each in passes)
    return {
        "workers": workers,
        "batch": args.batch,
        "ms": asdict(summarize(passes)["total"]),
        "images_per_second": rate,
        "images_per_second_and_core": rate / max(workers, 1),
    }


def table(result: Row) -> Table:
    """A line for each number of workers."""
    head = ["workers", "batch", "ms per batch (p10..p90)", "images/s", "images/s and core"]
    rows = [
        [
            str(row["workers"]),
            str(row["batch"]),
            spread(row["ms"]),
            number(row["images_per_second"], 1),
            number(row["images_per_second_and_core"], 1),
        ]
        for row in result["rows"]
    ]
    return [head, *rows]
