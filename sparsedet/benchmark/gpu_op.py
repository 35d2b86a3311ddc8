"""Deformable attention on a GPU, beside the op as it is usually written.

Encoder shapes of an 800 x 1333 image (22,223 tokens, 8 heads of 32 channels, 4 levels, 4 points)
with locations as an encoder has them at its start; all tokens as queries, a part of them in random
order with and without ``query_order``, and the 900 queries of a decoder.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsedet.layers.deformable_attention import tile_order

SHAPES = ((100, 167), (50, 84), (25, 42), (13, 21))
HEADS, CHANNELS, POINTS = 8, 32, 4
OFFSET_NOISE = 0.5  # cells
SAMPLES = len(SHAPES) * POINTS
TOKENS = sum(height * width for height, width in SHAPES)
# Bytes per second and multiprocessor from the first cache: 128 per cycle at 1.755 GHz.
FIRST_CACHE = 128 * 1.755e9
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

FORWARD = torch.ops.sparsedet.ms_deform_attn.default
BACKWARD = torch.ops.sparsedet.ms_deform_attn_backward.default
FLAT_SHAPES = [size for shape in SHAPES for size in shape]


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


def cell_centers(device: str) -> Tensor:
    """Centres (N, 2) of all tokens, x and y in [0, 1]."""
    centers = []
    for height, width in SHAPES:
        rows = (torch.arange(height, device=device) + 0.5) / height
        columns = (torch.arange(width, device=device) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centers.append(torch.stack([x, y], -1).flatten(0, 1))
    return torch.cat(centers)


def compass(device: str) -> Tensor:
    """Offsets (M, 1, P, 2) in cells of an attention module at its start."""
    angles = torch.arange(HEADS, device=device) * (2 * math.pi / HEADS)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    distances = torch.arange(1, POINTS + 1, device=device)
    return (directions[:, None] * distances[:, None])[:, None]


def make_arguments(case: Case, device: str = "cuda") -> Arguments:
    """Random arguments; the queries of each image are drawn anew."""
    centers = cell_centers(device)
    order = None
    if case.queries == "all":
        tokens = torch.arange(TOKENS, device=device).expand(case.batch, -1)
    else:
        count = 900 if case.queries == "900" else TOKENS * int(case.queries.split()[0]) // 100
        draws = torch.rand(case.batch, TOKENS, device=device)
        tokens = draws.argsort(1)[:, :count]
        if "%" in case.queries:
            order = tile_order(tokens, SHAPES)
    samples = (*tokens.shape, HEADS, len(SHAPES), POINTS)
    cells = torch.tensor([(width, height) for height, width in SHAPES], device=device)[:, None]
    offsets = compass(device) + OFFSET_NOISE * torch.randn(*samples, 2, device=device)
    locations = centers[tokens][:, :, None, None, None] + offsets / cells
    weights = torch.randn(samples, device=device).flatten(3).softmax(-1).view(samples)
    dtype = DTYPES[case.dtype]
    value = torch.randn(case.batch, TOKENS, HEADS, CHANNELS, device=device).to(dtype)
    if case.layout == "head-major":
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    grad_output = torch.randn(*tokens.shape, HEADS * CHANNELS, device=device).to(dtype)
    return Arguments(value, locations, weights, grad_output, order)


def time_calls(call: Callable[[Arguments], object], sets: Sequence[Arguments], budget: float):
    """Median microseconds of a call, the inputs rotating so that none is left in the cache.

    One pass over the sets is captured in a CUDA graph, which takes the gaps between launches away,
    and replayed until the budget (seconds) is spent, at least five times.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for arguments in sets:
            call(arguments)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in sets:
            call(arguments)
    graph.replay()
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 1e6 * budget / len(sets) and len(times) < 200):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / len(sets))
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
    gathered = queries * HEADS * SAMPLES * 4 * CHANNELS * size
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    return 1e6 * gathered / (multiprocessors * FIRST_CACHE)


def measure(case: Case, naive, budget: float) -> list[dict[str, object]]:
    """Microseconds per image; queries of a part of the tokens also in their given order."""
    sets = [make_arguments(case) for _ in range(3 if case.batch == 1 else 2)]
    count = sets[0].locations.shape[1]
    rows = []
    kept: dict[str, float] = {}
    for with_order in (False, True) if sets[0].order is not None else (False,):
        times = {}
        for name, call in calls(naive, with_order).items():
            if name.startswith("naive") and (with_order or case.layout != "token-major"):
                times[name] = kept.get(name, math.nan)  # it knows no order, and one layout
                continue
            times[name] = time_calls(call, sets, budget) / case.batch
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


def print_header() -> None:
    """Print what the columns are."""
    print(
        f"{'queries':>13} {'B':>2} {'dtype':>8} {'layout':>11} | {'naive':>8} {'ours':>8} "
        f"{'ratio':>5} {'floor':>6} {'of it':>5} | {'naive':>8} {'ours':>8} {'ratio':>5} "
        f"{'determ.':>8} {'/ours':>5}   (us per image; forward | backward)"
    )


def print_row(row: dict) -> None:
    """Print one line of the table."""
    t = row["us_per_image"]
    print(
        f"{row['queries']:>13} {row['batch']:>2} {row['dtype']:>8} {row['layout']:>11} | "
        f"{t['naive']:8.1f} {t['ours']:8.1f} {t['naive'] / t['ours']:5.2f} {row['floor']:6.1f} "
        f"{row['floor'] / t['ours']:5.2f} | {t['naive_backward']:8.1f} {t['ours_backward']:8.1f} "
        f"{t['naive_backward'] / t['ours_backward']:5.2f} {t['deterministic']:8.1f} "
        f"{t['deterministic'] / t['ours_backward']:5.2f}",
        flush=True,
    )


def usual_cases() -> list[Case]:
    """All lines of the table."""
    cases = [Case("all", batch, dtype) for batch in (1, 8) for dtype in DTYPES]
    cases += [Case("all", 8, dtype, "head-major") for dtype in ("float32", "float16")]
    for queries in ("30 %", "10 %"):
        cases += [Case(queries, 8, dtype) for dtype in ("float32", "float16")]
    return cases + [Case("900", batch, dtype) for batch in (1, 8) for dtype in DTYPES]


def run(
    naive: tuple[Callable[..., Tensor], Callable[..., object]],
    cases: Sequence[Case] | None = None,
    *,
    budget: float = 0.05,
    seed: int = 0,
) -> dict[str, object]:
    """Measure all cases, print a table and return the figures.

    Args:
        naive: What ``load_naive`` returned.
        cases: Lines of the table; the usual ones if not given.
        budget: Seconds for each figure.
        seed: Of the inputs.
    """
    torch.manual_seed(seed)
    print(f"{torch.cuda.get_device_name()}; {TOKENS} tokens; floor: all bytes from the first cache")
    print_header()
    rows = []
    for case in cases or usual_cases():
        rows += measure(case, naive, budget)
        for row in rows[-2:] if "%" in case.queries else rows[-1:]:
            print_row(row)
    return {"device": torch.cuda.get_device_name(), "tokens": TOKENS, "rows": rows}
