"""Scalars from anywhere to the writers."""

from __future__ import annotations

import json
import logging
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsedet import events
from sparsedet.events import ConsoleWriter, JsonWriter, Recorder, log_scalar, service_writers


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


def test_a_listener_hears_each_value_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, float]] = []

    class Listener:
        def record(self, name: str, value: float | torch.Tensor) -> None:
            heard.append((name, float(value)))

    monkeypatch.setattr(events, "_listeners", [])
    listener = Listener()
    events.listen(listener)
    events.listen(listener)
    log_scalar("a", 1.0)
    with Recorder() as recorder:
        log_scalar("b", torch.tensor(2.0))
    assert heard == [("a", 1.0), ("b", 2.0)]
    assert recorder.flush() == {"b": 2.0}


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


def test_the_line_of_an_evaluation_that_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    lines = ['{"iteration": 1, "eval/AP": 3}', '{"iteration": 2}', '{"iteration": 2, "eval/AP": 4}']
    path.write_text("\n".join(lines) + "\n")
    JsonWriter(path, start_iteration=2, evaluated=True).close()
    assert path.read_text().splitlines() == lines
    JsonWriter(path, start_iteration=2, evaluated=False).close()
    assert path.read_text().splitlines() == lines[:2]


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


def test_averages_without_an_end() -> None:
    with Recorder() as recorder:
        log_scalar("a", 1.0)
        log_scalar("a", torch.tensor(2.0))
        assert recorder.averages() == recorder.averages() == {"a": 1.5}
        log_scalar("a", 6.0)
        assert recorder.flush() == {"a": 3.0}


# --- services


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (writer,) = service_writers(tmp_path)
    writer.write(1, {"loss": 2.0})
    writer.write(3, {"loss": 1.5, "eval/bbox/AP": 0.25})
    assert events.picture_writers([writer, object()]) == [writer]
    writer.write_picture(3, "pictures/1", np.full((4, 6, 3), 200, dtype=np.uint8))
    writer.close()
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert [(e.step, e.value) for e in written.Scalars("loss")] == [(1, 2.0), (3, 1.5)]
    assert [(e.step, e.value) for e in written.Scalars("eval/bbox/AP")] == [(3, 0.25)]
    (picture,) = written.Images("pictures/1")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)


def test_what_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorBoard is written where it can be; what was asked for by name is an error."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(events.services, "find_spec", lambda name: None)
    assert service_writers(tmp_path) == []
    (message,) = caplog.messages
    assert "pip install 'sparsedet[tensorboard]'" in message
    assert service_writers(tmp_path, tensorboard=False) == [] and len(caplog.messages) == 1
    for service in ("wandb", "mlflow"):
        says = rf"train\.{service} needs the package .*sparsedet\[{service}\]"
        with pytest.raises(ValueError, match=says):
            service_writers(tmp_path, tensorboard=False, **{service: {"enabled": True}})


class Calls:
    """Stands in for any object: records the calls of its methods, and answers as it was told."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []
        self.answers = answers

    def __getattr__(self, name: str) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return self.answers.get(name)

        return method

    def of(self, name: str) -> list[tuple[tuple, dict]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(events.services, "find_spec", lambda package: package)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: {}")
    run = Calls()
    run.id = "abc"
    package = Calls(init=run)
    stand_in(monkeypatch, "wandb", init=package.init)
    settings = dict(enabled=True, project="birds", name=None)
    (writer,) = service_writers(folder, tensorboard=False, wandb=settings)
    writer.write(20, {"loss": 2.0, "bad": float("nan")})
    writer.write(20, {"eval/bbox/AP": 0.5})
    writer.close()
    ((_, first),) = package.of("init")
    assert (first["project"], first["name"], first["id"]) == ("birds", "mine", None)
    assert first["dir"] == str(folder)
    assert run.of("log") == [
        (({"loss": 2.0},), {"step": 20}),
        (({"eval/bbox/AP": 0.5},), {"step": 20}),
    ]
    assert run.of("save")[0][0] == (str(folder / "config.yaml"),)
    assert run.calls[-1][0] == "finish"
    service_writers(folder, resumed=True, tensorboard=False, wandb=settings)
    assert package.of("init")[1][1]["id"] == "abc"
    assert package.of("init")[1][1]["resume"] == "allow"
    service_writers(folder, tensorboard=False, wandb=settings)  # begun anew: another run
    assert package.of("init")[2][1]["id"] is None


class Refused(Exception):
    """Stands in for the error of MLflow."""


def test_a_store_that_mlflow_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str | None) -> None:
        raise Refused("in maintenance mode\nsee elsewhere")

    stand_in(monkeypatch, "mlflow", MlflowClient=refuse)
    stand_in(monkeypatch, "mlflow.exceptions", MlflowException=Refused)
    settings = dict(enabled=True, tracking_uri="runs")
    with pytest.raises(ValueError, match=r"cannot use runs \(in maintenance mode\)\. Set it to"):
        service_writers(tmp_path, tensorboard=False, mlflow=settings)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    client = Calls(create_experiment="7", create_run=run)
    asked: list[str | None] = []
    stand_in(monkeypatch, "mlflow", MlflowClient=lambda uri: (asked.append(uri), client)[1])
    stand_in(monkeypatch, "mlflow.entities", Metric=lambda *fields: fields)
    stand_in(monkeypatch, "mlflow.exceptions", MlflowException=Refused)
    (tmp_path / "config.yaml").write_text("model: {}")
    settings = dict(enabled=True, tracking_uri="http://host", experiment="birds", name="small")
    (writer,) = service_writers(tmp_path, tensorboard=False, mlflow=settings)
    writer.write(20, {"loss": 2.0, "bad": float("inf")})
    writer.close()
    assert asked == ["http://host"]
    assert client.of("create_experiment") == [(("birds",), {})]
    assert client.of("create_run") == [(("7",), {"run_name": "small"})]
    ((args, kwargs),) = client.of("log_batch")
    ((name, value, moment, step),) = kwargs["metrics"]
    assert (args, name, value, step) == (("r1",), "loss", 2.0, 20)
    assert abs(moment / 1000 - time.time()) < 60
    assert client.of("log_artifact") == [(("r1", str(tmp_path / "config.yaml")), {})]
    assert client.calls[-1] == ("set_terminated", ("r1",), {})
    service_writers(tmp_path, resumed=True, tensorboard=False, mlflow=settings)
    assert len(client.of("create_run")) == 1 and client.of("update_run")[0][0] == ("r1",)


def test_mlflow_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where it keeps artifacts
    settings = dict(enabled=True, tracking_uri=f"sqlite:///{tmp_path}/runs.db")
    (tmp_path / "config.yaml").write_text("model: {}")
    for resumed in (False, True):
        (writer,) = service_writers(tmp_path, resumed=resumed, tensorboard=False, mlflow=settings)
        writer.write(20 + resumed, {"loss/decoder.5/box_l1": 2.0 - resumed})
        writer.close()
    client = mlflow.MlflowClient(settings["tracking_uri"])
    experiment = client.get_experiment_by_name("sparsedet")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss/decoder.5/box_l1")
    assert [(m.step, m.value) for m in history] == [(20, 2.0), (21, 1.0)]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
