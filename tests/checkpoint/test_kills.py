"""A process that is killed while it writes leaves what it wrote before."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsedet.checkpoint import CheckpointStore

# Writes checkpoints without end, and tells of each that is whole.
WRITER = """
import sys
import torch
from sparsedet.checkpoint import CheckpointStore

store = CheckpointStore(sys.argv[1])
last = store.load_last()
start = 0 if last is None else last[0]["iteration"]
store.clean()
print("ready", flush=True)
for iteration in range(start + 1, 10**9):
    weights = {f"w{i}": torch.full((250_000,), float(iteration)) for i in range(8)}
    store.save({"model": weights, "iteration": iteration}, iteration)
    print(iteration, flush=True)
"""


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(root: Path, tmp_path: Path) -> None:
    store, whole = CheckpointStore(tmp_path), 0
    moments = random.Random(0)
    while_writing = 0
    for _ in range(10):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        left = [each.name for each in tmp_path.glob(".*.tmp")]
        assert all(f".{process.pid}." in name for name in left)  # none of the process before
        deadline = time.monotonic() + moments.uniform(0.0, 0.3)
        while time.monotonic() < deadline or not list(tmp_path.glob(".checkpoint_*.tmp")):
            time.sleep(0.0005)
        time.sleep(moments.uniform(0.0, 0.01))
        process.kill()
        told, _ = process.communicate(timeout=60)
        while_writing += bool(list(tmp_path.glob(".checkpoint_*.tmp")))
        whole = max([whole, *map(int, told.split())])
        last = store.load_last()
        assert last is not None or whole == 0
        if last is not None:
            iteration = last[0]["iteration"]
            assert iteration in (whole, whole + 1)  # it may be written and not yet told
            assert all((w == iteration).all() for w in last[0]["model"].values())
            whole = iteration
    assert while_writing >= 5
