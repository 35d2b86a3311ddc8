"""Running cases in turns, and the ways to run a model: autocast, and as a CUDA graph."""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch

from sparsedet.analysis import (
    FIRST_STAGE,
    Clock,
    Parts,
    round_ratio,
    stage_marks,
    summarize,
    time_in_turns,
    timed,
)
from sparsedet.analysis.passes import Detector
from sparsedet.benchmark.cases import DTYPES, GRID_SAMPLE, OURS, Case
from sparsedet.benchmark.report import Row, Table, print_table, reason

GRAPH_WARM_UP = 3
Rounds = dict[str, list[Parts]]


def turns_of(args: argparse.Namespace) -> dict[str, Any]:
    """For how long things are run in turns."""
    return {"seconds": args.seconds, "rounds": args.rounds, "warm_up": args.warm_up}


def run_cases(
    args: argparse.Namespace,
    cases: Sequence[Case],
    make: Callable[[Case, ExitStack], Callable[[], Parts]],
    facts: Callable[[Case, Rounds], Row],
    table: Callable[[Row], Table],
) -> Row:
    """Time the cases of one size and batch in turns; show and write the rows of each group.

    Args:
        args: the command line.
        cases: what is timed.
        make: the pass of a case; what it puts on the stack is undone after the last pass.
        facts: what is in the row of a case beside its times, given the times of its group.
        table: of rows.
    """
    rows: list[Row] = []
    for _, members in itertools.groupby(cases, key=lambda case: (case.image_size, case.batch)):
        group = list(members)
        with ExitStack() as stack:
            timings, errors = time_cases(group, lambda case, on=stack: make(case, on), args)
            found = [timing_row(case, group, timings, errors) for case in group]
            for case, row in zip(group, found, strict=True):
                row |= facts(case, timings) if case.name in timings else {}
        rows += found
        args.record.save({"rows": rows})
        print_table(table({"rows": found}))
    return {"rows": rows}


def time_cases(
    cases: Sequence[Case], make: Callable[[Case], Callable[[], Parts]], args: argparse.Namespace
) -> tuple[Rounds, dict[str, str]]:
    """Run cases in turns; one that fails (out of memory) is left out and says why.

    Returns:
        The parts of every round by the case's name, and the errors of others by theirs.
    """
    passes, errors = {}, {}
    for case in cases:
        try:
            passes[case.name] = make(case)
            passes[case.name]()
        except ValueError:
            raise
        except Exception as error:
            passes.pop(case.name, None)
            errors[case.name] = reason(error)
            print(f"failed: {case.name}: {errors[case.name]}", file=sys.stderr)
        if case.name in errors:  # the error, which holds what the pass has made, is gone here
            _free_memory(torch.device(case.device))
    if not passes:
        return {}, errors
    turns = turns_of(args) | {"warm_up": max(args.warm_up - 1, 0)}
    return time_in_turns(passes, **turns), errors


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        torch.accelerator.empty_cache()


def timing_row(case: Case, cases: Sequence[Case], timings: Rounds, errors: dict[str, str]) -> Row:
    """Milliseconds of a case by part, and its speed over the first case and over its twin.

    The first is that of the cases which did not fail.
    """
    if case.name not in timings:
        return case.facts() | {"error": errors[case.name]}
    parts = timings[case.name]
    every = {name: asdict(timing) for name, timing in summarize(parts).items()}
    first = next(each.name for each in cases if each.name in timings)
    row = case.facts() | {"ms": every.pop("total"), "parts": every, "against": first}
    row["speedup"] = round_ratio(timings[first], parts)
    twin = replace(case, form=GRID_SAMPLE, prepared=False).name
    if case.form == OURS and twin in timings:
        row["speedup_over_grid_sample"] = round_ratio(timings[twin], parts)
    return row


@contextmanager
def precision(case: Case) -> Iterator[None]:
    """Autocast, where a case wants it."""
    enabled = case.autocast and case.dtype != "float32"
    dtype = DTYPES[case.dtype] if enabled else None
    with torch.autocast(torch.device(case.device).type, dtype=dtype, enabled=enabled):
        yield


def inference(case: Case, call: Callable[[], object]) -> Callable[[], object]:
    """A call without gradients in the number format of a case."""

    def run() -> object:
        with torch.inference_mode(), precision(case):
            return call()

    return run


def inference_pass(
    case: Case,
    call: Callable[[], object],
    contexts: ExitStack,
    model: Detector | None = None,
) -> Callable[[], Parts]:
    """The timed pass of a case.

    Args:
        case: says how it runs.
        call: the work.
        contexts: holds what must be undone after the last pass.
        model: the detector whose stages the call runs; None where it is to be timed as a whole.

    Raises:
        ValueError: CUDA graphs are asked for elsewhere.
    """
    clock = Clock(torch.device(case.device))
    if case.graphs:
        return timed(recorded(inference(case, call), clock.device), clock)
    if model is None:
        return timed(inference(case, call), clock)
    contexts.enter_context(stage_marks(model, clock))
    return timed(inference(case, call), clock, FIRST_STAGE)


def recorded(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Replays of a CUDA graph of a call.

    Raises:
        ValueError: the device has no CUDA graphs.
    """
    if device.type != "cuda":
        raise ValueError(f"--cuda-graphs needs --device cuda, got {device}.")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
