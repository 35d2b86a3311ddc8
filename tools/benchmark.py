"""Measure speed, always side by side with a reference in the same run.

    tools/benchmark.py op                          deformable attention against grid_sample
    tools/benchmark.py op --threads 1 --json op.json
    tools/benchmark.py op --device cuda --dtype float16

``op``: sampling locations are those of an encoder at its start: the reference points of the tokens
plus the compass pattern of the initialization, with noise. Queries are all tokens, 30 % and 10 %
of them in token order, and 900 at random as in a decoder.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import sparsedet
from sparsedet.layers import (
    MultiScaleDeformableAttention,
    has_compiled_kernel,
    ms_deform_attn,
    ms_deform_attn_reference,
)

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
STRIDES = (8, 16, 32, 64)
HEADS, HEAD_CHANNELS, POINTS = 8, 32, 4
OFFSET_NOISE = 0.5  # cells


@dataclass(frozen=True)
class Timing:
    """Milliseconds: median and the 10th and 90th percentile over the repetitions."""

    median: float
    p10: float
    p90: float


def time_call(call: Callable[[], object], device: torch.device, seconds: float) -> Timing:
    """Repeat a call for a time, after a warm-up, and at least three times."""

    def once() -> float:
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - begin)

    warm_up = 2
    times = [once() for _ in range(warm_up + 3)][warm_up:]
    while sum(times) < 1e3 * seconds:
        times.append(once())
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return Timing(statistics.median(times), deciles[0], deciles[-1])


def protocol(device: torch.device) -> dict[str, object]:
    """What the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": f"{device} {name}".strip(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sparsedet": sparsedet.__version__,
        "compiled_kernel": has_compiled_kernel(device),
    }


# --- op -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpInputs:
    """Arguments of ms_deform_attn that require gradients, and a gradient of its output."""

    value: Tensor
    spatial_shapes: list[tuple[int, int]]
    locations: Tensor
    weights: Tensor
    grad_output: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What gradients are taken of."""
        return self.value, self.locations, self.weights


def cell_centers(spatial_shapes: list[tuple[int, int]]) -> Tensor:
    """Centres (N, 2) of all tokens, x and y in [0, 1]."""
    centers = []
    for height, width in spatial_shapes:
        rows = (torch.arange(height) + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centers.append(torch.stack([x, y], -1).flatten(0, 1))
    return torch.cat(centers)


def op_inputs(
    image_size: tuple[int, int], queries: Tensor, args: argparse.Namespace, device: torch.device
) -> OpInputs:
    """Encoder-like arguments for some of the tokens as queries."""
    shapes = level_shapes(image_size)
    dtype = DTYPES[args.dtype]
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    centers = cell_centers(shapes)
    module = MultiScaleDeformableAttention(
        HEADS * HEAD_CHANNELS, HEADS, num_levels=len(shapes), num_points=POINTS
    )
    pattern = module.sampling_offsets.bias.detach().view(HEADS, len(shapes), POINTS, 2)
    samples = (args.batch, len(queries), HEADS, len(shapes), POINTS)
    offsets = pattern + OFFSET_NOISE * torch.randn(*samples, 2)
    cells = torch.tensor([(width, height) for height, width in shapes])[:, None]
    locations = centers[queries][None, :, None, None, None] + offsets / cells
    weights = torch.randn(samples).flatten(3).softmax(-1).view(samples)
    value = torch.randn(args.batch, len(centers), HEADS, HEAD_CHANNELS)
    grad_output = torch.randn(args.batch, len(queries), HEADS * HEAD_CHANNELS)
    return OpInputs(
        value.to(device, dtype).requires_grad_(),
        shapes,
        locations.to(device, precise).requires_grad_(),
        weights.to(device, precise).requires_grad_(),
        grad_output.to(device, dtype),
    )


def level_shapes(image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) per level, rounded up as convolutions do."""
    height, width = image_size
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def query_sets(tokens: int) -> dict[str, Tensor]:
    """Names and token indices of the queries."""
    order = torch.randperm(tokens)
    return {
        "all tokens": torch.arange(tokens),
        "30 % of them": order[: int(0.3 * tokens)].sort().values,
        "10 % of them": order[: int(0.1 * tokens)].sort().values,
        "900 at random": order[:900],
    }


