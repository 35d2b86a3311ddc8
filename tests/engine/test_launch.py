"""Starting processes."""

from __future__ import annotations

import pytest
import torch

from sparsedet import comm
from sparsedet.engine.launch import launch, resolve_device


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
