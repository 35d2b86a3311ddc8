"""The training loop."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparsedet import comm
from sparsedet.checkpoint import CheckpointError, describe, non_finite, restore_model
from sparsedet.child_signals import undisturbed
from sparsedet.engine.ema import ModelEma
from sparsedet.engine.faults import is_end_of_worker
from sparsedet.engine.nonfinite import NonFiniteError, NonFiniteSteps
from sparsedet.engine.random_state import batch_seed, seed_everything
from sparsedet.engine.signals import StopTraining
from sparsedet.events import Recorder

if TYPE_CHECKING:
    from sparsedet.engine.hooks import Hook

__all__ = ["Trainer"]

Batch = Sequence[Mapping[str, Any]]


class Trainer:
    """Runs iterations; hooks do the rest (logs, checkpoints, evaluation).

    An iteration is one optimizer step over `accumulation_steps` batches. The learning rate of
    every group is its configured rate times `lr_multiplier(iteration / max_iter)`.

    Args:
        model: Called with a batch, returns a dict of weighted scalar losses; their sum is
            minimized. May be wrapped in DistributedDataParallel.
        batches: A function that takes a number of batches to skip and returns an endless iterator
            over the following ones.
        optimizer: Optimizes parameters of the model.
        lr_multiplier: A function of the fraction of the run that is done.
        max_iter: Iterations of the whole run.
        amp_dtype: Autocast to this type; float16 also scales the loss. None for full precision.
        clip_grad: Keyword arguments of `torch.nn.utils.clip_grad_norm_`, or None.
        accumulation_steps: Batches per optimizer step; their gradients are averaged.
        ema: A running average of the weights, updated after every step; None for no average.
        nonfinite: Handles steps whose loss or gradient is not finite. Such steps do not change
            model, optimizer, gradient scaler or average. None ends the run at the first one.
        seed: Seed of the run. Random numbers depend on it and on the index of the batch.

    Attributes:
        iteration: Iterations done.
        train_seconds: Seconds that they took.
        end_reason: Why the run is complete before `max_iter`.
        stop_requested: Whether the run stops after the current iteration, to be resumed later.
        stop_signal: The signal that asked this process to stop.
        interruptible: Whether such a signal may raise `StopTraining` immediately.
        fault: The error that ended the run, until the hooks have ended.
        is_whole: False while a step has been applied only in part.
    """

    iteration: int = 0
    train_seconds: float = 0.0
    end_reason: str | None = None
    stop_requested: bool = False
    stop_signal: int | None = None
    interruptible: bool = False
    fault: Exception | None = None
    is_whole: bool = True

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Iterator[Batch]],
        *,
        optimizer: torch.optim.Optimizer,
        lr_multiplier: ParamScheduler,
        max_iter: int,
        amp_dtype: torch.dtype | None = None,
        clip_grad: Mapping[str, Any] | None = None,
        accumulation_steps: int = 1,
        ema: ModelEma | None = None,
        nonfinite: NonFiniteSteps | None = None,
        seed: int = 0,
    ) -> None:
        _require_counts(max_iter=max_iter, accumulation_steps=accumulation_steps)
        self.model = model
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.ema = ema
        self.hooks: list[Hook] = []
        self.hook_state: dict[str, Any] = {}
        self.recorder = Recorder()
        self.device = next(model.parameters()).device
        self._batches = batches
        self._stream: Iterator[Batch] | None = None
        self._lr_multiplier = lr_multiplier
        self._base_lrs = [group["lr"] for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._amp_dtype = amp_dtype
        self._clip_grad = dict(clip_grad) if clip_grad is not None else None
        self._accumulation_steps = accumulation_steps
        self._run_seed = seed
        self._infinite_by_design = set(non_finite(self.unwrapped_model.state_dict()))  # masks
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)
        self._nonfinite = nonfinite or NonFiniteSteps()
        self._moving = _Moving(self.unwrapped_model)

    @property
    def at_end(self) -> bool:
        """Whether the run is complete: all iterations are done, or a hook set `end_reason`."""
        return self.iteration >= self.max_iter or self.end_reason is not None

    @property
    def unwrapped_model(self) -> nn.Module:
        """The model without the wrapper of distributed training."""
        if isinstance(self.model, DistributedDataParallel):
            return cast(nn.Module, self.model.module)
        return self.model

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate: the averaged one if there is one."""
        return self.ema.module if self.ema is not None else self.unwrapped_model

    def train(self) -> None:
        """Run from the current iteration until `at_end` or `stop_requested`.

        An error is kept as `fault` until the hooks have ended. Before that, the state returns to
        that of the last complete iteration; `is_whole` is False if this fails.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        begun: list[Hook] = []
        with self.recorder:
            try:
                for hook in self.hooks:
                    begun.append(hook)
                    hook.before_train(self)
                while not (self.at_end or self.stop_requested):
                    started = time.perf_counter()
                    self.run_iteration()
                    self.train_seconds += time.perf_counter() - started
                    for hook in self.hooks:
                        hook.after_iteration(self)
            except Exception as error:
                with undisturbed(forget=True):
                    self._go_back(error)
                if self.fault is not None:
                    raise
            finally:
                with undisturbed(forget=True), contextlib.ExitStack() as stack:
                    for hook in begun:
                        stack.callback(hook.after_train, self)

    def _go_back(self, error: Exception) -> None:
        """Return to the last complete iteration, and release what the failed one held."""
        workers_were_told = self.stop_signal is not None and is_end_of_worker(error)
        if isinstance(error, StopTraining) or workers_were_told:
            self.stop_requested = True
        else:
            self.fault = error
        traceback.clear_frames(error.__traceback__)  # they hold memory and open files
        self._stream = None
        self.recorder.go_back()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            self._moving.restore()
        except RuntimeError:  # a device that has failed cannot copy
            self.is_whole = False

    def run_iteration(self) -> None:
        """Run one optimizer step."""
        self._set_learning_rates()
        self._moving.keep()
        batches: list[Batch] = []
        losses: list[dict[str, torch.Tensor]] = []
        for step in range(self._accumulation_steps):
            place = self.iteration * self._accumulation_steps + step
            batches.append(self._next_batch(place))
            self._seed(place, "model")
            last = step == self._accumulation_steps - 1
            with undisturbed(), self._gradient_sync(last):
                losses.append(self._backward(batches[-1]))
        with undisturbed():
            self._step(losses, batches)
            self._moving.forget()
            self.recorder.settle()

    # --- one iteration --------------------------------------------------------------------------

    def _seed(self, place: int, user: str) -> None:
        seed_everything(batch_seed(self._run_seed, place, comm.get_rank(), user))

    def _next_batch(self, place: int) -> Batch:
        started = time.perf_counter()
        if self._stream is None:
            self._stream = self._batches(place)
        self._seed(place, "loader")  # after the iterator starts, since some draw then
        batch = next(self._stream)
        self.recorder.record("data_seconds", time.perf_counter() - started)
        return batch

    def _set_learning_rates(self) -> None:
        multiplier = self._lr_multiplier(self.iteration / self.max_iter)
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * multiplier

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if not last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _backward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with torch.autocast(
            self.device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None
        ):
            losses = self.model(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self._scaler.scale(total / self._accumulation_steps).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _step(self, losses: list[dict[str, torch.Tensor]], batches: list[Batch]) -> None:
        totals = torch.stack([torch.stack([v.float() for v in t.values()]).sum() for t in losses])
        finite, norm = self._check(totals)
        if finite:
            self.is_whole = False
            self._scaler.step(self.optimizer)
            self._scaler.update()
            self.iteration += 1
            if self.ema is not None:
                self.ema.update(self.unwrapped_model)
            self.is_whole = True
            self._nonfinite.taken()
            self._record(totals, losses, norm)
        else:
            value = None if norm is None else norm.item()
            self._nonfinite.skip(self.iteration, losses, batches, grad_norm=value)
            self._moving.restore()
            self.iteration += 1
        self.optimizer.zero_grad(set_to_none=True)

    def _check(self, totals: torch.Tensor) -> tuple[bool, torch.Tensor | None]:
        """Clip the gradient; return whether all processes can take the step, and the norm."""
        scaled = self._scaler.is_enabled()
        if scaled and not _finite_everywhere(totals):
            return False, None
        self._scaler.unscale_(self.optimizer)
        if self._clip_grad is not None:
            norm = nn.utils.clip_grad_norm_(self._parameters, **self._clip_grad)
        else:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        if scaled:  # the scaler skips non-finite gradients by itself and lowers its scale
            return True, norm
        return _finite_everywhere(torch.cat([totals, norm.reshape(1).to(totals)])), norm

    def _record(
        self,
        totals: torch.Tensor,
        losses: list[dict[str, torch.Tensor]],
        norm: torch.Tensor | None,
    ) -> None:
        for total, terms in zip(totals, losses, strict=True):
            self.recorder.record("loss", total)
            for name, term in terms.items():
                self.recorder.record(f"loss/{name}", term)
        if norm is not None and self._clip_grad is not None:
            self.recorder.record("grad_norm", norm)

    # --- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs; identical on all processes, without communication.

        Raises:
            NonFiniteError: If weights, averages or the optimizer's state are NaN or infinite.
        """
        state = {
            "model": self.unwrapped_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self._scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "iteration": self.iteration,
            "max_iter": self.max_iter,
            "train_seconds": self.train_seconds,
            "hooks": dict(self.hook_state),
        }
        self._require_finite(state)
        return state

    def _require_finite(self, state: Mapping[str, Any]) -> None:
        """Refuse to save a state that could not be resumed and would replace one that can."""
        found = non_finite({name: state[name] for name in ("model", "ema", "optimizer")})
        for name in list(found):
            if name.removeprefix("ema.").removeprefix("model.") in self._infinite_by_design:
                del found[name]
        if found:
            raise NonFiniteError(
                f"the model has diverged by iteration {self.iteration} although the losses were "
                f"finite: {describe(found)} are NaN or infinite. It is not saved, and earlier "
                "checkpoints are kept. Lower optimizer.lr."
            )

    def load_state_dict(self, state: Mapping[str, Any], path: Any = "given") -> None:
        """Restore the state of `state_dict`.

        Learning rates and other options of the optimizer remain those of the current config.

        Args:
            state: A full checkpoint.
            path: The file that it comes from, for messages.

        Raises:
            CheckpointError: If it is not a full checkpoint or does not fit this run.
        """
        absent = {"optimizer", "iteration"} - state.keys()
        if absent:
            raise CheckpointError(
                f"checkpoint {path} cannot be resumed: it has no {', '.join(sorted(absent))}. "
                "Use it as train.init_checkpoint."
            )
        restore_model(self.unwrapped_model, state["model"], path)
        self._load_optimizer(state["optimizer"], path)
        if self._scaler.is_enabled() and state.get("grad_scaler"):
            self._scaler.load_state_dict(state["grad_scaler"])
        if self.ema is not None:
            if not state.get("ema"):
                raise CheckpointError(
                    f"checkpoint {path} has no averaged weights. Set "
                    "train.model_ema.enabled=False, as in the run that wrote it."
                )
            self.ema.load_state_dict(state["ema"])
        self.iteration = state["iteration"]
        self.train_seconds = state["train_seconds"]
        self.hook_state = dict(state["hooks"])
        self.recorder.go_on(**state.get("recorded", {"averages": {}, "counts": {}}))

    def _load_optimizer(self, state: dict[str, Any], path: Any) -> None:
        options = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(state)
        except ValueError as error:
            raise CheckpointError(
                f"checkpoint {path} cannot be resumed: its optimizer has other parameter groups "
                f"({error}). Keep optimizer.params as in the run that wrote it."
            ) from error
        for group, values in zip(self.optimizer.param_groups, options, strict=True):
            group.update(values)


