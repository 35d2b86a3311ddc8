"""Ways to run a model: under autocast, compiled, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sparsedet.analysis import FIRST_STAGE, Clock, Parts, stage_marks, timed
from sparsedet.modeling import TokenSparseDetector

from .cases import DTYPES, Case

EVENTS = 32  # more than a pass has stages
GRAPH_WARM_UP = 3


@contextmanager
def precision(case: Case) -> Iterator[None]:
    """The number format of a case."""
    dtype = DTYPES[case.dtype]
    with torch.autocast(
        torch.device(case.device).type, dtype=dtype, enabled=dtype != torch.float32
    ):
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
    model: TokenSparseDetector | None = None,
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
    model: TokenSparseDetector | None,
) -> Callable[[], Parts]:
    """Replays of a CUDA graph; the events that part the stages are nodes of the graph."""
    device = torch.device(case.device)
    if device.type != "cuda":
        raise ValueError(f"--cuda-graphs needs --device cuda, got {device}.")
    constants = HostConstants()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARM_UP):
            with constants.recorded():
                call()
    torch.cuda.current_stream(device).wait_stream(stream)
    events = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(EVENTS)]
    clock, graph = Clock(device, events), torch.cuda.CUDAGraph()
    with ExitStack() as marks:
        if model is not None:
            marks.enter_context(stage_marks(model, clock))
        with constants.replayed(), torch.cuda.graph(graph):
            clock.mark("total" if model is None else FIRST_STAGE)
            output = call()
            clock.mark("end")
    contexts.callback(lambda: (output, constants))  # the graph reads and writes their memory

    def run() -> Parts:
        graph.replay()
        return clock.parts()

    return run


class HostConstants(TorchFunctionMode):
    """Tensors that a pass makes of host numbers: kept from a warm-up, given again in a recording.

    A graph cannot hold a copy from the host that waits. For images of the same sizes these tensors
    are the same in every pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[Tensor] = []
        self._given: Iterator[Tensor] | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """A pass whose tensors are kept."""
        self._made, self._given = [], None
        with self:
            yield

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """A pass that gets the tensors of the last recorded one, in the same order."""
        self._given = iter(self._made)
        with self:
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.tensor, Tensor.new_tensor):
            return func(*args, **(kwargs or {}))
        if self._given is not None:
            return next(self._given)
        made = func(*args, **(kwargs or {}))
        self._made.append(made)
        return made
