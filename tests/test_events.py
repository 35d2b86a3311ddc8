"""Scalars from anywhere to the writers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from sparsedet.events import ConsoleWriter, JsonWriter, Recorder, TensorBoardWriter, log_scalar


def test_nobody_listens() -> None:
    log_scalar("a", 1.0)
    with Recorder() as recorder:
        pass
    log_scalar("a", 2.0)
    assert recorder.flush() == {}


def test_averages_since_the_last_flush() -> None:
    with Recorder() as recorder:
        log_scalar("a", 1)
        log_scalar("b", torch.tensor([2.0], requires_grad=True))
        log_scalar("a", torch.tensor(4.0, dtype=torch.bfloat16))
        assert recorder.flush() == {"a": 2.5, "b": 2.0}
        log_scalar("a", 7.0)
        assert recorder.flush() == {"a": 7.0}


def test_every_recorder_hears() -> None:
    with Recorder() as outer, Recorder() as inner:
        log_scalar("a", 1.0)
    assert outer.flush() == inner.flush() == {"a": 1.0}


def test_graph_is_not_kept_alive() -> None:
    with Recorder() as recorder:
        log_scalar("a", torch.ones((), requires_grad=True) * 2)
        assert all(not v.requires_grad for v in recorder._values["a"])  # type: ignore[union-attr]


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    writer = JsonWriter(path)
    writer.write(1, {"loss": 2.0, "bad": float("nan")})
    assert _rows(path) == [{"iteration": 1, "loss": 2.0, "bad": None}]  # readable at once
    writer.close()


def test_json_lines_of_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"iterat')
    writer = JsonWriter(path, start_iteration=2)
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert _rows(path) == [{"iteration": 1}, {"iteration": 2}, {"iteration": 3, "loss": 1.0}]
    JsonWriter(path).close()
    assert path.read_text() == ""


def test_console_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    writer = ConsoleWriter(100)
    row = {"loss": 3.0, "loss/decoder.0/l1": 1.0, "loss/decoder.1/l1": 2.0}
    writer.advance(40)
    writer.write(40, row | {"lr": 1e-4, "seconds_per_iteration": 61.0})
    writer.close()
    (message,) = caplog.messages
    assert "iteration 40/100  eta 1:01:00" in message
    assert "loss 3  l1 3  lr 1.00e-04" in message


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    writer = ConsoleWriter(10, start_iteration=4, show_bar=True)
    for iteration in range(5, 11):
        writer.advance(iteration)
    writer.write(10, {"loss": 1.5})
    writer.close()
    assert "10/10" in capsys.readouterr().err


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    writer = TensorBoardWriter(tmp_path)
    writer.write(1, {"loss": 2.0})
    writer.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))
