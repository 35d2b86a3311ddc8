"""Files in int8: which layers are, what stays, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsedet import Predictor
from sparsedet.cli.main import main
from sparsedet.export import ExportError, Exported
from sparsedet.export.check import run_afresh
from sparsedet.export.formats import read
from tests.predictor.trained import write_checkpoint, write_pictures

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (64, 96)
LAYERS = ("Conv", "MatMul", "Gemm")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder)
    write_pictures(folder)
    (folder / "val" / "deep.png").unlink()  # of values that no setting explains
    return folder


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(run / "model_best.pth", device="cpu")


@pytest.fixture(scope="module")
def whole(run: Path, predictor: Predictor) -> Exported:
    return predictor.export(run / "whole.onnx", SIZE)


@pytest.fixture(scope="module")
def made(run: Path, predictor: Predictor) -> Exported:
    return predictor.export(run / "int8.onnx", SIZE, quantize=run / "val")
