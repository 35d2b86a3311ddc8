"""Running cases in turns, and the ways to run a model: autocast, compiled, as a CUDA graph."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
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
from sparsedet.benchmark.report import reason

EVENTS = 32  # more than a pass has stages
GRAPH_WARM_UP = 3
Row = dict[str, Any]
Rounds = dict[str, list[Parts]]


@dataclass(frozen=True)
class Turns:
    """For how long things are run in turns.

    Attributes:
        seconds: at least so long.
        rounds: and at least so many rounds.
        warm_up: rounds before that do not count.
    """

    seconds: float
    rounds: int
    warm_up: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> Turns:
        """As the command line says."""
        return cls(args.seconds, args.rounds, args.warm_up)


def time_cases(
    cases: Sequence[Case], make: Callable[[Case], Callable[[], Parts]], turns: Turns
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
    timings = time_in_turns(
        passes, seconds=turns.seconds, rounds=turns.rounds, warm_up=max(turns.warm_up - 1, 0)
    )
    return timings, errors


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        torch.accelerator.empty_cache()


def timing_row(case: Case, cases: Sequence[Case], timings: Rounds, errors: dict[str, str]) -> Row:
    """Milliseconds of a case by part, how many times it is as fast as the first, and its twin.

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
    device = torch.device(case.device)
    if case.graphs:
        return _graph_pass(case, inference(case, call), contexts, model)
    if case.compiled:
        return timed(inference(case, torch.compile(call, dynamic=False)), Clock(device))
    clock = Clock(device)
    if model is None:
        return timed(inference(case, call), clock)
    contexts.enter_context(stage_marks(model, clock))
    return timed(inference(case, call), clock, FIRST_STAGE)


def _graph_pass(
    case: Case,
    call: Callable[[], object],
    contexts: ExitStack,
    model: Detector | None,
) -> Callable[[], Parts]:
    """Replays of a CUDA graph; the events that part the stages are nodes of the graph."""
    device = torch.device(case.device)
    if device.type != "cuda":
        raise ValueError(f"--cuda-graphs needs --device cuda, got {device}.")
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    contexts.callback(_pool.cache_clear)  # torch takes no pool again whose graphs are gone
    events = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(EVENTS)]
    clock, graph = Clock(device, events), torch.cuda.CUDAGraph()
    with ExitStack() as marks:
        if model is not None:
            marks.enter_context(stage_marks(model, clock))
        with _recording(graph, stream):
            clock.mark("total" if model is None else FIRST_STAGE)
            call()
            clock.stop()

    def run() -> Parts:
        graph.replay()
        return clock.parts()

    return run


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """What is called is recorded. If that fails, the process can go on as if it were not tried."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    pool = _pool()
    with torch.cuda.stream(stream):
        try:
            graph.capture_begin(pool)
            yield
            graph.capture_end()
        except BaseException:
            _pool.cache_clear()
            with suppress(RuntimeError):
                graph.capture_end()
            # Where the device has already ended the recording, that leaves the allocator in it.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(stream.device_index, pool)
                torch._C._cuda_releasePool(stream.device_index, pool)
            raise


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where passes warm up and are recorded: what libraries keep for a stream is there by then."""
    return torch.cuda.Stream(device)


@cache
def _pool() -> Any:
    """One pool for the memory of all graphs of a group: nothing reads what a graph leaves there."""
    return torch.cuda.graph_pool_handle()
