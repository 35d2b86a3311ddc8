"""The training data: images per second that one core reads, augments and packs.

With 0 workers the pictures are read in this process, on one thread: images/s per core. With more,
images/s of all, and per worker.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

import torch

from sparsedet.analysis import Timing
from sparsedet.benchmark import data
from sparsedet.benchmark.cases import positive
from sparsedet.benchmark.report import Table, number, print_table, spread
from sparsedet.config import instantiate

WARM_UP_BATCHES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    data.add_arguments(parser)
    parser.add_argument("--workers", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--batch", type=positive, default=4, metavar="N", help="(%(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read batches for a time, for every number of workers.

    Raises:
        ValueError: an input is wrong.
    """
    rows = []
    with data.config_with_set(args) as (cfg, what):
        for workers in args.workers:
            cfg.dataloader.train.num_workers = workers
            cfg.dataloader.train.total_batch_size = args.batch
            rows.append(_read(instantiate(cfg.dataloader.train), workers, args))
    result = {"set": what, "rows": rows}
    print_table(table(result))
    return result


def _read(loader: Any, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batches = loader.iter_from(0)
    for _ in range(max(args.warm_up, WARM_UP_BATCHES) + 2 * workers):  # what was read ahead
        next(batches)
    took: list[float] = []
    begin = time.perf_counter()
    while len(took) < args.rounds or time.perf_counter() - begin < args.seconds:
        started = time.perf_counter()
        next(batches)
        took.append(1e3 * (time.perf_counter() - started))
    elapsed = time.perf_counter() - begin
    torch.set_num_threads(threads)
    rate = args.batch * len(took) / elapsed
    return {
        "workers": workers,
        "batch": args.batch,
        "ms": asdict(Timing.of(took)),
        "images_per_second": rate,
        "images_per_second_and_core": rate / max(workers, 1),
    }


def table(result: dict[str, Any]) -> Table:
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
