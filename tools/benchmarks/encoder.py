"""The encoder alone: time beside GFLOPs, sparse against dense."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch

from sparsedet.analysis import Parts, round_ratio, summarize, time_in_turns

from .cases import GRID_SAMPLE, OURS, Case, gflops, groups, load_model, noise, product
from .cases import add_arguments as add_case_arguments
from .execution import inference_pass, precision
from .model import FOCUS, SPARSE, add_running_arguments
from .report import Table, number, print_table, size_text, spread, without_empty

Row = dict[str, Any]
KEEP = ("dense", "0.1", "0.3", "0.5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add_case_arguments(parser, config=(SPARSE, FOCUS), image_sizes=((800, 1333),))
    add_running_arguments(parser)
    parser.set_defaults(keep_ratio=list(KEEP))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time the cases, those of one size and batch in turns.

    Raises:
        ValueError: something given is wrong.
    """
    rows: list[Row] = []
    for group in groups(product(args)):
        rows += _time_group(group, args)
        print_table(table({"rows": rows[-len(group) :]}))
    return {"rows": rows}


def encoder_call(case: Case) -> Callable[[], object]:
    """The encoder on the features of a batch of noise, their tokens selected."""
    model = load_model(case)
    images, sizes = noise(case, model)
    with torch.inference_mode(), precision(case):
        features = model.embed(model.neck(model.backbone(images)), sizes)
        scores = None if model.scorer is None else model.scorer(features, model.heads)
        selections = model.selector(scores, features, model.encoder.num_layers)
    return lambda: model.encoder(features, selections, scores, model.heads)


def _time_group(cases: Sequence[Case], args: argparse.Namespace) -> list[Row]:
    with ExitStack() as contexts:
        passes = {case.name: inference_pass(case, encoder_call(case), contexts) for case in cases}
        timings = time_in_turns(
            passes, seconds=args.seconds, rounds=args.rounds, warm_up=args.warm_up
        )
    return [_row(case, timings) for case in cases]


def _row(case: Case, timings: dict[str, list[Parts]]) -> Row:
    parts, flops = timings[case.name], gflops(case)
    row = case.facts() | {"ms": asdict(summarize(parts)["total"])}
    row["gflops"] = None if flops is None else flops.stages["encoder"]
    twin = replace(case, form=GRID_SAMPLE).name
    if case.form == OURS and twin in timings:
        row["speedup_over_grid_sample"] = round_ratio(timings[twin], parts)
    dense = replace(case, keep="dense")
    dense_flops = gflops(dense) if dense.name in timings else None
    if dense_flops is not None and flops is not None:
        row["time_ratio"] = round_ratio(parts, timings[dense.name])
        row["flop_ratio"] = flops.stages["encoder"] / dense_flops.stages["encoder"]
        row["time_over_flops"] = row["time_ratio"] / row["flop_ratio"]
    return row


def table(result: dict[str, Any]) -> Table:
    """A line for each case; the ratios are to the dense encoder of the same model."""
    head = ["encoder of", "size", "batch", "ms per image (p10..p90)", "over grid_sample", "GFLOPs"]
    head += ["time ratio", "FLOP ratio", "time / FLOPs"]
    rows = [
        [
            row["name"],
            size_text(row["image_size"]),
            str(row["batch"]),
            spread(row["ms"], row["batch"]),
            number(row.get("speedup_over_grid_sample")),
            number(row["gflops"], 1),
            number(row.get("time_ratio"), 3),
            number(row.get("flop_ratio"), 3),
            number(row.get("time_over_flops")),
        ]
        for row in result["rows"]
    ]
    return without_empty([head, *rows])
