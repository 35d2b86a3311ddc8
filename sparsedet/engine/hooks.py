"""Hooks of the training loop: stopping, logs, evaluation, checkpoints.

Their order must be: `StopHook`, `LogHook`, `CheckpointHook`, `EvalHook`, `PictureHook`. Then the
state is saved before each evaluation, and an error in an evaluation loses no iterations.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparsedet import comm
from sparsedet.checkpoint import CheckpointStore
from sparsedet.engine.faults import explain
from sparsedet.engine.nonfinite import NonFiniteError
from sparsedet.engine.peers import unhurried
from sparsedet.engine.signals import STOP_SIGNALS, StopTraining
from sparsedet.engine.trainer import Trainer
from sparsedet.events import ConsoleWriter, Writer

__all__ = [
    "CheckpointHook",
    "EvalHook",
    "Hook",
    "LogHook",
    "StopHook",
    "flatten_metrics",
    "plain_metrics",
]

logger = logging.getLogger(__name__)


class Hook:
    """Base class of hooks; the trainer calls its methods, which do nothing by default."""

    def before_train(self, trainer: Trainer) -> None:
        """Before the first iteration of this process."""

    def after_iteration(self, trainer: Trainer) -> None:
        """After an iteration; `trainer.iteration` counts it."""

    def after_train(self, trainer: Trainer) -> None:
        """After the loop has ended, even if by an exception."""


class StopHook(Hook):
    """Stops the run after the current iteration when any of its processes is told to stop.

    It handles SIGINT, SIGTERM, SIGHUP and SIGUSR1 (SLURM sends such a signal before it takes a
    machine away). A signal that is ignored when the run starts stays ignored, as `nohup` requires.
    An evaluation is interrupted; with several processes, between two batches. A second SIGINT ends
    the process immediately. A second signal of another kind has no effect, since launchers and
    schedulers often send signals twice.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    def before_train(self, trainer: Trainer) -> None:
        """Install the signal handlers; only the main thread can do this."""
        if threading.current_thread() is not threading.main_thread():
            return
        owner = os.getpid()

        def handle(number: int, frame: Any) -> None:
            if os.getpid() != owner:  # a worker of the data loader: its parent ends it
                return
            if number == signal.SIGINT:
                signal.signal(number, signal.default_int_handler)
            if trainer.stop_signal is not None:
                return
            trainer.stop_signal = number
            if trainer.interruptible:
                raise StopTraining

        for number in STOP_SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not Python's
                self._previous[number] = signal.signal(number, handle)

    def after_iteration(self, trainer: Trainer) -> None:
        """Agree with the other processes on whether to stop and on the signal."""
        trainer.stop_signal = comm.smallest(trainer.stop_signal)
        trainer.stop_requested = trainer.stop_requested or trainer.stop_signal is not None

    def after_train(self, trainer: Trainer) -> None:
        """Agree on the signal if an evaluation was interrupted, and remove the handlers.

        With several processes the handlers stay after a signal, since the other processes may
        forward the signal after this one has stopped.
        """
        if trainer.stop_requested and trainer.fault is None:
            trainer.stop_signal = comm.smallest(trainer.stop_signal)
        if trainer.stop_signal is not None and comm.get_world_size() > 1:
            return
        while self._previous:
            signal.signal(*self._previous.popitem())


# iterations of this process after which the console shows averages before the first row
_EARLY = (1, 2, 5, 10)


class LogHook(Hook):
    """Sends averages over the last iterations to the writers.

    Rows have `loss`, its terms as `loss/<term>`, scalars logged through `events`, `lr` (the highest
    of all groups), `seconds_per_iteration`, `data_seconds`, `epoch` if its length is known and, on
    an accelerator, `memory_mb`.

    Args:
        period: Iterations per row.
        writers: Receive the rows, on the main process.
        console: Also shows the progress of every iteration, and the averages after the first few
            iterations, so that a user need not wait for the first row.
        iterations_per_epoch: For `epoch`; None if unknown.
    """

    def __init__(
        self,
        period: int,
        writers: Sequence[Writer],
        *,
        console: ConsoleWriter | None = None,
        iterations_per_epoch: float | None = 1.0,
    ) -> None:
        if period < 1:
            raise ValueError(
                f"LogHook.period must be at least 1, got {period}. Set train.log_period."
            )
        self._period = period
        self._writers = list(writers) + ([console] if console is not None else [])
        self._console = console
        self._iterations_per_epoch = iterations_per_epoch
        self._start = 0
        self._last = (0, 0.0)

    def before_train(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._start = trainer.iteration
        self._last = (trainer.iteration, trainer.train_seconds)

    def after_iteration(self, trainer: Trainer) -> None:
        """Write a row every `period` iterations, and at the end."""
        if self._console is not None:
            self._console.advance(trainer.iteration)
        if trainer.iteration % self._period and trainer.iteration != trainer.max_iter:
            if self._console is not None and trainer.iteration - self._start in _EARLY:
                scalars = trainer.recorder.averages()
                self._console.write(trainer.iteration, scalars | self._facts(trainer))
            return
        started = time.perf_counter()
        scalars = _mean_over_processes(trainer.recorder.flush())
        trainer.train_seconds += time.perf_counter() - started  # flushing waited for the device
        scalars |= self._facts(trainer)
        self._last = (trainer.iteration, trainer.train_seconds)
        for writer in self._writers:
            writer.write(trainer.iteration, scalars)

    def _facts(self, trainer: Trainer) -> dict[str, float]:
        iteration, seconds = self._last
        elapsed = trainer.train_seconds - seconds
        facts = {
            "lr": max(group["lr"] for group in trainer.optimizer.param_groups),
            "seconds_per_iteration": elapsed / (trainer.iteration - iteration),
        }
        if self._iterations_per_epoch is not None:
            facts["epoch"] = trainer.iteration / self._iterations_per_epoch
        if trainer.device.type != "cpu":
            facts["memory_mb"] = torch.accelerator.max_memory_allocated(trainer.device) / 2**20
        return facts

    def after_train(self, trainer: Trainer) -> None:
        """Close the writers."""
        for writer in self._writers:
            writer.close()


def _mean_over_processes(scalars: dict[str, float]) -> dict[str, float]:
    rows = comm.all_gather(scalars)
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(series) / len(series) for name, series in values.items()}


