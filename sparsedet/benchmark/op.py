"""Deformable attention alone, compared with grid_sample.

Sampling locations are those of an untrained encoder: the reference points of the tokens plus the
compass pattern of the initialization, with noise. Queries are all tokens, 30 % and 10 % of them in
token order, and 900 at random as in a decoder. Our operator is measured with head-major values, as
the projection of the attention module leaves them, and with token-major ones, as grid_sample reads
them.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from sparsedet.analysis import (
    Clock,
    Parts,
    round_ratio,
    summarize,
    time_in_turns,
    timed,
)
from sparsedet.benchmark.cases import DTYPES, GRID_SAMPLE, OURS, SEED, image_size, positive
from sparsedet.benchmark.execution import turns_of
from sparsedet.benchmark.memory import device_peak, process_peak
from sparsedet.benchmark.report import (
    Row,
    Table,
    milliseconds,
    number,
    print_table,
    spread,
    without_empty,
)
from sparsedet.layers import (
    MultiScaleDeformableAttention,
    has_compiled_kernel,
    ms_deform_attn,
    ms_deform_attn_reference,
)
from sparsedet.modeling.stages import Size

STRIDES = (8, 16, 32, 64)
HEADS, HEAD_CHANNELS, POINTS = 8, 32, 4
OFFSET_NOISE = 0.5  # cells
TOKEN_MAJOR = f"{OURS}, token-major"
Op = Callable[..., Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add = parser.add_argument
    add("--device", default="cpu")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="dtype of the values")
    add("--batch", type=positive, default=1)
    add("--image-size", type=image_size, default=(800, 1333), metavar="HxW")
    add("--scaling", nargs="+", type=positive, default=[], metavar="N", help="also on N threads")
    add("--no-memory", action="store_true", help="do not measure peak memory")


# --- inputs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What a measurement is of; plain values.

    Attributes:
        image_size: (h, w) that the levels come from.
        batch: images.
        dtype: of the values.
        device: where.
        queries: name of the set, see ``query_sets``.
        form: who computes it.
        backward: its gradients too.
    """

    image_size: Size
    batch: int
    dtype: str
    device: str
    queries: str
    form: str = OURS
    backward: bool = False


@dataclass(frozen=True)
class Inputs:
    """Arguments of ``ms_deform_attn`` that require gradients, and a gradient of its output."""

    value: Tensor
    spatial_shapes: list[Size]
    locations: Tensor
    weights: Tensor
    grad_output: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What gradients are taken of."""
        return self.value, self.locations, self.weights

    def head_major(self) -> Inputs:
        """The same with the channels of a head beside each other over all tokens."""
        value = self.value.detach().transpose(1, 2).contiguous().transpose(1, 2)
        return replace(self, value=value.requires_grad_())


def level_shapes(size: Size) -> list[Size]:
    """(height, width) per level, rounded up as convolutions do."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]


