"""Stopping, logs, evaluation and checkpoints around the loop."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.checkpoint import CheckpointStore, load_checkpoint
from sparsedet.engine import CheckpointHook, EvalHook, Hook, LogHook, ModelEma, Trainer
from sparsedet.engine.hooks import flatten_metrics
from sparsedet.events import ConsoleWriter, JsonWriter, log_scalar
from tests.engine.fakes import TinyModel, tiny_trainer


def make_trainer(max_iter: int, ema: bool = False) -> Trainer:
    model = TinyModel()
    return tiny_trainer(model, max_iter, ema=ModelEma(model) if ema else None)


class Scores:
    """An evaluation that gives prepared values."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.models: list[nn.Module] = []

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        torch.rand(3)  # does not disturb the training
        self.models.append(model)
        return {"bbox": {"AP": np.float64(self.values.pop(0))}, "note": "text", "none": None}


class At(Hook):
    def __init__(self, iteration: int, action: Callable[[], Any]) -> None:
        self.iteration, self.action = iteration, action

    def after_iteration(self, trainer: Trainer) -> None:
        if trainer.iteration == self.iteration:
            self.action()


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- logs


def test_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    class Logging(TinyModel):
        def forward(self, samples: list[dict[str, Any]]) -> Any:
            log_scalar("kept", 0.25)
            return super().forward(samples)

    trainer = make_trainer(7)
    trainer.model = Logging()
    writer, console = JsonWriter(tmp_path / "metrics.json"), ConsoleWriter(7)
    trainer.hooks = [LogHook(3, [writer], console=console, iterations_per_epoch=2)]
    trainer.train()
    rows = _rows(tmp_path / "metrics.json")
    assert [row["iteration"] for row in rows] == [3, 6, 7]
    assert [row["epoch"] for row in rows] == [1.5, 3.0, 3.5]
    terms = [row["loss/stage.0/square"] + row["loss/stage.0/abs"] for row in rows]
    assert terms == pytest.approx([row["loss"] for row in rows])
    assert all(row["kept"] == 0.25 and row["lr"] == 0.01 for row in rows)
    assert all(row["seconds_per_iteration"] > 0 for row in rows)
    said = [int(re.match(r"iteration (\d+)/7", text)[1]) for text in caplog.messages]
    assert said == [1, 2, 3, 5, 6, 7]


def test_seconds_in_a_row_are_those_of_its_own_iterations(tmp_path: Path) -> None:
    clock = {1: 2.0, 2: 10.0, 3: 11.0, 4: 12.0}

    class Clock(Hook):
        def after_iteration(self, trainer: Trainer) -> None:
            trainer.train_seconds = clock[trainer.iteration]

    trainer = make_trainer(4)
    trainer.hooks = [Clock(), LogHook(2, [JsonWriter(tmp_path / "metrics.json")])]
    trainer.train()
    found = [row["seconds_per_iteration"] for row in _rows(tmp_path / "metrics.json")]
    assert found == pytest.approx([5.0, 1.0], abs=0.2)


def test_a_person_is_told_something_before_the_first_row(caplog: pytest.LogCaptureFixture) -> None:
    """Also after a resume, and the first row still holds all iterations."""
    caplog.set_level(logging.INFO)
    rows: list[tuple[int, dict[str, float]]] = []

    class Rows:
        def write(self, iteration: int, scalars: dict[str, float]) -> None:
            rows.append((iteration, scalars))

        def close(self) -> None:
            pass

    class Counting(TinyModel):
        calls = 0

        def forward(self, samples: list[dict[str, Any]]) -> Any:
            self.calls += 1
            log_scalar("calls", self.calls)
            return super().forward(samples)

    trainer = make_trainer(12)
    trainer.model = Counting()
    trainer.iteration, trainer.train_seconds = 4, 100.0
    trainer.hooks = [LogHook(12, [Rows()], console=ConsoleWriter(12))]
    trainer.train()
    said = [text for text in caplog.messages if text.startswith("iteration")]
    assert [int(re.findall(r"\d+", text)[0]) for text in said] == [5, 6, 9, 12]
    assert all("eta 0:00:0" in text and "loss" in text for text in said)
    ((iteration, scalars),) = rows
    assert iteration == 12 and scalars["calls"] == 4.5  # of 1 to 8


