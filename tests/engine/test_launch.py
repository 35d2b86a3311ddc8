"""Starting processes."""

from __future__ import annotations

import importlib
import socket
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sparsedet import comm
from sparsedet.engine import peers
from sparsedet.engine.launch import launch, resolve_device, together


def _code(device: torch.device, codes: tuple[int, ...]) -> int:
    assert device.type == "cpu"
    return codes[comm.get_rank()]


def test_exit_codes() -> None:
    assert launch(_code, ((3,),), num_processes=1, device_type="cpu") == 3


def test_the_code_of_a_failed_process_is_passed_on() -> None:
    assert launch(_code, ((2, 2),), num_processes=2, device_type="cpu") == 2


def test_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (values | {"MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="must be left out under torchrun, got 2"):
        launch(_code, ((0,),), num_processes=2, device_type="cpu")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="--num-gpus must be at least 1, got 0"):
        launch(_code, ((0,),), num_processes=0, device_type="cpu")
    with pytest.raises(ValueError, match=r"train\.device must be one of auto, cpu.* got 'tpu'"):
        resolve_device("tpu")
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda", "mps", "xpu")


def _environment(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    named = dict(RANK=0, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=1)
    for name, value in (named | {"SPARSEDET_JOIN_SECONDS": 1} | values).items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"RANK": 1}, "process 1 of 2 cannot reach process 0 at MASTER_ADDR=127.0.0.1, "),
        ({"RANK": 0}, "not all of the 2 processes connected to MASTER_ADDR=127.0.0.1, "),
        ({"RANK": 2}, "RANK must be below WORLD_SIZE=2, got 2."),
        ({"LOCAL_RANK": "x"}, "numbers and MASTER_ADDR a host name, got LOCAL_RANK=x. Start"),
        ({"MASTER_ADDR": ""}, "numbers and MASTER_ADDR a host name, got MASTER_ADDR=. Start"),
    ],
)  # fmt: skip
def test_processes_that_do_not_meet(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, object], says: str
) -> None:
    """It takes a stated time, and nothing is read before."""
    said: list[str] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _environment(monkeypatch, MASTER_PORT=port, **values)
    started = time.monotonic()
    assert together(lambda: pytest.fail("it went on"), said.append) == 2
    assert time.monotonic() - started < 30
    assert len(said) == 1 and says in said[0], said


def test_a_port_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as other:
        other.bind(("", 0))
        other.listen()
        _environment(monkeypatch, MASTER_PORT=other.getsockname()[1])
        assert together(lambda: 0, said.append) == 2
    assert said[0].startswith("the port is in use: MASTER_ADDR=127.0.0.1"), said


def test_the_other_processes_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each machine speaks."""
    said: list[str] = []
    _environment(monkeypatch, RANK=5, LOCAL_RANK=1)
    assert together(lambda: 0, said.append) == 2
    assert said == []


def test_the_processes_of_a_restart_find_nothing_of_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun keeps the store, in which the addresses of the dead ones would be found."""
    module = importlib.import_module("sparsedet.engine.launch")
    stores: list[dist.Store] = []
    place = peers.Place(0, 0, 2, dist.HashStore(), ("localhost", 29400), 1.0)
    monkeypatch.setattr(module, "_place", place)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, store, **__: stores.append(store))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for token in ("first", "second", "first"):
        monkeypatch.setattr(peers, "_current", SimpleNamespace(token=token))
        assert module._run_placed(lambda device: 0, (), "cpu", print) == 0
    ours, restarted, neighbour = stores
    ours.set("address", "here")
    assert neighbour.check(["address"])
    assert not restarted.check(["address"])