def cell_centers(spatial_shapes: Sequence[Size]) -> Tensor:
    """Centers (N, 2) of all tokens, x and y in [0, 1]."""
    centers = []
    for height, width in spatial_shapes:
        rows = (torch.arange(height) + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centers.append(torch.stack([x, y], -1).flatten(0, 1))
    return torch.cat(centers)


def query_sets(tokens: int) -> dict[str, Tensor]:
    """Names and token indices of the queries."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(SEED))
    return {
        "all tokens": torch.arange(tokens),
        "30 % of them": order[: int(0.3 * tokens)].sort().values,
        "10 % of them": order[: int(0.1 * tokens)].sort().values,
        "900 at random": order[:900],
    }


def sampling(queries: Tensor, spatial_shapes: Sequence[Size]) -> tuple[Tensor, Tensor]:
    """Locations (B, Q, M, L, P, 2) and weights (B, Q, M, L, P) of an encoder at its start.

    Args:
        queries: (B, Q), indices of tokens.
        spatial_shapes: (height, width) per level.
    """
    module = MultiScaleDeformableAttention(
        HEADS * HEAD_CHANNELS, HEADS, num_levels=len(spatial_shapes), num_points=POINTS
    )
    pattern = module.sampling_offsets.bias.detach().to(queries.device)
    samples = (*queries.shape, HEADS, len(spatial_shapes), POINTS)
    noise = torch.randn(*samples, 2, device=queries.device)
    offsets = pattern.view(*samples[2:], 2) + OFFSET_NOISE * noise
    sizes = [(width, height) for height, width in spatial_shapes]
    cells = torch.tensor(sizes, device=queries.device)[:, None]
    centers = cell_centers(spatial_shapes).to(queries.device)
    locations = centers[queries][:, :, None, None, None] + offsets / cells
    weights = torch.randn(samples, device=queries.device).flatten(3).softmax(-1).view(samples)
    return locations, weights


def make_inputs(problem: Problem) -> Inputs:
    """Encoder-like arguments, token-major, the same ones for the same problem."""
    torch.manual_seed(SEED)
    shapes, dtype = level_shapes(problem.image_size), DTYPES[problem.dtype]
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = sum(height * width for height, width in shapes)
    queries = query_sets(tokens)[problem.queries].expand(problem.batch, -1)
    locations, weights = sampling(queries, shapes)
    value = torch.randn(problem.batch, tokens, HEADS, HEAD_CHANNELS)
    grad_output = torch.randn(*queries.shape, HEADS * HEAD_CHANNELS)
    device = problem.device
    return Inputs(
        value.to(device, dtype).requires_grad_(),
        shapes,
        locations.to(device, precise).requires_grad_(),
        weights.to(device, precise).requires_grad_(),
        grad_output.to(device, dtype),
    )


# --- measuring ------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> Row:
    """Time all forms in turns, for every set of queries.

    Raises:
        ValueError: there is nothing to compare.
    """
    if not has_compiled_kernel(args.device):
        raise ValueError(
            f"op has no compiled kernel for {args.device}: both sides would run the reference. "
            "Reinstall sparsedet where torch and a compiler are."
        )
    instruction_set = limit_instruction_set()
    rows: list[Row] = []
    tokens = sum(height * width for height, width in level_shapes(args.image_size))
    for dtype in args.dtype:
        for queries, backward in itertools.product(query_sets(tokens), (False, True)):
            problem = Problem(
                args.image_size, args.batch, dtype, args.device, queries, backward=backward
            )
            rows.append(_measure(problem, args))
            args.record.save({"rows": rows})
            print_table(table({"rows": rows[-1:]}))
    return {"tokens": tokens, "instruction_set": instruction_set, "rows": rows}


def limit_instruction_set() -> str | None:
    """Hold our kernels to what torch uses (ATEN_CPU_CAPABILITY), and tell what they use.

    None: kernels that always take the widest that the processor has.
    """
    limit = getattr(torch.ops.sparsedet, "_limit_instruction_set", None)
    if limit is None:
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    most = {"AVX512": 2, "AVX2": 1}.get(capability, 0 if capability == "DEFAULT" else 2)
    return ("portable", "AVX2", "AVX512")[limit(most)]


def _measure(problem: Problem, args: argparse.Namespace) -> Row:
    inputs, threads = make_inputs(problem), torch.get_num_threads()
    passes = {
        OURS: _pass(ms_deform_attn, inputs.head_major(), problem),
        TOKEN_MAJOR: _pass(ms_deform_attn, inputs, problem),
        GRID_SAMPLE: _pass(ms_deform_attn_reference, inputs, problem),
    }
    for count in args.scaling:
        passes[f"{OURS}, {count} threads"] = _with_threads(count, threads, passes[OURS])
    timings = time_in_turns(passes, **turns_of(args))
    row = {
        **asdict(problem),
        "direction": "backward" if problem.backward else "forward",
        "num_queries": inputs.locations.shape[1],
        "ms": {name: asdict(summarize(parts)["total"]) for name, parts in timings.items()},
        "speedup": {
            name: round_ratio(timings[name], timings[OURS]) for name in (TOKEN_MAJOR, GRID_SAMPLE)
        },
        "scaling": {
            str(count): round_ratio(timings[OURS], timings[f"{OURS}, {count} threads"])
            for count in args.scaling
        },
    }
    if problem.queries == "all tokens" and not args.no_memory:
        forms = (OURS, GRID_SAMPLE)
        row["memory"] = {form: _peak_memory(replace(problem, form=form)) for form in forms}
    return row


def _pass(op: Op, inputs: Inputs, problem: Problem) -> Callable[[], Parts]:
    """The forward without a graph, or the backward of a forward that is not timed."""
    value, locations, weights = inputs.tensors
    clock = Clock(torch.device(problem.device))

    def forward() -> Tensor:
        return op(value, inputs.spatial_shapes, locations, weights)

    def without_graph() -> Tensor:
        with torch.no_grad():
            return forward()

    def backward() -> Parts:
        output = forward()
        return timed(
            lambda: torch.autograd.grad(output, inputs.tensors, inputs.grad_output), clock
        )()

    return backward if problem.backward else timed(without_graph, clock)


def _with_threads(count: int, usual: int, measured: Callable[[], Parts]) -> Callable[[], Parts]:
    def run() -> Parts:
        torch.set_num_threads(count)
        parts = measured()
        torch.set_num_threads(usual)
        return parts

    return run


def _peak_memory(problem: Problem) -> dict[str, float]:
    device = torch.device(problem.device)
    if device.type == "cpu":
        return process_peak(prepare, problem)
    inputs = make_inputs(problem)
    call = _pass_of_form(problem, inputs)
    call()
    return device_peak(call, [*inputs.tensors, inputs.grad_output], device)


def prepare(problem: Problem) -> Callable[[], object]:
    """One pass, for the process that looks at its memory."""
    return _pass_of_form(problem, make_inputs(problem))


def _pass_of_form(problem: Problem, inputs: Inputs) -> Callable[[], object]:
    op = ms_deform_attn if problem.form == OURS else ms_deform_attn_reference
    inputs = inputs.head_major() if problem.form == OURS else inputs
    return _pass(op, inputs, problem)


# --- table ----------------------------------------------------------------------------------------


def table(result: Row) -> Table:
    """A line for each set of queries and direction; how many times longer the others take."""
    names = (TOKEN_MAJOR, GRID_SAMPLE)
    counts = list(dict.fromkeys(count for row in result["rows"] for count in row["scaling"]))
    head = ["queries", "direction", "dtype", f"{OURS} ms (p10..p90)"]
    head += [*(f"{name} ms" for name in names), *(f"{name} / {OURS}" for name in names)]
    head += [f"1 -> {count} threads" for count in counts]
    head += [f"peak MB, {form}" for form in (OURS, GRID_SAMPLE)]
    rows = []
    for row in result["rows"]:
        memory = row.get("memory", {})
        peaks = [memory.get(form, {}).get("peak_mb") for form in (OURS, GRID_SAMPLE)]
        rows.append(
            [
                f"{row['queries']} ({row['num_queries']})",
                row["direction"],
                row["dtype"],
                spread(row["ms"][OURS]),
                *(milliseconds(row["ms"][name]["median"]) for name in names),
                *(number(row["speedup"][name]) for name in names),
                *(number(row["scaling"].get(count)) for count in counts),
                *(number(peak, 0) for peak in peaks),
            ]
        )
    return without_empty([head, *rows])