def test_the_rate_in_a_row_is_the_highest_and_values_are_means_over_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[dict[str, float]] = []

    class Rows:
        def write(self, iteration: int, scalars: dict[str, float]) -> None:
            rows.append(scalars)

        def close(self) -> None:
            pass

    trainer = make_trainer(2)
    model = trainer.unwrapped_model
    groups = [
        {"params": model.backbone.parameters(), "lr": 0.001},
        {"params": model.head.parameters(), "lr": 0.1},
    ]
    trainer.optimizer = torch.optim.SGD(groups, lr=1.0)
    trainer._base_lrs = [0.001, 0.1]

    def of_two_processes(scalars: dict[str, float]) -> list[dict[str, float]]:
        return [scalars, {name: value + 4.0 for name, value in scalars.items()} | {"rare": 3.0}]

    monkeypatch.setattr("sparsedet.engine.hooks.comm.all_gather", of_two_processes)
    own: list[float] = []
    trainer.hooks = [
        At(2, lambda: own.append(trainer.recorder.averages()["loss"])),
        LogHook(2, [Rows()]),
    ]
    trainer.train()
    (row,) = rows
    assert row["lr"] == 0.1
    assert row["loss"] == pytest.approx(own[0] + 2.0)
    assert row["rare"] == 3.0  # of those that have it


