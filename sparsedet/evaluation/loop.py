"""Run a model over a test loader."""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from sparsedet import comm

_WARMUP_BATCHES = 2

Sample = dict[str, Any]


class EvaluationStopped(Exception):
    """An evaluation was stopped on request."""


class Evaluator(Protocol):
    """The interface of evaluators, the same as detectron2's."""

    def reset(self) -> None:
        """Forget everything that was processed."""
        ...

    def process(self, inputs: list[Sample], outputs: list[dict[str, Any]]) -> None:
        """Process the samples of a batch and the model's outputs, in the same order."""
        ...

    def evaluate(self) -> dict[str, Any] | None:
        """Results over everything processed; all processes call it, the main one needs a result."""
        ...


def evaluate(
    model: nn.Module,
    loader: Iterable[list[Sample]],
    evaluator: Evaluator,
    *,
    progress: Callable[[int], None] | None = None,
    is_stopped: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Run a model over a loader without gradients and evaluate its outputs.

    Args:
        model: called in eval mode with a list of samples; returns a list of dicts with `instances`
            and optionally `keep_ratio` (share of the tokens kept, in [0, 1]) and `tiles` (the
            tiles that it chose). Its mode is restored afterwards.
        loader: batches of samples.
        evaluator: receives samples and outputs.
        progress: called with the number of images after every batch of this process.
        is_stopped: called before every batch; True stops the evaluation in all processes.

    Returns:
        The evaluator's results; its `details`, if it has any; and, over all processes:
        `num_images`; `keep_ratio`, the mean over the images (None if the model does not report
        it); `seconds_per_image`, the time of the model alone. The first batches are a warm-up and
        are not timed, unless there are no others.

    Raises:
        EvaluationStopped: `is_stopped` returned True in a process.
    """
    evaluator.reset()
    keep_ratios: list[float] = []
    timings: list[tuple[float, int]] = []
    with _eval_mode(model), torch.inference_mode():
        for batch in loader if is_stopped is None else _until(is_stopped, loader):
            started = time.perf_counter()
            outputs = [_to_host(output) for output in model(batch)]
            timings.append((time.perf_counter() - started, len(batch)))
            keep_ratios += [float(o["keep_ratio"]) for o in outputs if "keep_ratio" in o]
            evaluator.process(batch, outputs)
            if progress is not None:
                progress(len(batch))
    found = evaluator.evaluate() or {}  # detectron2's return results only on the main process
    results = {**found, **_totals(keep_ratios, timings)}
    details = getattr(evaluator, "details", None)  # evaluators of other libraries have none
    return results if details is None else {**results, "details": details}


def main_metrics(results: Mapping[str, Any]) -> dict[str, str]:
    """The main metrics, in percent except `keep_ratio`.

    These are AP, also by size, the share of tiles that were chosen, and the share of objects in
    the chosen tiles.

    Args:
        results: what `evaluate` returns, with any evaluator of boxes.
    """
    found = {
        name: f"{value:.1f}"
        for name, value in results.get("bbox", {}).items()
        if re.fullmatch(r"AP(50|75|[a-z]+)?", name)
    }
    tiles = results.get("tiles", {})
    names = {"looked": "looked", "recall": "tile_recall"}
    found |= {shown: f"{tiles[name]:.1f}" for name, shown in names.items() if name in tiles}
    if results.get("keep_ratio") is not None:
        found["keep_ratio"] = f"{results['keep_ratio']:.3f}"
    return {name: "-" if text == "nan" else text for name, text in found.items()}


def _until(is_stopped: Callable[[], bool], loader: Iterable[Any]) -> Iterator[Any]:
    """The batches until `is_stopped`; then raise in all processes if any was told to stop."""
    for batch in loader:
        if is_stopped():
            break
        yield batch
    if comm.any_process(is_stopped()):
        raise EvaluationStopped


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _to_host(output: dict[str, Any]) -> dict[str, Any]:
    # The copy waits for the device, so the measured time includes the computation.
    return {name: x.to("cpu") if hasattr(x, "to") else x for name, x in output.items()}


def _totals(keep_ratios: list[float], timings: list[tuple[float, int]]) -> dict[str, Any]:
    timed = timings[_WARMUP_BATCHES:] or timings
    row = (
        sum(keep_ratios),
        len(keep_ratios),
        sum(seconds for seconds, _ in timed),
        sum(count for _, count in timed),
        sum(count for _, count in timings),
    )
    kept, num_kept, seconds, num_timed, images = (
        sum(column) for column in zip(*comm.all_gather(row), strict=True)
    )
    return {
        "num_images": images,
        "keep_ratio": kept / num_kept if num_kept else None,
        "seconds_per_image": seconds / num_timed if num_timed else None,
    }
