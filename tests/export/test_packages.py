"""Packages that AOTInductor compiles, and where files run that do not need sparsedet."""

from __future__ import annotations

import os
import re
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsedet import Predictor
from sparsedet.cli.main import main
from sparsedet.export import ExportError
from sparsedet.export.contract import KEY, Contract
from sparsedet.export.formats import kind_of, read, write

SIZE = (64, 96)
CONTRACT = Contract(
    size=(2, 3), any_size=None, dynamic_batch=False, fill=(1.0, 2.0, 3.0), class_names=("a",),
    score_threshold=0.5, precision="float32", custom_op=False, value_range=None, max_pixels=5,
    version="1",
)  # fmt: skip


def test_the_name_says_the_kind():
    names = ("a.onnx", "a.pt2", "a.aoti.pt2", "aoti.pt2")
    assert [kind_of(Path(name)) for name in names] == ["onnx", "program", "package", "program"]


def test_what_does_not_run_is_not_written(tmp_path, predictor, monkeypatch):
    monkeypatch.setattr("sparsedet.export.check._WITH", "raise SystemExit('no such thing')\n")
    path = tmp_path / "a.pt2"
    path.write_bytes(b"before")
    with pytest.raises(ExportError, match=r"a\.pt2 does not .* not written \(no such thing\)"):
        predictor.export(path, SIZE)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_a_package_needs_a_compiler(tmp_path, predictor, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ExportError, match=r"needs a C\+\+ compiler, and none was found\. Install g\+\+"
    ):
        predictor.export(tmp_path / "a.aoti.pt2", SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(0, 64), (-32, 64)])
def test_sizes_that_are_none_are_refused(size, tmp_path, predictor):
    with pytest.raises(ExportError, match=r"--size must be positive, got"):
        predictor.export(tmp_path / "a.pt2", size)


def test_places_where_nothing_can_be_written_are_refused_first(tmp_path, run, capsys):
    weights = str(run / "model_best.pth")
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").write_text("")
    for path, told in (
        (tmp_path / "folder.pt2", "is a folder. Name a file."),
        (tmp_path / "file" / "a.pt2", "cannot be written"),
        (Path("/proc/a.pt2"), "cannot be written"),
    ):
        assert main(["export", weights, str(path)]) == 2
        assert told in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.pth"), str(tmp_path / "a.pt2")]) == 2
    assert "none.pth" in capsys.readouterr().err


@pytest.mark.slow
def test_a_package_answers_as_the_model_does(run, predictor, tmp_path):
    made = predictor.export(run / "ours.AOTI.Pt2", SIZE, dynamic_batch=True)
    assert made.differences.small and made.compared == 5, made.differences
    renamed = tmp_path / "renamed.pt2"
    os.link(made.path, renamed)
    exported = Predictor(renamed, batch_size=2)
    assert exported.model.contract == made.contract
    program = Predictor(predictor.export(run / "same.pt2", SIZE).path)
    paths = [run / "val" / "plain.png", run / "val" / "small.png"]
    for got, wanted in zip(
        exported(paths, score_threshold=0), program(paths, score_threshold=0), strict=True
    ):
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(got.boxes_xyxy, wanted.boxes_xyxy, atol=1e-2)
    with pytest.raises(ExportError, match="cannot be read"):
        broken = tmp_path / "broken.aoti.pt2"
        broken.write_bytes(made.path.read_bytes()[:100_000])
        Predictor(broken)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    """And not the end of the process."""
    program = torch.export.export(torch.nn.Linear(500, 500), (torch.zeros(1, 500),))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"a\.pt2'$"):
            write(program, tmp_path / "a.pt2", CONTRACT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    write(program, tmp_path / "A.PT2", CONTRACT)
    assert read(tmp_path / "A.PT2")[0] == CONTRACT


@pytest.mark.parametrize(
    ("kind", "shape", "says"),
    [
        ("FLOAT16", [1, 3, *SIZE], r"a\.onnx does not run \(.*expected: \(tensor\(float16\)\)"),
        ("FLOAT", [1, 3, *SIZE], r"a\.onnx does not give scores, labels and boxes\. Export"),
    ],
)
def test_a_file_that_another_tool_has_changed(kind, shape, says, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    number = getattr(onnx.TensorProto, kind)
    image = onnx.helper.make_tensor_value_info("images", number, shape)
    scores = onnx.helper.make_tensor_value_info("scores", number, None)
    node = onnx.helper.make_node("Identity", ["images"], ["scores"])
    opset = onnx.helper.make_opsetid("", 18)
    graph = onnx.helper.make_graph([node], "a", [image], [scores])
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    model.metadata_props.add(key=KEY, value=replace(CONTRACT, size=SIZE).to_json())
    onnx.save(model, tmp_path / "a.onnx")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    words = [str(tmp_path / "a.onnx"), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert main(["predict", *words]) == 2
    assert re.search(says, capsys.readouterr().err)
