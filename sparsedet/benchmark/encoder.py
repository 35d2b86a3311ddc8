"""The encoder alone: its time and GFLOPs at several keep ratios, relative to the dense encoder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch

from sparsedet.analysis import Parts, round_ratio
from sparsedet.benchmark.cases import Case, gflops, load_model, noise, product
from sparsedet.benchmark.cases import add_arguments as add_case_arguments
from sparsedet.benchmark.execution import (
    Rounds,
    inference_pass,
    precision,
    run_cases,
)
from sparsedet.benchmark.model import FOCUS, SPARSE, add_running_arguments
from sparsedet.benchmark.report import (
    CASE_HEAD,
    Row,
    Table,
    case_cells,
    number,
    without_empty,
)
from sparsedet.loading import require_tokens

KEEP = ("dense", "0.1", "0.3", "0.5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add_case_arguments(parser, config=(SPARSE, FOCUS), image_sizes=((800, 1333),))
    add_running_arguments(parser)
    parser.set_defaults(keep_ratio=list(KEEP))


def run(args: argparse.Namespace) -> Row:
    """Time the cases, those of one size and batch in turns.

    Raises:
        ValueError: an input is wrong.
    """
    return run_cases(args, product(args), _timed_pass, _facts, table)


def _timed_pass(case: Case, stack: ExitStack) -> Callable[[], Parts]:
    return inference_pass(case, encoder_call(case), stack)


def encoder_call(case: Case) -> Callable[[], object]:
    """The encoder on the features of a batch of noise, their tokens selected."""
    model = require_tokens(load_model(case))
    images, sizes = noise(case, model)
    with torch.inference_mode(), precision(case):
        features, _ = model.see(images, sizes)
        scores = model.score(features, images=images)
        selections = model.selector(scores, features, model.encoder.num_layers)
    return lambda: model.encoder(features, selections, scores, model.heads)


def encoder_gflops(case: Case) -> float | None:
    """Of one image; None where the cost depends on the image."""
    flops = gflops(case)
    return None if flops is None else flops.stages["encoder"]


def _facts(case: Case, timings: Rounds) -> Row:
    """GFLOPs; time and GFLOPs as shares of those of the dense encoder, if it ran beside this."""
    cost, dense = encoder_gflops(case), replace(case, keep="dense")
    if dense.name not in timings or cost is None:
        return {"gflops": cost}
    time_ratio = round_ratio(timings[case.name], timings[dense.name])
    flop_ratio = cost / (encoder_gflops(dense) or cost)
    return {
        "gflops": cost,
        "time_ratio": time_ratio,
        "flop_ratio": flop_ratio,
        "time_over_flops": time_ratio / flop_ratio,
    }


def table(result: Row) -> Table:
    """A line for each case; the ratios are to the dense encoder of the same model."""
    head = ["encoder of", *CASE_HEAD, "over grid_sample", "GFLOPs"]
    head += ["time ratio", "FLOP ratio", "time / FLOPs"]
    rows = [
        [
            *case_cells(row),
            number(row.get("speedup_over_grid_sample")),
            number(row.get("gflops"), 1),
            number(row.get("time_ratio"), 3),
            number(row.get("flop_ratio"), 3),
            number(row.get("time_over_flops")),
        ]
        for row in result["rows"]
    ]
    return without_empty([head, *rows])
