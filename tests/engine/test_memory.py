"""More memory than there is, asked for in a block: an error, and none of it afterwards."""

from __future__ import annotations

import pytest
import torch

from sparsedet.engine import memory
from sparsedet.engine.memory import free_memory, within_memory

GB = 1 << 30
pytestmark = pytest.mark.skipif(free_memory() is None, reason="the system does not tell")


def test_more_than_is_free_is_refused_in_the_block_alone(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: GB // 2)
    with within_memory():
        torch.empty(GB // 16)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(GB // 4)
        with pytest.raises(MemoryError):
            bytearray(GB)
    assert len(bytearray(GB)) == GB


def test_a_container_may_use_less_than_the_machine_has(tmp_path, monkeypatch):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_GROUP", (limit, used))
    whole = free_memory()
    assert whole is not None and whole > GB // 4
    limit.write_text("1000000\n")
    used.write_text("400000\n")
    assert free_memory() == 600000
    limit.write_text("max\n")
    assert free_memory() > GB // 4
