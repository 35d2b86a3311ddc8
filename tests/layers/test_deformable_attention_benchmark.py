"""The op mode of tools/benchmark.py: what it times is what it says, figures are written."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sparsedet.layers import has_compiled_kernel


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", root / "tools" / "benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark", module)
    spec.loader.exec_module(module)
    return module


def test_encoder_of_the_papers_size_has_its_tokens(benchmark):
    shapes = benchmark.level_shapes((800, 1333))
    assert shapes == [(100, 167), (50, 84), (25, 42), (13, 21)]
    assert [len(q) for q in benchmark.query_sets(22223).values()] == [22223, 6666, 2222, 900]
    centers = benchmark.cell_centers(shapes)
    assert centers.shape == (22223, 2)
    torch.testing.assert_close(centers[168], torch.tensor([1.5 / 167, 1.5 / 100]))


@pytest.mark.skipif(not has_compiled_kernel(), reason="needs the compiled CPU kernels")
def test_op_writes_its_figures(benchmark, tmp_path, capsys):
    target = tmp_path / "new" / "op.json"
    arguments = ["op", "--image-size", "64x96", "--seconds", "0", "--json", str(target)]
    assert benchmark.main(arguments) == 0
    figures = json.loads(target.read_text())
    assert figures["tokens"] == 128 == figures["rows"][0]["queries"]
    assert figures["protocol"]["threads"] == torch.get_num_threads()
    for row in figures["rows"]:
        ours, theirs = row["sparsedet"], row["grid_sample"]
        assert 0 < ours["p10"] <= ours["median"] <= ours["p90"]
        assert row["ratio"] == pytest.approx(theirs["median"] / ours["median"])
    assert "grid_sample" in capsys.readouterr().out


def test_refuses_to_time_the_reference_against_itself(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "has_compiled_kernel", lambda _device: False)
    assert benchmark.main(["op"]) == 2
    assert "no compiled kernel for cpu" in capsys.readouterr().err
