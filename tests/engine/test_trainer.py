"""The loop: what it minimizes, what it refuses, and that a resumed run goes on as if uncut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, LinearParamScheduler
from torch import nn

from sparsedet import comm
from sparsedet.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from sparsedet.engine import Hook, ModelEma, NonFiniteError, Trainer
from sparsedet.engine.launch import launch
from sparsedet.engine.random_state import seed_everything
from tests.engine.fakes import TinyLoader, TinyModel


def make_trainer(
    max_iter: int = 12,
    *,
    model: nn.Module | None = None,
    loader: TinyLoader | None = None,
    lr: float = 0.05,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> Trainer:
    model = model if model is not None else TinyModel()
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr)
    options = {"lr_multiplier": LinearParamScheduler(1.0, 0.1)} | options
    return Trainer(
        model,
        (loader or TinyLoader()).iter_from,
        optimizer=optimizer,
        max_iter=max_iter,
        **options,
    )


class Losses(Hook):
    def __init__(self) -> None:
        self.values: list[float] = []

    def after_iteration(self, trainer: Trainer) -> None:
        self.values.append(trainer.recorder.flush()["loss"])


class StopAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_iteration(self, trainer: Trainer) -> None:
        trainer.stop_requested = trainer.iteration == self.iteration


def _run(trainer: Trainer, *hooks: Hook) -> list[float]:
    losses = Losses()
    trainer.hooks = [losses, *hooks]
    trainer.train()
    return losses.values


def test_it_learns() -> None:
    losses = _run(make_trainer(60, model=TinyModel(dropout=0.0)))
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_the_sum_of_all_terms_is_minimized() -> None:
    class Terms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, samples: Any) -> Any:
            return {"a": 2 * self.weight, "b": 3 * self.weight, "c": -self.weight}

    model = Terms()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    make_trainer(model=model, optimizer=optimizer).run_iteration()
    assert model.weight.item() == -4


def test_learning_rates_follow_the_schedule() -> None:
    trainer = make_trainer(4, lr=1.0, lr_multiplier=LinearParamScheduler(1.0, 0.0))
    seen: list[float] = []

    class Rates(Hook):
        def after_iteration(self, trainer: Trainer) -> None:
            seen.append(trainer.optimizer.param_groups[0]["lr"])

    _run(trainer, Rates())
    assert seen == [1.0, 0.75, 0.5, 0.25]


def test_every_group_keeps_its_own_rate() -> None:
    """By the rates that are set, by the steps that are taken, and after a resume."""

    def fresh() -> Trainer:
        model = TinyModel(dropout=0.0)
        groups = [
            {"params": model.backbone.parameters(), "lr": 0.001},
            {"params": model.norm.parameters(), "lr": 0.01},
            {"params": model.head.parameters(), "lr": 0.1},
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        return make_trainer(4, model=model, optimizer=optimizer, clip_grad={"max_norm": 1e9})

    first = fresh()
    model = first.unwrapped_model
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for key, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, key=key: gradients.update({key: gradient.clone()}))
    first.run_iteration()
    rates = {"backbone": 0.001, "norm": 0.01, "head": 0.1}
    for key, value in model.named_parameters():
        step = rates[key.split(".")[0]] * gradients[key]
        torch.testing.assert_close(value, before[key] - step, msg=key)
    second = fresh()
    second.load_state_dict(first.state_dict())
    second.run_iteration()  # the schedule falls from 1 to 0.1 in four iterations
    falling = [group["lr"] for group in second.optimizer.param_groups]
    assert falling == pytest.approx([0.775 * rate for rate in rates.values()])


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, ema: bool, amp_dtype: torch.dtype | None
) -> None:
    """Weights, statistics, average and losses, with dropout and a learning rate that moves."""

    def fresh(seed: int) -> Trainer:
        torch.manual_seed(seed)
        model = TinyModel()
        return make_trainer(
            12,
            model=model,
            ema=ModelEma(model, decay=0.9) if ema else None,
            amp_dtype=amp_dtype,
            accumulation_steps=2,
        )

    whole = fresh(0)
    expected = _run(whole)

    first = fresh(0)
    begin = _run(first, StopAt(7))
    save_checkpoint(first.state_dict(), tmp_path / "a.pth")
    second = fresh(1)  # other weights and random state
    second.load_state_dict(load_checkpoint(tmp_path / "a.pth"))
    assert second.iteration == 7
    assert second.train_seconds == first.train_seconds > 0
    assert begin + _run(second) == expected
    for name, value in whole.state_dict()["model"].items():
        assert torch.equal(value, second.unwrapped_model.state_dict()[name]), name
    if ema:
        for name, value in whole.eval_model.state_dict().items():
            assert torch.equal(value, second.eval_model.state_dict()[name]), name


def test_a_resumed_run_takes_the_options_of_its_config(tmp_path: Path) -> None:
    first = make_trainer(lr=0.05)
    _run(first, StopAt(3))
    second = make_trainer(lr=0.01, lr_multiplier=ConstantParamScheduler(1.0))
    second.optimizer.param_groups[0]["weight_decay"] = 0.7
    second.load_state_dict(first.state_dict())
    second.run_iteration()
    assert second.optimizer.param_groups[0]["lr"] == 0.01
    assert second.optimizer.param_groups[0]["weight_decay"] == 0.7


def test_what_cannot_be_resumed() -> None:
    state = make_trainer().state_dict()
    with pytest.raises(CheckpointError, match=r"has no iteration, optimizer"):
        make_trainer().load_state_dict({"model": state["model"]})
    with pytest.raises(CheckpointError, match="other parameter groups"):
        trainer = make_trainer()
        trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
        trainer.load_state_dict(state)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        model = TinyModel()
        make_trainer(model=model, ema=ModelEma(model)).load_state_dict(state)


def test_accumulation_equals_a_larger_batch() -> None:
    """Without batch statistics two batches of two are one of four.

    Plain gradient descent: Adam's steps do not depend on the scale of the gradients.
    """
    results = []
    for batch_size, steps in ((4, 1), (2, 2)):
        torch.manual_seed(0)
        model = TinyModel(dropout=0.0)
        model.norm = nn.Identity()  # type: ignore[assignment]
        loader = TinyLoader(batch_size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        trainer = make_trainer(
            3, model=model, loader=loader, optimizer=optimizer, accumulation_steps=steps
        )
        losses = _run(trainer)
        results.append((losses, model.head.weight.detach()))
    assert results[0][0] == pytest.approx(results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
def test_clipping(amp_dtype: torch.dtype | None) -> None:
    """With plain gradient descent the step is as long as the clipped gradient.

    In half precision the loss is scaled, and what is clipped is the gradient without the scale.
    """
    model = TinyModel()
    before = [p.detach().clone() for p in model.parameters()]
    trainer = make_trainer(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        clip_grad={"max_norm": 0.01},
        amp_dtype=amp_dtype,
        lr_multiplier=ConstantParamScheduler(1.0),
    )
    length = 0.0
    for _ in range(20):  # a scaler begins too high and skips steps until it has found its scale
        trainer.run_iteration()
        norm = trainer.recorder.flush()["grad_norm"]
        moved = zip(model.parameters(), before, strict=True)
        length = torch.stack([(p - b).square().sum() for p, b in moved]).sum().sqrt().item()
        if length:
            break
    assert length == pytest.approx(0.01, rel=1e-3)
    assert 0.01 < norm < 100


def test_non_finite_loss_names_terms_and_images() -> None:
    loader = TinyLoader()
    loader.poisoned = 9
    trainer = make_trainer(loader=loader, clip_grad={"max_norm": 0.1})
    with pytest.raises(NonFiniteError) as caught:
        _run(trainer)
    message = str(caught.value)
    assert "iteration 2: stage.0/square = nan, stage.0/abs = nan" in message
    assert "images 1008, 1009, 1010, 1011." in message
    assert trainer.iteration == 2
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_non_finite_gradient() -> None:
    class Root(TinyModel):
        def forward(self, samples: list[dict[str, Any]]) -> Any:
            return {"root": (self.head.weight * 0).sum().sqrt()}

    trainer = make_trainer(model=Root(), clip_grad={"max_norm": 0.1})
    with pytest.raises(NonFiniteError, match="gradient is not finite at iteration 0"):
        _run(trainer)
    assert trainer.unwrapped_model.head.weight.isfinite().all()  # type: ignore[union-attr]


def test_averages_follow_every_parameter_and_copy_every_buffer() -> None:
    model = TinyModel().train()
    ema, before = ModelEma(model, decay=0.9), [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.norm(torch.randn(4, 8))
    ema.update(model)
    for own, old, new in zip(ema.module.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(own, 0.1 * old + 0.9 * new)
    buffers = dict(ema.module.named_buffers())
    assert len(buffers) == 3 and buffers["norm.num_batches_tracked"] == 1
    for name, buffer in model.named_buffers():
        assert torch.equal(buffers[name], buffer) and buffers[name] is not buffer


def test_the_average_follows_the_weights_after_a_step() -> None:
    model = TinyModel()
    trainer = make_trainer(model=model, ema=ModelEma(model, decay=1e-6))  # hardly an average
    before = model.head.weight.detach().clone()
    trainer.run_iteration()
    assert not torch.allclose(model.head.weight, before)
    for own, new in zip(trainer.eval_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, new)


def test_average_of_weights() -> None:
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    ema = ModelEma(model, decay=0.5)
    nn.init.ones_(model.weight)
    ema.update(model)  # decay min(0.5, 1 / 10)
    assert ema.module.weight.item() == pytest.approx(0.9)  # type: ignore[union-attr]
    assert not ema.module.weight.requires_grad  # type: ignore[union-attr]
    for _ in range(20):
        ema.update(model)
    assert ema.module.weight.item() == pytest.approx(1.0, abs=1e-4)  # type: ignore[union-attr]
    nn.init.zeros_(model.weight)
    ema.update(model)  # far behind the warm-up, where it is the decay that was given
    assert ema.module.weight.item() == pytest.approx(0.5, abs=1e-4)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\), got 1\.0"):
        ModelEma(model, decay=1.0)


def test_bad_lengths() -> None:
    with pytest.raises(ValueError, match=r"Trainer\.max_iter must be an integer .* 1, got 0"):
        make_trainer(0)
    with pytest.raises(ValueError, match="accumulation_steps must be an integer of at least 1"):
        make_trainer(accumulation_steps=0)


def test_workers_that_were_told_to_stop() -> None:
    """A loader that breaks off after the signal ends the run; without a signal it is an error."""

    def broken(start: int) -> Iterator[Any]:
        yield from itertools.islice(TinyLoader().iter_from(start), 3)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    trainer = make_trainer()
    trainer._batches = broken
    with pytest.raises(RuntimeError, match=r"worker .* is killed"):
        _run(trainer)
    trainer = make_trainer()
    trainer._batches = broken
    trainer.stop_signal = 15
    _run(trainer)
    assert trainer.stop_requested
    assert trainer.iteration == 3


def _train_part(device: torch.device, folder: str) -> int:
    seed_everything(0)
    rank, world_size = comm.get_rank(), comm.get_world_size()
    model = TinyModel(dropout=0.0)
    model.norm = nn.Identity()  # type: ignore[assignment]
    wrapped: nn.Module = model
    if world_size > 1:
        wrapped = nn.parallel.DistributedDataParallel(model)
    loader = TinyLoader(4, rank, world_size)
    trainer = make_trainer(4, model=wrapped, loader=loader, accumulation_steps=2)
    trainer.train()
    state = trainer.state_dict()
    if rank == 0:
        torch.save(state["model"], Path(folder) / f"{world_size}.pt")
    return 0


def test_two_processes_equal_one(tmp_path: Path, quick_processes: None) -> None:
    args = (str(tmp_path),)
    assert launch(_train_part, args, num_processes=1, device_type="cpu") == 0
    assert launch(_train_part, args, num_processes=2, device_type="cpu") == 0
    one, two = (torch.load(tmp_path / f"{number}.pt") for number in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], msg=name)
