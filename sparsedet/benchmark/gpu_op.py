"""Deformable attention on a GPU, compared with naive kernels.

The shapes are those of an encoder for an 800 x 1333 image (22,223 tokens, 8 heads of 32 channels,
4 levels, 4 points), with the locations of an untrained encoder. Queries are all tokens, some of
them in random order with and without ``query_order``, and the 900 queries of a decoder. Times are
in microseconds per image.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsedet.analysis import Clock, timed
from sparsedet.benchmark.cases import DTYPES, PRECISIONS, SEED
from sparsedet.benchmark.execution import recorded
from sparsedet.benchmark.naive import load_naive
from sparsedet.benchmark.op import HEAD_CHANNELS, HEADS, POINTS, level_shapes, sampling
from sparsedet.benchmark.report import Row, Table, number, print_table
from sparsedet.layers.deformable_attention import tile_order

SHAPES = tuple(level_shapes((800, 1333)))
FLAT_SHAPES = [size for shape in SHAPES for size in shape]
TOKENS = sum(height * width for height, width in SHAPES)
# Bytes per second and multiprocessor from the first cache: 128 per cycle at 1.755 GHz.
FIRST_CACHE = 128 * 1.755e9
BUDGET = 0.05  # seconds for each figure
FORWARD = torch.ops.sparsedet.ms_deform_attn.default
BACKWARD = torch.ops.sparsedet.ms_deform_attn_backward.default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="measure only with all tokens as queries"
    )


def run(args: argparse.Namespace) -> Row:
    """Measure all cases.

    Raises:
        ValueError: there is no GPU, or no compiler for the naive kernels.
    """
    if torch.device(args.device).type != "cuda":
        raise ValueError(f"gpu-op needs --device cuda, got {args.device}.")
    torch.manual_seed(SEED)
    naive = load_naive()
    rows: list[Row] = []
    for case in usual_cases():
        if case.queries == "all" or not args.quick:
            rows += measure(case, naive)
            args.record.save({"rows": rows})
    print_table(table({"rows": rows}))
    return {"tokens": TOKENS, "rows": rows}


@dataclass(frozen=True)
class Case:
    """Queries, batch and dtype of one line of the table."""

    queries: str  # "all", "30 %", "10 %" or "900"
    batch: int
    dtype: str
    layout: str = "token-major"


@dataclass(frozen=True)
class Arguments:
    """Arguments of the operator, a gradient of its output and an order of the queries."""

    value: Tensor
    locations: Tensor
    weights: Tensor
    grad_output: Tensor
    order: Tensor | None


def usual_cases() -> list[Case]:
    """All lines of the table."""
    cases = [Case("all", batch, dtype) for batch in (1, 8) for dtype in PRECISIONS]
    cases += [Case("all", 8, dtype, "head-major") for dtype in ("float32", "float16")]
    for queries in ("30 %", "10 %"):
        cases += [Case(queries, 8, dtype) for dtype in ("float32", "float16")]
    return cases + [Case("900", batch, dtype) for batch in (1, 8) for dtype in PRECISIONS]


def make_arguments(case: Case, device: str = "cuda") -> Arguments:
    """Random arguments; the queries of each image are drawn anew."""
    order = None
    if case.queries == "all":
        tokens = torch.arange(TOKENS, device=device).expand(case.batch, -1)
    else:
        count = 900 if case.queries == "900" else TOKENS * int(case.queries.split()[0]) // 100
        draws = torch.rand(case.batch, TOKENS, device=device)
        tokens = draws.argsort(1)[:, :count]
        if "%" in case.queries:
            order = tile_order(tokens, SHAPES)
    locations, weights = sampling(tokens, SHAPES)
    dtype = DTYPES[case.dtype]
    value = torch.randn(case.batch, TOKENS, HEADS, HEAD_CHANNELS, device=device).to(dtype)
    if case.layout == "head-major":
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    grad_output = torch.randn(*tokens.shape, HEADS * HEAD_CHANNELS, device=device).to(dtype)
    return Arguments(value, locations, weights, grad_output, order)


def time_calls(call: Callable[[Arguments], object], sets: Sequence[Arguments]) -> float:
    """Median microseconds of a call, the inputs rotating so that none is left in the cache.

    One pass over the sets is a CUDA graph, which takes the gaps between launches away. It is
    replayed until ``BUDGET`` is spent, at least five times.
    """
    device = sets[0].value.device

    def one_pass() -> None:
        for arguments in sets:
            call(arguments)

    replay = timed(recorded(one_pass, device), Clock(device))
    replay()
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 1e6 * BUDGET / len(sets) and len(times) < 200):
        times.append(1e3 * replay()["total"] / len(sets))
    return statistics.median(times)


def calls(naive, with_order: bool) -> dict[str, Callable[[Arguments], object]]:
    """Name what is timed."""

    def ours(x: Arguments) -> object:
        order = x.order if with_order else None
        return FORWARD(x.value, FLAT_SHAPES, x.locations, x.weights, order)

    def ours_backward(x: Arguments, deterministic: bool = False) -> object:
        order = x.order if with_order else None
        inputs = (x.value, FLAT_SHAPES, x.locations, x.weights, order)
        return BACKWARD(x.grad_output, *inputs, deterministic)

    forward, backward = naive
    return {
        "naive": lambda x: forward(x.value, SHAPES, x.locations, x.weights),
        "ours": ours,
        "naive_backward": lambda x: backward(
            x.grad_output, x.value, SHAPES, x.locations, x.weights
        ),
        "ours_backward": ours_backward,
        "deterministic": lambda x: ours_backward(x, True),
    }


def floor(case: Case, queries: int) -> float:
    """Microseconds per image that gathering all bytes through the first cache takes."""
    size = DTYPES[case.dtype].itemsize
    gathered = queries * HEADS * len(SHAPES) * POINTS * 4 * HEAD_CHANNELS * size
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    return 1e6 * gathered / (multiprocessors * FIRST_CACHE)


def measure(case: Case, naive) -> list[Row]:
    """Microseconds per image; queries of a part of the tokens also in their given order."""
    sets = [make_arguments(case) for _ in range(3 if case.batch == 1 else 2)]
    count = sets[0].locations.shape[1]
    rows: list[Row] = []
    kept: dict[str, float] = {}  # the naive kernels know no order
    for with_order in (False, True) if sets[0].order is not None else (False,):
        times = {}
        for name, call in calls(naive, with_order).items():
            if name in kept and name.startswith("naive"):
                times[name] = kept[name]
            elif case.layout == "token-major" or not name.startswith("naive"):
                times[name] = time_calls(call, sets) / case.batch
        kept = times
        rows.append(
            {
                "queries": case.queries + (" in tiles" if with_order else ""),
                "count": count,
                "batch": case.batch,
                "dtype": case.dtype,
                "layout": case.layout,
                "floor": floor(case, count),
                "us_per_image": times,
            }
        )
    return rows


def table(result: Row) -> Table:
    """A line for each measurement; empty where the naive kernels were not run."""
    head = ["queries", "batch", "dtype", "layout", "naive us", "ours us", "ratio", "floor us"]
    head += ["of the floor", "naive backward us", "backward us", "ratio", "deterministic us"]
    return [head, *map(_line, result["rows"])]


def _line(row: Row) -> list[str]:
    took = row["us_per_image"]
    place = [f"{row['queries']} ({row['count']})", str(row["batch"]), row["dtype"], row["layout"]]
    return [
        *place,
        *_beside_naive(took, ""),
        number(row["floor"], 1),
        number(row["floor"] / took["ours"]),
        *_beside_naive(took, "_backward"),
        number(took["deterministic"], 1),
    ]


def _beside_naive(took: dict[str, float], direction: str) -> list[str]:
    naive, ours = took.get(f"naive{direction}"), took[f"ours{direction}"]
    return [number(naive, 1), number(ours, 1), number(naive and naive / ours)]
