"""The evaluation loop: images per second with reading, the model and the COCO evaluator."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from sparsedet.benchmark import data
from sparsedet.benchmark.cases import configure
from sparsedet.benchmark.report import Table, number, print_table
from sparsedet.config import instantiate
from sparsedet.evaluation import evaluate

PARTS = ("reading", "model", "evaluator")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    data.add_arguments(parser)
    parser.add_argument("--keep-ratio", nargs="+", default=["dense", "config"], metavar="R")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="that read ahead")
    parser.set_defaults(max_images=20)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate the set once for every keep ratio.

    Raises:
        ValueError: an input is wrong.
    """
    rows = []
    with data.config_with_set(args) as (whole, what):
        for keep in args.keep_ratio:
            cfg = copy.deepcopy(whole)
            configure(cfg, keep)
            cfg.dataloader.test.num_workers = args.workers
            torch.manual_seed(0)
            model = instantiate(cfg.model).to(args.device)
            rows.append({"keep": keep, "workers": args.workers, **_evaluate(model, cfg)})
    result = {"set": what, "rows": rows}
    print_table(table(result))
    return result


def _evaluate(model: torch.nn.Module, cfg: Any) -> dict[str, Any]:
    loader = _Timed(instantiate(cfg.dataloader.test))
    evaluator = _TimedEvaluator(instantiate(cfg.dataloader.evaluator))
    begin = time.perf_counter()
    results = evaluate(model, loader, evaluator)
    elapsed = time.perf_counter() - begin
    images = results["num_images"]
    parts = {"reading": loader.seconds, "evaluator": evaluator.seconds}
    parts["model"] = elapsed - sum(parts.values())
    return {
        "images": images,
        "images_per_second": images / elapsed,
        "ms_per_image": {name: 1e3 * parts[name] / images for name in PARTS},
    }


class _Timed:
    """A loader, and the seconds that were spent waiting for it."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader, self.seconds = loader, 0.0

    def __iter__(self) -> Iterator[Any]:
        batches, end = iter(self._loader), object()
        while True:
            started = time.perf_counter()
            batch = next(batches, end)
            self.seconds += time.perf_counter() - started
            if batch is end:
                return
            yield batch


class _TimedEvaluator:
    """An evaluator, and the seconds that were spent in it."""

    def __init__(self, evaluator: Any) -> None:
        self._evaluator, self.seconds = evaluator, 0.0

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[Any], outputs: list[Any]) -> None:
        started = time.perf_counter()
        self._evaluator.process(inputs, outputs)
        self.seconds += time.perf_counter() - started

    def evaluate(self) -> dict[str, Any]:
        started = time.perf_counter()
        results = self._evaluator.evaluate()
        self.seconds += time.perf_counter() - started
        return results


def table(result: dict[str, Any]) -> Table:
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