def time_op(
    function: Callable[..., Tensor], inputs: OpInputs, device: torch.device, seconds: float
) -> dict[str, Timing]:
    """Time the forward without and the backward with a graph."""
    value, locations, weights = inputs.tensors

    def forward() -> Tensor:
        return function(value, inputs.spatial_shapes, locations, weights)

    with torch.no_grad():
        timings = {"forward": time_call(forward, device, seconds)}
    output = forward()

    def backward() -> object:
        return torch.autograd.grad(output, inputs.tensors, inputs.grad_output, retain_graph=True)

    timings["backward"] = time_call(backward, device, seconds)
    return timings


def benchmark_op(args: argparse.Namespace) -> dict[str, object]:
    """Time the op and its grid_sample reference, print a table and return all figures."""
    device = torch.device(args.device)
    if not has_compiled_kernel(device):
        raise ValueError(
            f"op has no compiled kernel for {device}: both sides would run the reference. "
            "Reinstall sparsedet where torch and a compiler are."
        )
    facts = protocol(device) | {"dtype": args.dtype, "batch": args.batch}
    tokens = sum(height * width for height, width in level_shapes(args.image_size))
    print(" ".join(f"{key}={value}" for key, value in facts.items()))
    print(
        f"{tokens} tokens ({args.image_size[0]}x{args.image_size[1]}), {HEADS} heads x "
        f"{HEAD_CHANNELS} channels, {len(STRIDES)} levels x {POINTS} points; medians in ms "
        f"(p10..p90) after a warm-up, {args.seconds} s or at least 3 calls each"
    )
    print(f"{'queries':>22} {'':>9} {'grid_sample':>27} {'sparsedet':>27} {'ratio':>6}")
    rows = []
    for name, queries in query_sets(tokens).items():
        inputs = op_inputs(args.image_size, queries, args, device)
        theirs = time_op(ms_deform_attn_reference, inputs, device, args.seconds)
        ours = time_op(ms_deform_attn, inputs, device, args.seconds)
        for direction in theirs:
            ratio = theirs[direction].median / ours[direction].median
            cells = [
                f"{t.median:.2f} ({t.p10:.2f}..{t.p90:.2f})"
                for t in (theirs[direction], ours[direction])
            ]
            label = f"{name} ({len(queries)})"
            print(f"{label:>22} {direction:>9} {cells[0]:>27} {cells[1]:>27} {ratio:6.1f}")
            rows.append(
                {
                    "queries": len(queries),
                    "direction": direction,
                    "grid_sample": asdict(theirs[direction]),
                    "sparsedet": asdict(ours[direction]),
                    "ratio": ratio,
                }
            )
    return {"mode": "op", "protocol": facts, "tokens": tokens, "rows": rows}


# --- command line ---------------------------------------------------------------------------------


def image_size(text: str) -> tuple[int, int]:
    """Parse HxW."""
    height, width = text.lower().split("x")
    return int(height), int(width)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; each mode sets the function that runs it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    common.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    modes = parser.add_subparsers(dest="mode", required=True)
    op = modes.add_parser("op", parents=[common], help="deformable attention alone")
    op.set_defaults(run=benchmark_op)
    op.add_argument("--device", default="cpu")
    op.add_argument("--dtype", choices=DTYPES, default="float32", help="of the values")
    op.add_argument("--batch", type=int, default=1)
    op.add_argument("--image-size", type=image_size, default=(800, 1333), metavar="HxW")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one mode; return the exit code."""
    args = parse_arguments(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        figures = args.run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
