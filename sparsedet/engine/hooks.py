"""What hangs on the training loop: stopping, logs, evaluation, checkpoints.

The order matters and is: `StopHook`, `LogHook`, `CheckpointHook`, `EvalHook`, `PictureHook`.
Whatever happens in an evaluation, the iterations before it are then saved.
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
    """Called by the trainer; does nothing by itself."""

    def before_train(self, trainer: Trainer) -> None:
        """Before the first iteration of this process."""

    def after_iteration(self, trainer: Trainer) -> None:
        """After an iteration; `trainer.iteration` counts it."""

    def after_train(self, trainer: Trainer) -> None:
        """When the loop has ended, also by an exception."""


class StopHook(Hook):
    """Ends the run after the present iteration when any of its processes is told to stop.

    It listens to SIGINT, SIGTERM, SIGHUP and SIGUSR1, which SLURM sends before it takes a machine
    away. A signal that is ignored when the run begins stays ignored: that is what `nohup` is for.
    An evaluation is broken off, with several processes between two batches. A second SIGINT ends
    the process at once; a second of the others has no effect, since launchers and schedulers often
    send it twice.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    def before_train(self, trainer: Trainer) -> None:
        """Listen, if this is the main thread (others may not)."""
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
        """Agree with the other processes, also on the signal."""
        trainer.stop_signal = comm.smallest(trainer.stop_signal)
        trainer.stop_requested = trainer.stop_requested or trainer.stop_signal is not None

    def after_train(self, trainer: Trainer) -> None:
        """Listen no more; agree on the signal where an evaluation was broken off.

        With several processes it goes on listening after a signal: the others pass it on, which
        may be after this process has stopped.
        """
        if trainer.stop_requested and trainer.fault is None:
            trainer.stop_signal = comm.smallest(trainer.stop_signal)
        if trainer.stop_signal is not None and comm.get_world_size() > 1:
            return
        while self._previous:
            signal.signal(*self._previous.popitem())


# iterations of this process after which a person is told something before the first row
_EARLY = (1, 2, 5, 10)


class LogHook(Hook):
    """Averages over the last iterations, to the writers.

    Rows hold `loss`, its terms as `loss/<term>`, what was logged through `events`, `lr` (of the
    fastest group), `seconds_per_iteration`, `data_seconds`, `epoch` where its length is known and,
    on an accelerator, `memory_mb`.

    Args:
        period: Iterations per row.
        writers: Where rows go, on the main process.
        console: Also told of every single iteration, and of the averages so far after the first
            ones, which a person waits for.
        iterations_per_epoch: For `epoch`; None where it is not known.
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
        """Write a row when it is time, and at the end."""
        if self._console is not None:
            self._console.advance(trainer.iteration)
        if trainer.iteration % self._period and trainer.iteration != trainer.max_iter:
            if self._console is not None and trainer.iteration - self._start in _EARLY:
                scalars = trainer.recorder.averages()
                self._console.write(trainer.iteration, scalars | self._facts(trainer))
            return
        started = time.perf_counter()
        scalars = _mean_over_processes(trainer.recorder.flush())
        trainer.train_seconds += time.perf_counter() - started  # the device's share
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
    """Evaluates now and then and at the end, keeps the best weights, and may end the run early.

    `trainer.hook_state["eval"]` holds the last results, the best value and the number of
    evaluations since it (`stale`), so that a resumed run neither repeats nor misses an evaluation
    and ends where it would have ended.

    Args:
        period: Iterations between evaluations; 0 for one at the end alone.
        evaluate: Called with the model to evaluate, on every process; returns (nested) metrics on
            the main one and leaves the model in the mode it was in.
        writers: Take the metrics as `eval/<name>`.
        store: Takes `model_best.pth`.
        checkpoint: Saves the state before each evaluation, and again with its results.
        best_metric: Name of the metric to keep the best weights by, as `"bbox/AP"`.
        patience: Evaluations in a row without a better value of `best_metric` after which the run
            ends; None for no such end.
        extra: Kept beside the best weights.
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
        """Do what was due where the run stopped."""
        done = trainer.hook_state.get("eval", {}).get("iteration")
        if trainer.iteration and done != trainer.iteration:
            self.after_iteration(trainer)
        elif done is not None:
            self._end_if_stale(trainer)

    def after_iteration(self, trainer: Trainer) -> None:
        """Evaluate when it is time."""
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
        """End the run if the patience is used up; all processes call it together."""
        if self._patience is None or trainer.iteration >= trainer.max_iter:
            return
        # a process other than the main one knows what it resumed from, and no more
        stale = trainer.hook_state.get("eval", {}).get("stale", 0)
        if comm.any_process(comm.is_main_process() and stale >= self._patience):
            trainer.end_reason = (
                f"early stopping: no better {self._best_metric} in {self._patience} evaluations"
            )
            logger.info("the run ends at iteration %d, %s", trainer.iteration, trainer.end_reason)

    def _run(self, trainer: Trainer) -> dict[str, Any]:
        trainer.interruptible = comm.get_world_size() == 1
        try:
            if trainer.interruptible and trainer.stop_signal is not None:  # it came just before
                raise StopTraining
            # since its last step a process has moved them by its own images
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
                "the evaluation gives no %s (it gives %s): no best weights are kept. Set "
                "train.best_metric.",
                self._best_metric,
                ", ".join(metrics) or "nothing",
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
    """Numbers of nested dicts, by path: `{"bbox": {"AP": 30.0}}` gives `{"bbox/AP": 30.0}`.

    NaN, which evaluators give where there is nothing to find, is no number.
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
    """Full checkpoints now and then, at the end and when the run ends before; the final weights.

    After a fault the file holds the last whole iteration, and the run can be resumed from there.
    Nothing is saved of a run that ends since its losses are not finite.

    Args:
        store: Where they go.
        period: Iterations between checkpoints; 0 for one at the end alone.
        extra: Kept in every file, such as the config.
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
        """Remember where the run was resumed."""
        self._saved_at = trainer.iteration

    def after_iteration(self, trainer: Trainer) -> None:
        """Save when it is time."""
        due = self._period > 0 and trainer.iteration % self._period == 0
        if due or trainer.at_end:
            self.save(trainer)

    def save(self, trainer: Trainer, *, anew: bool = False) -> None:
        """Save the state, which every process calls for, and at the end the final weights.

        Args:
            trainer: Of the run.
            anew: Also where its iteration is saved, since more is known of it by now.
        """
        if self._saved_at == trainer.iteration and not anew:
            return
        state = trainer.state_dict() | {"recorded": _recorded(trainer)}
        if trainer.at_end and comm.is_main_process():  # first: whoever resumes looks at the others
            weights = {"model": trainer.eval_model.state_dict(), "iteration": trainer.iteration}
            self._store.save_weights(weights | self._extra, "final")
        self._write(trainer, state)

    def after_train(self, trainer: Trainer) -> None:
        """Save where a run that ended before its end can be taken up again."""
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
        except Exception as error:  # the fault itself is what a person has to hear of
            logger.warning(
                "iteration %d could not be saved: %s", trainer.iteration, explain(error).sentence
            )

    def _write(self, trainer: Trainer, state: dict[str, Any]) -> None:
        if comm.is_main_process():
            with unhurried():
                self._store.save(state | self._extra, trainer.iteration)
        self._saved_at = trainer.iteration


def _recorded(trainer: Trainer) -> dict[str, Any]:
    """What the next row of a resumed run averages beside its own iterations."""
    averages = _mean_over_processes(trainer.recorder.averages())
    return {"averages": averages, "counts": trainer.recorder.counts()}
