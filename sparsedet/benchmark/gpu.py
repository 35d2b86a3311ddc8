"""The op on a GPU: its kernels against naive ones that are compiled for this (see ``gpu_op``)."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch

from sparsedet.benchmark.report import Table, number
from sparsedet.layers import ms_deform_attn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add = parser.add_argument
    add("--device", default="cuda")
    add("--quick", action="store_true", help="all tokens as queries, and no more")
    add("--naive-library", type=Path, metavar="FILE", help="where the naive kernels are, compiled")
    add("--dry-run", action="store_true", help="only make the inputs of a line, on any device")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print the table.

    Raises:
        ValueError: there is no GPU, or no compiler for the naive kernels.
    """
    gpu_op = importlib.import_module(f"{__package__}.gpu_op")
    cases = gpu_op.usual_cases()
    if args.quick:
        cases = [case for case in cases if case.queries == "all"]
    if args.dry_run:
        inputs = gpu_op.make_arguments(gpu_op.Case("900", 1, "float32"), args.device)
        ms_deform_attn(inputs.value, gpu_op.SHAPES, inputs.locations, inputs.weights)
        return {"lines": len(cases), "rows": []}
    if torch.device(args.device).type != "cuda":
        raise ValueError(f"gpu-op needs --device cuda, got {args.device}.")
    naive = importlib.import_module(f"{__package__}.naive").load_naive(args.naive_library)
    return gpu_op.run(naive, cases)


def table(result: dict[str, Any]) -> Table:
    """A line for each measurement: microseconds per image."""
    head = ["queries", "batch", "dtype", "layout", "naive us", "ours us", "ratio", "floor us"]
    head += ["of the floor", "naive backward us", "backward us", "ratio", "deterministic us"]
    rows = []
    for row in result["rows"]:
        took = row["us_per_image"]
        rows.append(
            [
                f"{row['queries']} ({row['count']})",
                str(row["batch"]),
                row["dtype"],
                row["layout"],
                number(took["naive"], 1),
                number(took["ours"], 1),
                number(took["naive"] / took["ours"]),
                number(row["floor"], 1),
                number(row["floor"] / took["ours"]),
                number(took["naive_backward"], 1),
                number(took["ours_backward"], 1),
                number(took["naive_backward"] / took["ours_backward"]),
                number(took["deterministic"], 1),
            ]
        )
    return [head, *rows]
