"""The evaluation loop: images per second with reading, the model and the COCO evaluator."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from sparsedet.analysis import Clock, timed
from sparsedet.benchmark import data
from sparsedet.benchmark.cases import SEED, configure
from sparsedet.benchmark.report import Row, Table, number, print_table
from sparsedet.config import instantiate
from sparsedet.evaluation import evaluate

READING, MODEL, EVALUATOR = PARTS = ("reading", "model", "evaluator")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    data.add_arguments(parser)
    parser.add_argument(
        "--keep-ratio",
        nargs="+",
        default=["dense", "config"],
        metavar="R",
        help="dense, config or a number (dense config)",
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="worker processes that read ahead (0)"
    )
    parser.set_defaults(max_images=20)


def run(args: argparse.Namespace) -> Row:
    """Evaluate the set once for every keep ratio.

    Raises:
        ValueError: an input is wrong.
    """
    rows = []
    with data.config_with_set(args) as whole:
        for keep in args.keep_ratio:
            cfg = copy.deepcopy(whole)
            configure(cfg, keep)
            cfg.dataloader.test.num_workers = args.workers
            torch.manual_seed(SEED)
            model = instantiate(cfg.model).to(args.device)
            rows.append({"keep": keep, "workers": args.workers, **_evaluate(model, cfg)})
    print_table(table({"rows": rows}))
    return {"rows": rows}


def _evaluate(model: torch.nn.Module, cfg: Any) -> Row:
    clock, results = Clock(torch.device("cpu")), {}
    loader = _watched(instantiate(cfg.dataloader.test), clock)
    evaluator = _Watched(instantiate(cfg.dataloader.evaluator), clock)
    parts = timed(lambda: results.update(evaluate(model, loader, evaluator)), clock, READING)()
    images = results["num_images"]
    return {
        "images": images,
        "images_per_second": 1e3 * images / sum(parts.values()),
        "ms_per_image": {name: parts[name] / images for name in PARTS},
    }


def _watched(loader: Iterable[Any], clock: Clock) -> Iterator[Any]:
    """The batches of a loader; what happens until the evaluator gets one is the model's."""
    for batch in loader:
        clock.mark(MODEL)
        yield batch


class _Watched:
    """An evaluator; what happens when it has taken a batch is the loader's."""

    def __init__(self, evaluator: Any, clock: Clock) -> None:
        self._evaluator, self._clock = evaluator, clock

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[Any], outputs: list[Any]) -> None:
        self._clock.mark(EVALUATOR)
        self._evaluator.process(inputs, outputs)
        self._clock.mark(READING)

    def evaluate(self) -> dict[str, Any] | None:
        self._clock.mark(EVALUATOR)
        return self._evaluator.evaluate()


def table(result: Row) -> Table:
    """A line for each keep ratio."""
    head = ["keep ratio", "images", "images/s", *(f"{part} ms per image" for part in PARTS)]
    rows = [
        [
            row["keep"],
            str(row["images"]),
            number(row["images_per_second"], 3),
            *(number(row["ms_per_image"][part], 1) for part in PARTS),
        ]
        for row in result["rows"]
    ]
    return [head, *rows]