def _require_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"Trainer.{name} must be an integer of at least 1, got {value}. Set train.{name}."
            )


class _Moving:
    """A copy of a model's buffers, which an iteration changes before its step."""

    def __init__(self, model: nn.Module) -> None:
        self._places = [(m._buffers, name) for m in model.modules() for name in m._buffers]
        self._copies: list[torch.Tensor] = []
        self._moved = False

    def keep(self) -> None:
        """Copy the buffers before an iteration."""
        self._moved = True
        buffers = self._buffers()
        if [b.shape for b in buffers] != [c.shape for c in self._copies]:
            self._copies = [buffer.detach().clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self._copies, buffers)  # pyright: ignore[reportPrivateImportUsage]

    def forget(self) -> None:
        """Accept the changes: the iteration is complete."""
        self._moved = False

    def restore(self) -> None:
        """Restore the buffers after an incomplete iteration."""
        if self._moved and self._copies:
            torch._foreach_copy_(self._buffers(), self._copies)  # pyright: ignore[reportPrivateImportUsage]

    def _buffers(self) -> list[torch.Tensor]:
        found = [buffers[name] for buffers, name in self._places]
        return [buffer for buffer in found if buffer is not None]


def _finite_everywhere(values: torch.Tensor) -> bool:
    """Whether all values are finite, on all processes."""
    finite = torch.isfinite(values.detach()).all().float()
    return comm.all_reduce_mean(finite).item() == 1.0
