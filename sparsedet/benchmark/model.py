"""Whole models: milliseconds by stage, GFLOPs, peak memory."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsedet.analysis import Parts
from sparsedet.benchmark.cases import DTYPES, PEER, Case, gflops, groups, load_model, noise, product
from sparsedet.benchmark.cases import add_arguments as add_case_arguments
from sparsedet.benchmark.execution import (
    Row,
    Turns,
    inference,
    inference_pass,
    time_cases,
    timing_row,
)
from sparsedet.benchmark.memory import device_peak, process_peak
from sparsedet.benchmark.reference import locate
from sparsedet.benchmark.report import (
    CASE_HEAD,
    Table,
    case_cells,
    number,
    print_table,
    without_empty,
)
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import MultiScaleFeatures, level_size

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
        help="callables that return a module which takes the same batch of images",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """The ways to run a model."""
    add = parser.add_argument
    add("--reference", action="store_true", help="beside each its form with grid_sample")
    add("--unprepared", action="store_true", help="without prepare_for_inference")
    add("--autocast", action="store_true", help="half precision by autocast, weights in fp32")
    add("--compile", action="store_true", help="by torch.compile")
    add("--cuda-graphs", action="store_true", help="beside each as a replayed CUDA graph")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time the cases, those of one size and batch in turns.

    Raises:
        ValueError: an input is wrong.
    """
    rows: list[Row] = []
    for group in groups([*product(args), *_peers(args)]):
        rows += _time_group(group, args)
        args.record.save({"rows": rows})
        print_table(table({"rows": rows[-len(group) :]}))
    return {"rows": rows}


def _peers(args: argparse.Namespace) -> list[Case]:
    return [
        Case(
            path, image_size=size, batch=batch, dtype=dtype, device=args.device, form=PEER,
            autocast=args.autocast, graphs=graphs,
        )
        for size in args.image_size
        for batch in args.batch
        for path in args.peer
        for dtype in args.dtype
        for graphs in ([False, True] if args.cuda_graphs else [False])
    ]  # fmt: skip


def _time_group(cases: Sequence[Case], args: argparse.Namespace) -> list[Row]:
    with ExitStack() as contexts:
        timings, errors = time_cases(
            cases, lambda case: _timed_pass(case, contexts), Turns.of(args)
        )
    rows = []
    for case in cases:
        row = timing_row(case, cases, timings, errors)
        if case.name in timings:
            row |= model_facts(case) if case.form != PEER else {}
            row["memory"] = None if args.no_memory else _peak_memory(case)
        rows.append(row)
    return rows


def _timed_pass(case: Case, contexts: ExitStack) -> Callable[[], Parts]:
    if case.form == PEER:
        return inference_pass(case, peer_call(case), contexts)
    model = load_model(case)
    return inference_pass(case, detect_call(case), contexts, model)


def detect_call(case: Case) -> Callable[[], object]:
    """``detect`` on a batch of noise."""
    model = load_model(case)
    images, sizes = noise(case, model)
    return lambda: model.detect(images, sizes)


def peer_call(case: Case) -> Callable[[], object]:
    """A peer's module on the same batch.

    Raises:
        ValueError: the path names no such callable.
    """
    module = locate(case.config)()
    if not isinstance(module, nn.Module):
        raise ValueError(f"--peer {case.config} must return a module, got {type(module).__name__}.")
    dtype = torch.float32 if case.autocast else DTYPES[case.dtype]
    module = module.to(case.device, dtype).eval()
    images = torch.randn(
        case.batch, 3, *case.image_size, generator=torch.Generator().manual_seed(0)
    ).to(case.device, dtype)
    return lambda: module(images)


def model_facts(case: Case) -> Row:
    """GFLOPs of one image, and the tokens that the encoder's layers update."""
    flops = gflops(case)
    costs: Row = {"gflops": None if flops is None else {**flops.stages, "total": flops.total}}
    model = load_model(case)
    if not isinstance(model, TokenSparseDetector):
        return costs
    with torch.inference_mode():
        output = model.detect_features(_features(case, model))
    kept = [selection.counts[0] for selection in output.selections]
    return {
        **costs,
        "tokens": output.features.num_valid[0],
        "kept_tokens": sum(kept) / len(kept),
    }


def _features(case: Case, model: TokenSparseDetector) -> MultiScaleFeatures:
    """Of one image: zeros, unless what is there depends on what is seen."""
    if model.regions is not None:
        return model.see(*noise(replace(case, batch=1), model))[0]
    maps = [
        torch.zeros(
            1,
            model.neck.embed_dim,
            *level_size(case.image_size, stride),
            device=model.device,
            dtype=model.dtype,
        )
        for stride in model.strides
    ]
    return model.embed(maps, [case.image_size])


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


def table(result: dict[str, Any]) -> Table:
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
        number((row.get("memory") or {}).get("peak_mb"), 0),
    ]