def test_bad_periods(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LogHook\.period must be at least 1, got 0"):
        LogHook(0, [])
    with pytest.raises(ValueError, match=r"EvalHook\.period must be 0 or more, got -1"):
        EvalHook(-1, Scores())
    with pytest.raises(ValueError, match=r"EvalHook\.patience must be None or .* got 0"):
        EvalHook(1, Scores(), patience=0)
    with pytest.raises(ValueError, match=r"patience=2 needs evaluations before the end"):
        EvalHook(0, Scores(), patience=2)
    with pytest.raises(ValueError, match=r"CheckpointHook\.period must be 0 or more"):
        CheckpointHook(CheckpointStore(tmp_path), -1)


# --- evaluation


def test_best_weights_and_rows(tmp_path: Path) -> None:
    trainer, scores = make_trainer(5, ema=True), Scores(0.2, 0.5, 0.4)
    writer, store = JsonWriter(tmp_path / "metrics.json"), CheckpointStore(tmp_path)
    best: dict[str, Any] = {}

    def remember() -> None:
        best.update({name: v.clone() for name, v in trainer.eval_model.state_dict().items()})

    trainer.hooks = [
        EvalHook(2, scores, writers=[writer], store=store, extra={"config": "text"}),
        At(4, remember),
    ]
    trainer.train()
    writer.close()
    assert scores.models == [trainer.ema.module] * 3  # type: ignore[union-attr]
    rows = [(row["iteration"], row["eval/bbox/AP"]) for row in _rows(tmp_path / "metrics.json")]
    assert rows == [(2, 0.2), (4, 0.5), (5, 0.4)]
    saved = load_checkpoint(tmp_path / "model_best.pth")
    assert saved["best"] == {"metric": "bbox/AP", "value": 0.5, "iteration": 4}
    assert saved["config"] == "text"
    assert all(torch.equal(saved["model"][name], value) for name, value in best.items())
    state = trainer.hook_state["eval"]
    assert state["best"]["value"] == 0.5
    assert state["results"]["bbox"] == {"AP": 0.4}


def test_evaluation_does_not_change_the_training() -> None:
    weights = []
    for period in (0, 1):
        torch.manual_seed(0)
        trainer = make_trainer(4)
        trainer.hooks = [EvalHook(period, Scores(0, 0, 0, 0))]
        trainer.train()
        weights.append(trainer.unwrapped_model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_metric_that_does_not_exist(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(1)
    trainer.hooks = [EvalHook(0, Scores(0.1), best_metric="segm/AP")]
    trainer.train()
    assert "has no metric segm/AP (its metrics: bbox/AP)" in caplog.text


def test_flatten_metrics() -> None:
    nested = {"a": {"b": 1, "c": {"d": 0.5}}, "e": None, "f": "text", "g": [1], "h": float("nan")}
    assert flatten_metrics(nested) == {"a/b": 1.0, "a/c/d": 0.5}


def test_a_metric_that_is_not_a_number_is_never_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """detectron2's evaluators give NaN where there is nothing to find, and so do ours."""
    nan = float("nan")
    trainer, store = make_trainer(4, ema=True), CheckpointStore(tmp_path)
    writer = JsonWriter(tmp_path / "metrics.json")
    trainer.hooks = [EvalHook(1, Scores(nan, 20.0, nan, 10.0), writers=[writer], store=store)]
    trainer.train()
    writer.close()
    assert trainer.hook_state["eval"]["best"]["value"] == 20.0
    assert load_checkpoint(tmp_path / "model_best.pth")["best"]["iteration"] == 2
    assert caplog.text.count("has no metric bbox/AP") == 2
    values = [row.get("eval/bbox/AP", "none") for row in _rows(tmp_path / "metrics.json")]
    assert values == ["none", 20.0, "none", 10.0]


# --- checkpoints


def test_periodic_and_final_files(tmp_path: Path) -> None:
    trainer = make_trainer(5)
    trainer.hooks = [CheckpointHook(CheckpointStore(tmp_path), 2, extra={"config": "text"})]
    trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_0000004.pth",
        "checkpoint_0000005.pth",
        "last_checkpoint",
        "model_final.pth",
    ]
    last = load_checkpoint(tmp_path / "checkpoint_0000005.pth")
    assert last["iteration"] == 5
    assert last["config"] == "text"
    final = load_checkpoint(tmp_path / "model_final.pth")
    state = trainer.unwrapped_model.state_dict()
    assert all(torch.equal(final["model"][name], value) for name, value in state.items())


def test_the_final_weights_are_those_that_were_evaluated(tmp_path: Path) -> None:
    """The averaged ones, where there are any."""
    trainer = make_trainer(3, ema=True)
    trainer.hooks = [CheckpointHook(CheckpointStore(tmp_path), 0)]
    trainer.train()
    final = load_checkpoint(tmp_path / "model_final.pth")["model"]
    assert trainer.ema is not None
    for name, value in trainer.ema.module.state_dict().items():
        assert torch.equal(final[name], value), name
    assert not torch.equal(final["head.weight"], trainer.unwrapped_model.head.weight)


def test_a_kill_beside_the_last_checkpoint_does_not_cost_the_final_weights(tmp_path: Path) -> None:
    """A run that is resumed at its end writes none."""

    class Killed(CheckpointStore):
        def save(self, *given: Any) -> Path:
            raise KeyboardInterrupt

    trainer = make_trainer(2)
    trainer.hooks = [CheckpointHook(Killed(tmp_path), 0)]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert load_checkpoint(tmp_path / "model_final.pth")["iteration"] == 2


def test_what_a_run_was_resumed_from_is_not_written_again(tmp_path: Path) -> None:
    """Where it ends at once, as on a disk that is full by now."""
    store = CheckpointStore(tmp_path)
    first = make_trainer(4)
    first.hooks = [CheckpointHook(store, 2), At(2, lambda: setattr(first, "stop_requested", True))]
    first.train()
    last = store.load_last()
    assert last is not None
    saved = last[1].stat()
    second = make_trainer(4)
    second.load_state_dict(*last)
    second.hooks = [CheckpointHook(store, 2)]
    second._batches = lambda place: iter(())
    with pytest.raises(StopIteration):
        second.train()
    assert last[1].stat() == saved


def test_a_resumed_run_neither_repeats_nor_misses_an_evaluation(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)

    def run(scores: Scores, *hooks: Hook) -> Trainer:
        trainer = make_trainer(6)
        last = store.load_last()
        if last is not None:
            trainer.load_state_dict(*last)
        trainer.hooks = [*hooks, EvalHook(2, scores), CheckpointHook(store, 2)]
        trainer.train()
        return trainer

    def fail() -> None:
        raise KeyboardInterrupt  # a kill: nothing is saved any more

    with pytest.raises(KeyboardInterrupt):
        run(Scores(0.1, 0.9), At(5, fail))
    trainer = run(Scores(0.3))  # at 6 alone: the one at 4 is not repeated
    assert trainer.hook_state["eval"]["best"]["value"] == 0.9
    run(Scores())  # a run that is done evaluates no more
    (tmp_path / "checkpoint_0000006.pth").unlink()
    (tmp_path / "last_checkpoint").unlink()
    run(Scores(0.3))


# --- early stopping


def stopping(store: CheckpointStore, scores: Scores, patience: int | None, *hooks: Hook) -> Trainer:
    """A run, or the rest of one, of at most 9 iterations with an evaluation after each."""
    trainer = make_trainer(9, ema=True)
    last = store.load_last()
    if last is not None:
        trainer.load_state_dict(*last)
    evaluation = EvalHook(1, scores, store=store, patience=patience)
    trainer.hooks = [*hooks, evaluation, CheckpointHook(store, 3)]
    trainer.train()
    return trainer


def test_a_run_ends_when_nothing_becomes_better(tmp_path: Path) -> None:
    scores = Scores(0.1, 0.3, 0.3, 0.2, 0.25, 0.9)
    trainer = stopping(CheckpointStore(tmp_path), scores, 3)
    assert trainer.iteration == 5 and scores.values == [0.9]
    assert trainer.at_end and not trainer.stop_requested
    assert trainer.end_reason == "early stopping: no better bbox/AP in 3 evaluations"
    assert load_checkpoint(tmp_path / "model_best.pth")["best"]["iteration"] == 2
    assert load_checkpoint(tmp_path / "model_final.pth")["iteration"] == 5
    assert load_checkpoint(tmp_path / "checkpoint_0000005.pth")["iteration"] == 5


def test_patience_begins_again_with_every_better_value(tmp_path: Path) -> None:
    scores = Scores(0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.4)
    trainer = stopping(CheckpointStore(tmp_path), scores, 2)
    assert trainer.iteration == 9 and trainer.end_reason is None
    scores = Scores(*[0.1] * 9)
    assert stopping(CheckpointStore(tmp_path / "none"), scores, None).iteration == 9


def test_early_stopping_of_a_resumed_run(tmp_path: Path) -> None:
    """The evaluations before the interruption count."""
    store = CheckpointStore(tmp_path)

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopping(store, Scores(0.5, 0.1, 0.1), 4, At(4, fail))
    trainer = stopping(store, Scores(0.1, 0.1), 4)
    assert trainer.iteration == 5 and trainer.end_reason is not None
    # it has ended: nothing is trained or evaluated any more
    trainer = stopping(store, Scores(), 4)
    assert trainer.iteration == 5 and trainer.end_reason is not None
    # unless the patience is raised
    trainer = stopping(store, Scores(0.1, 0.6, 0.1, 0.1), 6)
    assert trainer.iteration == 9 and trainer.end_reason is None
    assert trainer.hook_state["eval"]["stale"] == 2


@pytest.mark.parametrize(("stale", "votes", "ends_at"), [(0, [5], 5), (7, [], 9)])
def test_the_main_process_alone_decides_to_end_early(
    monkeypatch: pytest.MonkeyPatch, stale: int, votes: list[int], ends_at: int
) -> None:
    """Another one ends with it, whatever it knows itself."""
    trainer = make_trainer(9)
    trainer.hook_state["eval"] = {"iteration": 0, "stale": stale}  # as it was resumed
    own: list[bool] = []

    def any_process(flag: bool) -> bool:
        own.append(flag)
        return flag or trainer.iteration in votes

    monkeypatch.setattr("sparsedet.engine.hooks.comm.is_main_process", lambda: False)
    monkeypatch.setattr("sparsedet.engine.hooks.comm.any_process", any_process)
    trainer.hooks = [EvalHook(1, lambda model: {}, patience=2)]
    trainer.train()
    assert trainer.iteration == ends_at
    assert (trainer.end_reason is None) is (not votes)
    assert own and not any(own)
