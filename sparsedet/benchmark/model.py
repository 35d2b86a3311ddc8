"""Whole models: milliseconds by stage, GFLOPs, peak memory."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from sparsedet.analysis import Parts
from sparsedet.benchmark.cases import DTYPES, PEER, SEED, Case, gflops, load_model, noise, product
from sparsedet.benchmark.cases import add_arguments as add_case_arguments
from sparsedet.benchmark.execution import (
    Rounds,
    inference,
    inference_pass,
    run_cases,
)
from sparsedet.benchmark.memory import device_peak, process_peak
from sparsedet.benchmark.reference import locate
from sparsedet.benchmark.report import (
    CASE_HEAD,
    Row,
    Table,
    case_cells,
    number,
    peak_cell,
    without_empty,
)
from sparsedet.modeling.stages import DetectorOutput

DINO = "dino_r50_4scale_12ep"
SPARSE = "sparse_detr_r50_rho30_50ep"
FOCUS = "focus_detr_r50_12ep"
STAGES = ("backbone", "neck", "scorer", "look", "encoder", "query_initializer", "decoder", "rpn")
STAGES += ("roi_heads", "head")  # of torchvision's detectors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add_case_arguments(parser, config=(DINO, FOCUS), image_sizes=((800, 1066),))
    add_running_arguments(parser)
    parser.add_argument(
        "--peer",
        nargs="+",
        default=[],
        metavar="MODULE:CALLABLE",
        help="also measure the modules that these callables return, on the same batch of images",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """The ways to run a model."""
    add = parser.add_argument
    add("--cuda-graphs", action="store_true", help="also measure each as a replayed CUDA graph")


def run(args: argparse.Namespace) -> Row:
    """Time the cases, those of one size and batch in turns.

    Raises:
        ValueError: an input is wrong.
    """
    for path in args.peer:
        locate(path)
    counts: dict[Case, Row] = defaultdict(dict)

    def facts(case: Case, _: Rounds) -> Row:
        flops = gflops(case) if case.form != PEER else None
        costs = None if flops is None else {**flops.stages, "total": flops.total}
        memory = None if args.no_memory else _peak_memory(case)
        return {"gflops": costs, **counts[case], "memory": memory}

    def make(case: Case, stack: ExitStack) -> Callable[[], Parts]:
        if case.form == PEER:
            return inference_pass(case, peer_call(case), stack)
        return inference_pass(case, detect_call(case, counts[case]), stack, load_model(case))

    return run_cases(args, product(args), make, facts, table)


def detect_call(case: Case, counts: Row | None = None) -> Callable[[], object]:
    """``detect`` on a batch of noise, which puts what ``token_counts`` says into ``counts``."""
    model = load_model(case)
    images, sizes = noise(case, model)

    def call() -> object:
        output = model.detect(images, sizes)
        if counts is not None and isinstance(output, DetectorOutput):
            counts.update(token_counts(output))
        return output

    return call


def token_counts(output: DetectorOutput) -> Row:
    """Tokens of the first image, and those that a layer of the encoder updates (mean)."""
    kept = [selection.counts[0] for selection in output.selections]
    return {"tokens": output.features.num_valid[0], "kept_tokens": sum(kept) / len(kept)}


def peer_call(case: Case) -> Callable[[], object]:
    """A peer's module on the same batch.

    Raises:
        ValueError: the path names no such callable.
    """
    module = locate(case.config)()
    if not isinstance(module, nn.Module):
        raise ValueError(f"--peer {case.config} must return a module, got {type(module).__name__}.")
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(case.batch, 3, *case.image_size, generator=generator)
    images = images.to(case.device, DTYPES[case.dtype])
    module = module.to(images).eval()
    return lambda: module(images)


# --- memory ---------------------------------------------------------------------------------------


def _peak_memory(case: Case) -> dict[str, float] | None:
    """None for graphs, whose memory is the allocator's for as long as they live."""
    device = torch.device(case.device)
    if case.graphs:
        return None
    if device.type == "cpu":
        return process_peak(prepare, case)
    owned = [] if case.form == PEER else [*load_model(case).state_dict().values()]
    call = prepare(case)
    call()
    return device_peak(call, owned, device)


def prepare(case: Case) -> Callable[[], object]:
    """One pass, for the process that looks at its memory."""
    call = peer_call(case) if case.form == PEER else detect_call(case)
    return inference(case, call)


# --- table ----------------------------------------------------------------------------------------


def table(result: Row) -> Table:
    """A line for each case; of batches, images a second as Sparse DETR's table has them: B4FPS."""
    batches = sorted({row["batch"] for row in result["rows"]} - {1})
    head = ["model", *CASE_HEAD, *(f"B{batch}FPS" for batch in batches)]
    head += ["speedup", "over grid_sample"]
    head += [*(stage.replace("_", " ") for stage in STAGES), "GFLOPs", "kept tokens", "peak MB"]
    rows = [_line(row, batches) for row in result["rows"]]
    return without_empty([head, *rows])


def _line(row: Row, batches: Sequence[int]) -> list[str]:
    batch, flops = row["batch"], row.get("gflops") or {}
    rate = 1000 * batch / row["ms"]["median"] if "ms" in row else None
    parts = row.get("parts", {})
    stages = [parts.get(stage) for stage in STAGES]
    return [
        *case_cells(row),
        *(number(rate, 1) if batch == each else "" for each in batches),
        number(row.get("speedup")),
        number(row.get("speedup_over_grid_sample")),
        *("" if stage is None else number(stage["median"] / batch) for stage in stages),
        number(flops.get("total"), 1),
        f"{row['kept_tokens']:.0f} of {row['tokens']}" if "tokens" in row else "",
        peak_cell(row),
    ]
