"""What a training run leaves for its report."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsedet.report.record import start_run


def start(folder: Path, iteration: int) -> list[int]:
    trainer: Any = SimpleNamespace(iteration=iteration, max_iter=100, device=torch.device("cpu"))
    start_run(folder, {"config": "quickstart", "overrides": []}, trainer, None)
    starts = json.loads((folder / "run.json").read_text())["starts"]
    return [each["iteration"] for each in starts]


def test_a_resumed_run_has_its_earlier_starts(tmp_path):
    assert start(tmp_path, 0) == [0]
    assert start(tmp_path, 40) == [0, 40]
    assert start(tmp_path, 0) == [0]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_does_not_keep_a_run_from_resuming(tmp_path, caplog, text):
    (tmp_path / "run.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert start(tmp_path, 40) == [40]
    assert "run.json is damaged" in caplog.text
