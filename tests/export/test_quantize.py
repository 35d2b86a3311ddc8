"""Files in int8: which layers are, what stays as it was, and what is refused before any work."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedet import Predictor
from sparsedet.cli.export import _calibration
from sparsedet.cli.main import main
from sparsedet.data import DatasetError
from sparsedet.export import Exported, ExportError
from sparsedet.export.check import run_afresh
from sparsedet.export.formats import read
from tests.predictor.trained import write_run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (64, 96)
LAYERS = ("Conv", "MatMul", "Gemm")
INT8, FLOAT32 = 3, 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"))
    (folder / "val" / "deep.png").unlink()  # of more than 8 bits, which no setting explains
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


@pytest.fixture(scope="module")
def program(made: Exported) -> Any:
    return onnx.load(made.path)


def weights_of(program: Any) -> dict[str, Any]:
    return {each.name: each for each in program.graph.initializer}


def num_bytes(program: Any, kind: int) -> int:
    return sum(len(x.raw_data) for x in program.graph.initializer if x.data_type == kind)


def test_the_file_tells_what_it_is(made, whole):
    contract, _ = read(made.path)
    assert contract == made.contract
    assert contract.precision == "int8" and whole.contract.precision == "float32"
    same = {**vars(whole.contract), "precision": "int8"}
    assert vars(contract) == same


def test_it_has_standard_operators_alone(program):
    onnx.checker.check_model(program, full_check=True)
    assert [(each.domain, each.version) for each in program.opset_import] == [("", 18)]
    assert [each.key for each in program.metadata_props] == ["sparsedet.json"]


def test_layers_alone_read_rounded_values(program):
    """And what reads the map of a convolution, which is written in int8."""
    graph = program.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    weights = weights_of(program)
    kinds: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        if node.input[0] in weights:
            assert set(readers[node.output[0]]) <= set(LAYERS)
            kinds["weights"] += 1
            continue
        source = makers[makers[node.input[0]].input[0]].op_type
        if source == "Conv":
            kinds["maps"] += 1
        else:
            assert set(readers[node.output[0]]) <= set(LAYERS), source
            kinds["inputs"] += 1
    assert min(kinds[kind] for kind in ("weights", "maps", "inputs")) > 10


def test_what_a_convolution_gives_is_rounded_once(program):
    """After its activation, which the rounding takes in."""
    makers = {name: node for node in program.graph.node for name in node.output}
    for node in program.graph.node:
        if node.op_type in ("Relu", "Clip"):
            before = makers[node.input[0]]
            assert before.op_type != "Conv"
            while before.op_type in ("DequantizeLinear", "QuantizeLinear"):
                before = makers[before.input[0]]
                assert before.op_type != "Conv"


def test_no_weight_is_there_twice(program, whole):
    before = onnx.load(whole.path)
    weights = weights_of(program)
    rounded = {name.removesuffix("_quantized") for name in weights if name.endswith("_quantized")}
    assert len(rounded) > 50
    assert not rounded & set(weights)
    saved = num_bytes(before, FLOAT32) - num_bytes(program, FLOAT32)
    assert saved == pytest.approx(4 * num_bytes(program, INT8), rel=0.1)
    sizes = {name: len(each.dims) for name, each in weights_of(before).items()}
    left = [
        (node.op_type, sizes[node.input[1]])
        for node in before.graph.node
        if node.op_type in LAYERS and node.input[1] in sizes.keys() - rounded
    ]
    assert all(kind == "MatMul" and size > 2 for kind, size in left)  # interpolations of maps


def test_answers_are_near(made, whole, run):
    """Where ranges were measured on other pictures than black ones."""
    pictures = np.random.default_rng(3).uniform(0, 255, (2, 3, *SIZE)).astype(np.float32)
    answers = [
        run_afresh(each.path, [pictures[:1], pictures[1:]], kind="onnx", custom_op=False)
        for each in (made, whole)
    ]
    for (scores, _, _, kept), (own, _, _, own_kept) in zip(*answers, strict=True):
        assert 1e-6 < np.abs(scores - own).max() < 0.02
        assert len(set(kept[0]) & set(own_kept[0])) > 0.75 * kept.shape[1]


def test_what_cannot_be_quantized_is_refused_before_any_work(predictor, run, tmp_path):
    with pytest.raises(ExportError, match=r"int8 needs an \.onnx file, got .*a\.pt2"):
        predictor.export(tmp_path / "a.pt2", SIZE, quantize=run / "val")
    with pytest.raises(ExportError, match="--half and --int8 exclude each other"):
        predictor.export(tmp_path / "a.onnx", SIZE, quantize=run / "val", half=True)
    for name in ("a.onnx", "A.ONNX"):
        with pytest.raises(ExportError, match="needs pictures to calibrate on"):
            predictor.export(tmp_path / name, SIZE, quantize=[])
    broken = tmp_path / "broken.png"
    broken.write_bytes((run / "val" / "plain.png").read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"broken\.png"):
        predictor.export(tmp_path / "a.onnx", SIZE, quantize=[run / "val" / "plain.png", broken])
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["out.onnx", "--int8", "nowhere"], "there is no file 'nowhere'"),
        (["out.onnx", "--int8", "{tmp}"], "has no pictures"),
        (["out.onnx", "--int8", "{tmp}/films"], "names only videos"),
        (["out.onnx", "--int8", "{tmp}/bad/a.png"], "a.png"),
        (["out.onnx", "--int8"], "name pictures to calibrate on: --int8 PICTURES"),
        (["out.onnx", "--int8", "{run}/val", "--int8-pictures", "0"], "must be at least 1"),
        (["out.onnx", "--int8", "{run}/val", "--half"], "--half and --int8 exclude each other"),
        (["out.pt2", "--int8", "{run}/val"], "int8 needs an .onnx file"),
    ],
)
def test_the_command_says_what_is_wrong(run, tmp_path, words, sentence, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without the training set of the quickstart
    (tmp_path / "films").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(b"film")
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    if words[1:] == ["--int8", "{tmp}"]:
        shutil.rmtree(tmp_path / "films")
        shutil.rmtree(tmp_path / "bad")
    out, *options = (word.format(tmp=tmp_path, run=run) for word in words)
    weights = str(run / "model_best.pth")
    assert main(["export", weights, str(tmp_path / out), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / out).exists()


def test_onnxruntime_has_to_be_there(predictor, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'sparsedet\[onnx\]'"):
        predictor.export(tmp_path / "a.onnx", SIZE, quantize=run / "val")


def test_the_command_takes_so_many_pictures_evenly(run, tmp_path, monkeypatch):
    for index in range(10):
        shutil.copy(run / "val" / "plain.png", tmp_path / f"{index}.png")
    args = argparse.Namespace(int8=str(tmp_path), int8_pictures=4)
    assert [Path(file).stem for file in _calibration(args)] == ["0", "2", "5", "7"]
    args.int8_pictures = 100
    assert len(_calibration(args)) == 10