class EvalHook(Hook):
    """Evaluates periodically and at the end, saves the best weights, and may end the run early.

    `trainer.hook_state["eval"]` holds the last results, the best value and the number of
    evaluations since then (`stale`), so that a resumed run neither repeats nor misses an evaluation
    and stops early at the same iteration.

    Args:
        period: Iterations between evaluations; 0 = only at the end.
        evaluate: Called with the model to evaluate, on every process; returns (nested) metrics on
            the main process and leaves the model in its previous mode.
        writers: Receive the metrics as `eval/<name>`.
        store: Writes `model_best.pth`.
        checkpoint: Saves the state before each evaluation, and again with its results.
        best_metric: Name of the metric that decides which weights are best, such as `"bbox/AP"`.
        patience: The run ends after this many evaluations in a row without a better value of
            `best_metric`; None = no early stopping.
        extra: Saved with the best weights.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[nn.Module], Mapping[str, Any]],
        *,
        writers: Sequence[Writer] = (),
        store: CheckpointStore | None = None,
        checkpoint: CheckpointHook | None = None,
        best_metric: str = "bbox/AP",
        patience: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if period < 0:
            raise ValueError(
                f"EvalHook.period must be 0 or more, got {period}. Set train.eval_period."
            )
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise ValueError(
                f"EvalHook.patience must be None or an integer of at least 1, got {patience}. Set "
                "train.early_stopping.patience."
            )
        if patience is not None and period == 0:
            raise ValueError(
                f"EvalHook.patience={patience} needs evaluations before the end, got period 0. Set "
                "train.eval_period, or train.early_stopping.patience=null."
            )
        self._period = period
        self._evaluate = evaluate
        self._writers = list(writers)
        self._store = store
        self._checkpoint = checkpoint
        self._best_metric = best_metric
        self._patience = patience
        self._extra = dict(extra or {})

    def before_train(self, trainer: Trainer) -> None:
        """Run an evaluation that was due when the run stopped."""
        done = trainer.hook_state.get("eval", {}).get("iteration")
        if trainer.iteration and done != trainer.iteration:
            self.after_iteration(trainer)
        elif done is not None:
            self._end_if_stale(trainer)

    def after_iteration(self, trainer: Trainer) -> None:
        """Evaluate every `period` iterations and at the end."""
        at_end = trainer.iteration >= trainer.max_iter
        due = at_end or (self._period > 0 and trainer.iteration % self._period == 0)
        if not due or trainer.stop_requested:
            return
        if self._checkpoint is not None:
            self._checkpoint.save(trainer)
        results = self._run(trainer)
        if comm.is_main_process():
            self._keep(trainer, results)
        self._end_if_stale(trainer)
        if self._checkpoint is not None:
            self._checkpoint.save(trainer, anew=True)

    def _end_if_stale(self, trainer: Trainer) -> None:
        """End the run if the patience is exhausted; all processes call this together."""
        if self._patience is None or trainer.iteration >= trainer.max_iter:
            return
        # processes other than the main one know only the state that they resumed from
        stale = trainer.hook_state.get("eval", {}).get("stale", 0)
        if comm.any_process(comm.is_main_process() and stale >= self._patience):
            trainer.end_reason = (
                f"early stopping: no better {self._best_metric} in {self._patience} evaluations"
            )
            logger.info("the run ends at iteration %d, %s", trainer.iteration, trainer.end_reason)

    def _run(self, trainer: Trainer) -> dict[str, Any]:
        trainer.interruptible = comm.get_world_size() == 1
        try:
            if (
                trainer.interruptible and trainer.stop_signal is not None
            ):  # it came just before this
                raise StopTraining
            # each process has updated its buffers with its own images
            comm.broadcast(trainer.eval_model.buffers())
            return plain_metrics(self._evaluate(trainer.eval_model))
        finally:
            trainer.interruptible = False

    def _keep(self, trainer: Trainer, results: dict[str, Any]) -> None:
        metrics = flatten_metrics(results)
        state = trainer.hook_state.get("eval", {})
        best, stale = state.get("best"), state.get("stale", 0)
        value = metrics.get(self._best_metric)
        if value is None:
            logger.warning(
                "the evaluation has no metric %s (its metrics: %s): no best weights are "
                "saved. Set train.best_metric.",
                self._best_metric,
                ", ".join(metrics) or "none",
            )
        elif best is None or value > best["value"]:
            best = {"metric": self._best_metric, "value": value, "iteration": trainer.iteration}
            stale = 0
            self._save_best(trainer, best)
        else:
            stale += 1
        trainer.hook_state["eval"] = {
            "iteration": trainer.iteration,
            "results": results,
            "best": best,
            "stale": stale,
        }
        for writer in self._writers:
            writer.write(trainer.iteration, {f"eval/{name}": v for name, v in metrics.items()})

    def _save_best(self, trainer: Trainer, best: dict[str, Any]) -> None:
        if self._store is not None:
            weights = {"model": trainer.eval_model.state_dict(), "best": best}
            self._store.save_weights(weights | self._extra, "best")


def flatten_metrics(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested dicts by path: `{"bbox": {"AP": 30.0}}` gives `{"bbox/AP": 30.0}`.

    NaN, which evaluators give if there are no objects, is left out.
    """
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat |= flatten_metrics(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not math.isnan(value):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def plain_metrics(value: Any) -> Any:
    """Metrics as plain Python values, which checkpoints and JSON can hold."""
    if isinstance(value, Mapping):
        return {str(name): plain_metrics(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_metrics(item) for item in value]
    return value.item() if hasattr(value, "item") else value


class CheckpointHook(Hook):
    """Saves full checkpoints periodically and when the run ends or stops, and the final weights.

    After a fault the last complete iteration is saved, so that the run can be resumed from there.
    If a run ends because its losses are not finite, nothing is saved.

    Args:
        store: Writes the checkpoints.
        period: Iterations between checkpoints; 0 = only at the end.
        extra: Saved in every file, such as the config.
    """

    def __init__(
        self, store: CheckpointStore, period: int, *, extra: Mapping[str, Any] | None = None
    ) -> None:
        if period < 0:
            raise ValueError(
                f"CheckpointHook.period must be 0 or more, got {period}. Set "
                "train.checkpointer.period."
            )
        self._store = store
        self._period = period
        self._extra = dict(extra or {})
        self._saved_at = 0

    def before_train(self, trainer: Trainer) -> None:
        """Remember the iteration at which the run was resumed."""
        self._saved_at = trainer.iteration

    def after_iteration(self, trainer: Trainer) -> None:
        """Save every `period` iterations and at the end."""
        due = self._period > 0 and trainer.iteration % self._period == 0
        if due or trainer.at_end:
            self.save(trainer)

    def save(self, trainer: Trainer, *, anew: bool = False) -> None:
        """Save the state, and at the end also the final weights; every process calls this.

        Args:
            trainer: The trainer of the run.
            anew: Save again even if this iteration is already saved, since its state has changed.
        """
        if self._saved_at == trainer.iteration and not anew:
            return
        state = trainer.state_dict() | {"recorded": _recorded(trainer)}
        if trainer.at_end and comm.is_main_process():  # first, since resuming reads the checkpoint
            weights = {"model": trainer.eval_model.state_dict(), "iteration": trainer.iteration}
            self._store.save_weights(weights | self._extra, "final")
        self._write(trainer, state)

    def after_train(self, trainer: Trainer) -> None:
        """Save the state of a run that stopped early, so that it can be resumed."""
        if trainer.fault is None and trainer.stop_requested:
            self.save(trainer)
        elif trainer.fault is not None and self._saved_at != trainer.iteration:
            self._save_after_fault(trainer)

    def _save_after_fault(self, trainer: Trainer) -> None:
        if not trainer.is_whole or isinstance(trainer.fault, NonFiniteError):
            return
        try:
            state = trainer.state_dict()
            if comm.get_world_size() == 1:  # others may be gone
                state["recorded"] = _recorded(trainer)
            self._write(trainer, state)
        except Exception as error:  # the fault itself is what the user must see
            logger.warning(
                "iteration %d could not be saved: %s", trainer.iteration, explain(error).sentence
            )

    def _write(self, trainer: Trainer, state: dict[str, Any]) -> None:
        if comm.is_main_process():
            with unhurried():
                self._store.save(state | self._extra, trainer.iteration)
        self._saved_at = trainer.iteration


def _recorded(trainer: Trainer) -> dict[str, Any]:
    """Averages since the last row, which the next row of a resumed run includes."""
    averages = _mean_over_processes(trainer.recorder.averages())
    return {"averages": averages, "counts": trainer.recorder.counts()}
