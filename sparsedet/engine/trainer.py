"""The training loop: model, batches and optimizer in, a trained model out."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparsedet import comm
from sparsedet.checkpoint import CheckpointError, restore_model
from sparsedet.engine.ema import ModelEma
from sparsedet.engine.nonfinite import NonFiniteError
from sparsedet.engine.random_state import get_random_state, seed_everything, set_random_state
from sparsedet.events import Recorder

if TYPE_CHECKING:
    from sparsedet.engine.hooks import Hook

__all__ = ["StopTraining", "Trainer"]

Batch = Sequence[Mapping[str, Any]]

_ADVICE = (
    "Nothing was saved after the last checkpoint. Look at these images and their boxes, or lower "
    "optimizer.lr."
)


class StopTraining(Exception):
    """The process was told to stop; training is as it was after the last whole iteration."""


@dataclass(frozen=True)
class _Pending:
    """A finiteness flag on its way from the device, and what to say if it is False."""

    iteration: int
    flag: torch.Tensor
    event: torch.Event
    explain: Callable[[], str]


class Trainer:
    """Runs iterations; hooks do the rest (logs, checkpoints, evaluation).

    An iteration is one optimizer step over `accumulation_steps` batches. The learning rate of
    every group is its configured one times `lr_multiplier(iteration / max_iter)`.

    Args:
        model: Called with a batch, returns a dict of weighted scalar losses; their sum is
            minimized. May be wrapped in DistributedDataParallel.
        batches: Given a number of batches to skip, an endless stream of the following ones.
        optimizer: Over parameters of the model.
        lr_multiplier: A function of the fraction of the run done.
        max_iter: Iterations of the whole run.
        amp_dtype: Autocast to this type; float16 also scales the loss. None for full precision.
        clip_grad: Keyword arguments of `torch.nn.utils.clip_grad_norm_`, or None.
        accumulation_steps: Batches per optimizer step, their gradients averaged.
        ema: Follows the model after every step, if given.
        seed: Seeds a resumed process that has no saved random state (other number of processes).
    """

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
        seed: int = 0,
    ) -> None:
        for name, value in (("max_iter", max_iter), ("accumulation_steps", accumulation_steps)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"Trainer.{name} must be an integer of at least 1, got {value}. "
                    f"Set train.{name}."
                )
        self.model = model
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.ema = ema
        self.iteration = 0
        self.train_seconds = 0.0
        self.end_reason: str | None = None
        self.stop_requested = False
        self.stop_signal: int | None = None
        self.interruptible = False
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
        self._seed = seed
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)
        self._pending: deque[_Pending] = deque()
        self._loaded_random_state: dict[str, Any] | None = None

    @property
    def at_end(self) -> bool:
        """Whether the run is complete: all iterations are done, or a hook gave an `end_reason`."""
        return self.iteration >= self.max_iter or self.end_reason is not None

    @property
    def unwrapped_model(self) -> nn.Module:
        """The model without the wrapper of distributed training."""
        if isinstance(self.model, DistributedDataParallel):
            return cast(nn.Module, self.model.module)
        return self.model

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate: the averaged one where there is one."""
        return self.ema.module if self.ema is not None else self.unwrapped_model

    def train(self) -> None:
        """Run from the present iteration until `at_end` or `stop_requested`."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.recorder)
            for hook in self.hooks:
                stack.callback(hook.after_train, self)
                hook.before_train(self)
            while not (self.at_end or self.stop_requested):
                started = time.perf_counter()
                try:
                    self.run_iteration()
                except StopTraining:
                    self.stop_requested = True
                    break
                self.train_seconds += time.perf_counter() - started
                for hook in self.hooks:
                    hook.after_iteration(self)
            self.settle()

    def run_iteration(self) -> None:
        """One optimizer step."""
        self._set_learning_rates()
        batch: Batch = ()
        for step in range(self._accumulation_steps):
            batch = self._next_batch()
            self._settle_before(self.iteration - 1)
            last = step == self._accumulation_steps - 1
            with self._gradient_sync(last):
                self._backward(batch)
        self._step(batch)
        self.iteration += 1
        if self.ema is not None:
            self.ema.update(self.unwrapped_model)

    def settle(self) -> None:
        """Raise if any loss or gradient up to here was not finite.

        On an accelerator the flags travel without stalling it: an iteration is checked when the
        one after the next begins, so that the next one's forward is started while the backward
        still runs. What evaluates or writes a checkpoint calls this first.
        """
        self._settle_before(self.iteration + 1)

    def _settle_before(self, iteration: int) -> None:
        while self._pending and self._pending[0].iteration < iteration:
            item = self._pending.popleft()
            item.event.synchronize()
            if not item.flag.item():
                raise NonFiniteError(item.explain())

    # --- one iteration --------------------------------------------------------------------------

    def _next_batch(self) -> Batch:
        started = time.perf_counter()
        if self._stream is None:
            self._stream = self._batches(self.iteration * self._accumulation_steps)
        try:
            batch = next(self._stream)
        except RuntimeError:  # workers that were told to stop as well
            if self.stop_signal is None:
                raise
            raise StopTraining from None
        if self._loaded_random_state is not None:  # after the loader has drawn what it needs
            set_random_state(self._loaded_random_state, self.device)
            self._loaded_random_state = None
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

    def _backward(self, batch: Batch) -> None:
        with torch.autocast(
            self.device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None
        ):
            losses = self.model(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        terms = {name: loss.detach() for name, loss in losses.items()}
        iteration = self.iteration
        self._watch(total, lambda: _explain_loss(terms, batch, iteration))
        self.recorder.record("loss", total)
        for name, term in terms.items():
            self.recorder.record(f"loss/{name}", term)
        self._scaler.scale(total / self._accumulation_steps).backward()

    def _step(self, batch: Batch) -> None:
        self._scaler.unscale_(self.optimizer)
        if self._clip_grad is not None:
            norm = nn.utils.clip_grad_norm_(self._parameters, **self._clip_grad)
            self.recorder.record("grad_norm", norm)
            if not self._scaler.is_enabled():  # a scaler skips such steps by itself
                iteration = self.iteration
                self._watch(norm, lambda: _explain_gradient(batch, iteration))
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _watch(self, value: torch.Tensor, explain: Callable[[], str]) -> None:
        flag = torch.isfinite(value.detach())
        if self.device.type == "cpu":
            if not flag.item():
                raise NonFiniteError(explain())
            return
        flag = flag.to("cpu", non_blocking=True)
        event = torch.Event(self.device)
        event.record()
        self._pending.append(_Pending(self.iteration, flag, event, explain))

    # --- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs. Every process must call it, and gets the same."""
        self.settle()
        return {
            "model": self.unwrapped_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self._scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "iteration": self.iteration,
            "max_iter": self.max_iter,
            "train_seconds": self.train_seconds,
            "random_states": comm.all_gather(get_random_state(self.device)),
            "hooks": dict(self.hook_state),
        }

    def load_state_dict(self, state: Mapping[str, Any], path: Any = "given") -> None:
        """Go on from `state_dict`.

        Learning rates and other options of the optimizer stay those of the present config.

        Args:
            state: A full checkpoint.
            path: Where it comes from, for messages.

        Raises:
            CheckpointError: If it is not a full checkpoint or does not fit this run.
        """
        absent = {"optimizer", "iteration", "random_states"} - state.keys()
        if absent:
            raise CheckpointError(
                f"checkpoint {path} cannot be resumed: it holds no {', '.join(sorted(absent))}. "
                "Use it as train.init_checkpoint."
            )
        restore_model(self.unwrapped_model, state["model"], path)
        self._load_optimizer(state["optimizer"], path)
        if self._scaler.is_enabled() and state.get("grad_scaler"):
            self._scaler.load_state_dict(state["grad_scaler"])
        if self.ema is not None:
            if not state.get("ema"):
                raise CheckpointError(
                    f"checkpoint {path} holds no averaged weights. Set "
                    "train.model_ema.enabled=False, as in the run that wrote it."
                )
            self.ema.load_state_dict(state["ema"])
        self.iteration = state["iteration"]
        self.train_seconds = state["train_seconds"]
        self.hook_state = dict(state["hooks"])
        self._load_random_state(state["random_states"])

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

    def _load_random_state(self, states: list[dict[str, Any]]) -> None:
        if len(states) == comm.get_world_size():
            self._loaded_random_state = states[comm.get_rank()]
            set_random_state(self._loaded_random_state, self.device)
        else:
            seed_everything(self._seed + self.iteration * 1009 + comm.get_rank())


def _explain_loss(terms: Mapping[str, torch.Tensor], batch: Batch, iteration: int) -> str:
    values = {name: float(term) for name, term in terms.items()}
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    return (
        f"the loss is not finite at iteration {iteration}: {', '.join(bad) or 'sum of all terms'}; "
        f"images {_image_ids(batch)}. {_ADVICE}"
    )


def _explain_gradient(batch: Batch, iteration: int) -> str:
    return (
        f"the gradient is not finite at iteration {iteration} although the loss is; last images "
        f"{_image_ids(batch)}. {_ADVICE}"
    )


def _image_ids(batch: Batch) -> str:
    return ", ".join(str(sample.get("image_id", "?")) for sample in batch)
