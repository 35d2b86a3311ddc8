"""Exported files run in a new process as the model does, and tell how they are to be called."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsedet
from sparsedet import Predictor
from sparsedet.checkpoint import CheckpointError, load_checkpoint
from sparsedet.cli.main import main
from sparsedet.export import AnySize, Exported, ExportError, export
from sparsedet.export.check import Differences, compare, run_afresh
from sparsedet.export.contract import KEY, Contract
from sparsedet.export.formats import kind_of, read
from sparsedet.export.graph import DeployedDetector, trace
from sparsedet.export.sampling import gathered_attention
from sparsedet.layers import ms_deform_attn
from sparsedet.predictor.pictures import make_sample, read_picture
from tests.modeling import small
from tests.predictor.trained import NAMES

SIZE = (64, 96)


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("plain.pt2", "plain.onnx")]


@pytest.fixture(scope="module")
def ours(run: Path, predictor: Predictor) -> Exported:
    return predictor.export(run / "ours.pt2", SIZE)


@pytest.fixture(scope="module", params=["ours.pt2", *_SLOW])
def made(request: pytest.FixtureRequest, run: Path, predictor: Predictor) -> Exported:
    name: str = request.param
    if name == "ours.pt2":
        return request.getfixturevalue("ours")
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    return predictor.export(run / name, SIZE, custom_op=False)


def test_a_file_answers_as_the_model_does_in_a_new_process(made):
    assert made.differences.small, made.differences
    assert made.differences.tokens == 0  # the same were kept
    assert made.differences.scores < 1e-5


def test_the_operator_alone_needs_sparsedet(made):
    inputs = [np.zeros((1, 3, *SIZE), dtype=np.float32)]
    kind = kind_of(made.path)
    if made.contract.custom_op:
        with pytest.raises(ExportError, match=r"ours\.pt2 does not run in a new process"):
            run_afresh(made.path, inputs, kind=kind, custom_op=False)
    assert len(run_afresh(made.path, inputs, kind=kind, custom_op=made.contract.custom_op)[0]) == 4


def test_a_file_tells_how_it_is_called(made):
    contract, answer = read(made.path)
    assert contract == made.contract
    assert (contract.size, contract.class_names) == (SIZE, tuple(NAMES))
    scores, labels, boxes, kept = answer(np.zeros((1, 3, *SIZE), dtype=np.float32))
    assert scores.shape == labels.shape == boxes.shape[:2] == (1, scores.shape[1])
    assert (np.diff(scores) <= 0).all()
    assert kept.shape[0] == 1


def test_predictions_of_a_file_are_those_of_the_model(made, run, predictor):
    """A picture that fills the input; one that does not is fitted into it, without padding."""
    exported = Predictor(made.path, device="cpu")
    picture = read_picture(run / "val" / "plain.png")  # 120 x 90 becomes 85 x 64
    sample = make_sample(exported.mapper, picture)
    assert sample["image"].shape == (3, 64, 85)
    filled = torch.from_numpy(exported.model.fill(sample["image"]))
    with torch.inference_mode():
        scores, labels, boxes, *_ = DeployedDetector(predictor.model)(filled)
    boxes = boxes[0] * boxes.new_tensor((120 / 85, 90 / 64) * 2)
    boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, 120), boxes[:, 1::2].clamp(0, 90)
    found = exported(run / "val" / "plain.png", score_threshold=0)
    assert found.class_names == tuple(NAMES)
    np.testing.assert_allclose(found.scores, scores[0], atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels[0])
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=2e-3)


def test_the_input_is_filled_with_the_mean(made):
    exported = Predictor(made.path, device="cpu")
    filled = exported.model.fill(torch.full((3, 10, 20), 7, dtype=torch.uint8))
    assert filled.shape == (1, 3, *SIZE)
    assert (filled[0, :, :10, :20] == 7).all()
    mean = np.asarray([123.675, 116.28, 103.53], dtype=np.float32)
    np.testing.assert_allclose(filled[0, :, 10:].reshape(3, -1).T, mean[None].repeat(54 * 96, 0))


@pytest.mark.slow
def test_onnx_has_standard_operators_alone(run, predictor):
    onnx = pytest.importorskip("onnx")
    path = run / "standard.onnx"
    predictor.export(path, SIZE)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    kinds = {node.op_type for node in model.graph.node}
    assert "GridSample" not in kinds and "Gather" in kinds
    weights = sum(p.numel() for p in predictor.model.parameters()) * 4
    assert path.stat().st_size < 1.3 * weights + 300_000  # none is there twice, and no code
    assert str(Path(sparsedet.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "points", [float("nan"), float("inf"), -1e30, -0.2, 0.0, 0.5, 1.0, 1.2], ids=str
)
def test_gathers_sample_as_the_operator_does(points):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 9), (4, 5), (1, 1)]
    value = torch.randn(2, 84, 3, 8, generator=generator)
    locations = torch.rand(2, 11, 3, 3, 4, 2, generator=generator) * 1.6 - 0.3
    locations[0, :2, :, :, 0, 1] = points
    weights = torch.rand(2, 11, 3, 3, 4, generator=generator)
    expected = ms_deform_attn(value, shapes, locations, weights)
    got = gathered_attention(value, [side for pair in shapes for side in pair], locations, weights)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_program_without_our_operator_has_none_of_it():
    model = small.detector(small.NAMED["sparse"]).eval()
    named = [str(node.target) for node in trace(model, SIZE, custom_op=False).graph.nodes]
    assert not any("sparsedet" in name for name in named)
    named = [str(node.target) for node in trace(model, SIZE, custom_op=True).graph.nodes]
    assert any("sparsedet.ms_deform_attn" in name for name in named)


def test_another_answer_is_told():
    scores, labels = np.asarray([[0.9, 0.5]]), np.asarray([[1, 2]])
    boxes = np.asarray([[[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 30.0]]])
    own = [scores, labels, boxes, np.asarray([[1, 2, 3, 4]])]
    assert compare([own], [own], [SIZE]).small
    moved = compare([[scores, labels, boxes + np.asarray([0.96, 0, 0, 0]), own[3]]], [own], [SIZE])
    assert moved.boxes == pytest.approx(0.01) and not moved.small
    renamed = compare([[scores, np.asarray([[1, 0]]), boxes, own[3]]], [own], [SIZE])
    assert renamed.labels == 0.5 and not renamed.small
    other_tokens = compare([[scores, labels, boxes, np.asarray([[1, 2, 3, 5]])]], [own], [SIZE])
    assert other_tokens.tokens == 0.25 and not other_tokens.small


def test_what_cannot_be_exported_is_said_by_name(tmp_path, run, predictor):
    class Other(torch.nn.Module):
        pass

    facts = dict(size=SIZE, class_names=NAMES, pictures=None)
    with pytest.raises(ExportError, match="Other cannot be exported"):
        export(Other(), tmp_path / "a.pt2", **facts)
    oracle = small.detector(small.NAMED["sparse"])
    oracle.scorer = small.build(small.SCORERS.get("OracleScorer"))
    with pytest.raises(ExportError, match=r"model\.scorer cannot be exported: OracleScorer needs"):
        export(oracle, tmp_path / "a.pt2", **facts)
    with pytest.raises(ExportError, match=r"a\.engine must end in \.onnx, \.pt2 or \.aoti\.pt2"):
        predictor.export(tmp_path / "a.engine", SIZE)
    divided = small.detector(small.NAMED["sparse"])
    divided.backbone.size_divisibility = 32
    with pytest.raises(ExportError, match="Set --size 64 128"):
        export(divided, tmp_path / "a.pt2", size=(64, 100), class_names=NAMES, pictures=None)
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_kind_are_refused(tmp_path, made):
    with pytest.raises(ExportError, match="is not a file"):
        Predictor(tmp_path / "none.pt2")
    broken = tmp_path / f"broken{made.path.suffix}"
    broken.write_bytes(made.path.read_bytes()[:5000])
    with pytest.raises(ExportError, match="cannot be read"):
        Predictor(broken)
    with pytest.raises(ValueError, match=r"Predictor\.dtype is fixed in an exported file"):
        Predictor(made.path, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"Predictor\.config is fixed"):
        Predictor(made.path, "quickstart")
    with pytest.raises(ValueError, match=r"Predictor\.keep_ratio needs a model"):
        Predictor(made.path)(np.zeros((8, 8, 3), dtype=np.uint8), keep_ratio=0.1)


def test_a_program_without_facts_is_refused(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(ExportError, match="has no valid contract"):
        Predictor(tmp_path / "other.pt2")


def test_the_contract_is_read_as_it_was_written():
    contract = Contract(
        size=(2, 3), any_size=None, dynamic_batch=False, fill=(1.0, 2.0, 3.0),
        class_names=("\u00e4", "b"), score_threshold=0.5, precision="float32", custom_op=False,
        value_range=(0.0, 9.0), max_pixels=5, version="1",
    )  # fmt: skip
    assert Contract.from_json(contract.to_json(), "file") == contract
    dynamic = replace(contract, size=None, any_size=AnySize(800, 1333, 64, 128))
    assert Contract.from_json(dynamic.to_json(), "file") == dynamic
    assert (dynamic.canvas(800, 1067), dynamic.canvas(4, 1333)) == ((832, 1088), (128, 1344))
    newer = json.dumps(json.loads(contract.to_json()) | {"contract": 2, "version": "9.1"})
    with pytest.raises(ExportError, match=r"by sparsedet 9\.1 with contract version 2"):
        Contract.from_json(newer, "file")
    assert "x1, y1, x2, y2" in json.loads(contract.to_json())["boxes"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("contract", float("inf"), "no valid contract"),
        ("size", [64.5, 96], "Contract.size must be"),
        ("size", [0, 96], "pixels must be at least 1, got 0"),
        ("fill", [1, 2], "Contract.fill must be"),
        ("class_names", None, "Contract.class_names must be"),
        ("score_threshold", "high", "Contract.score_threshold must be a number"),
        ("score_threshold", float("nan"), r"score_threshold must be in \[0, 1\], got nan"),
        ("value_range", [5, 5], "value_range must ascend, got 5 and 5"),
        ("max_pixels", "x", "Contract.max_pixels must be a whole number"),
        ("any_size", {"short_side": 8, "max_size": 9, "multiple": 2, "least": "x"}, "AnySize"),
        ("any_size", {"short_side": 8, "max_size": 9, "multiple": 0, "least": 1}, "at least 1"),
    ],
)
def test_a_damaged_contract_is_refused(key, value, says):
    contract = Contract(
        size=(2, 3), any_size=None, dynamic_batch=False, fill=(1.0, 2.0, 3.0), class_names=("a",),
        score_threshold=0.5, precision="float32", custom_op=False, value_range=None, max_pixels=5,
        version="1",
    )  # fmt: skip
    changed = {"size": None} if key == "any_size" else {}
    text = json.dumps(json.loads(contract.to_json()) | changed | {key: value})
    with pytest.raises(ExportError, match=rf"^a\.onnx has .*{says}.*\. Export the checkpoint"):
        Contract.from_json(text, "a.onnx")


def test_labels_without_class_names_are_an_error(run, ours, tmp_path, capsys):
    crafted = tmp_path / "crafted.pt2"
    with zipfile.ZipFile(ours.path) as source, zipfile.ZipFile(crafted, "w") as target:
        for part in source.infolist():
            content = source.read(part)
            if part.filename.endswith(f"/extra/{KEY}"):
                content = json.dumps(json.loads(content) | {"class_names": []}).encode()
            target.writestr(part, content)
    says = r"crafted\.pt2 predicts label \d, but has only 0 class names .* Export the checkpoint"
    with pytest.raises(ExportError, match=says):
        Predictor(crafted)(run / "val" / "plain.png", score_threshold=0.0)
    words = [str(crafted), str(run / "val" / "plain.png"), "--score-threshold", "0"]
    assert main(["predict", *words, "--output", str(tmp_path / "out")]) == 2
    assert "has only 0 class names" in capsys.readouterr().err


@pytest.fixture(scope="module")
def few(run: Path) -> tuple[Path, str]:
    """A file that keeps few tokens and detections, and what the command said of it."""
    path, told = run / "few.pt2", io.StringIO()
    words = ["--size", "64", "96", "--keep-ratio", "0.05", "--score-threshold", "0.9"]
    with redirect_stdout(told):
        assert main(["export", str(run / "model_best.pth"), str(path), *words]) == 0
    return path, told.getvalue()


def test_the_command_says_what_it_wrote(run, few):
    path, told = few
    assert "pictures of 64 x 96" in told and "differences from the model" in told
    with zipfile.ZipFile(path) as archive:
        assert any(name.endswith(KEY) for name in archive.namelist())
    found = ["predict", str(path), str(run / "val"), "--output", str(run / "found")]
    assert main(found) in (0, 1)  # a picture of the set has no colors
    assert (run / "found" / "predictions.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_half_is_in_the_weights_alone(suffix, run, predictor):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    whole = predictor.export(run / f"whole{suffix}", SIZE)
    made = predictor.export(run / f"half{suffix}", SIZE, half=True, score_threshold=0.0)
    assert made.contract.precision == "float16"
    assert made.contract.fill == whole.contract.fill == pytest.approx((123.675, 116.28, 103.53))
    assert made.megabytes < 0.75 * whole.megabytes
    assert made.differences.detections and made.differences.tokens < 0.1
    assert made.differences.scores < 0.02
    scores, labels, boxes, _ = read(made.path)[1](np.zeros((1, 3, *SIZE), dtype=np.float32))
    assert (scores.dtype, labels.dtype, boxes.dtype) == (np.float32, np.int64, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", small.NAMED)
def test_named_systems_are_exported(name, suffix, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = small.detector(small.NAMED[name])
    from sparsedet.data import PictureSettings

    made = export(
        model, tmp_path / f"a{suffix}", size=SIZE, class_names=NAMES, pictures=PictureSettings(),
        custom_op=False,
    )  # fmt: skip
    assert made.differences.small, made.differences


def test_the_keep_ratio_and_the_threshold_are_in_the_file(run, predictor, ours, few):
    pixels = np.zeros((1, 3, *SIZE), dtype=np.float32)
    kept, fewer = (read(path)[1](pixels)[3] for path in (ours.path, few[0]))
    assert fewer.shape[1] < kept.shape[1] / 2
    loaded = Predictor(few[0])
    assert loaded.score_threshold == 0.9
    assert len(loaded(run / "val" / "plain.png")) < len(
        Predictor(ours.path)(run / "val" / "plain.png", score_threshold=0.0)
    )
    assert predictor.score_threshold == 0.3
    with pytest.raises(ValueError, match="needs a checkpoint"):
        loaded.export(run / "again.pt2", SIZE)
    with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\]"):
        predictor.export(run / "none.pt2", SIZE, keep_ratio=0)


def test_rounding_is_judged_by_that_of_the_model(made):
    assert made.agrees
    tie = Differences(scores=3e-4, boxes=1e-6, labels=0.0, tokens=0.0, detections=9)
    moved = Differences(scores=3e-4, boxes=1e-6, labels=0.0, tokens=0.0, detections=9)
    still = Differences(scores=1e-6, boxes=1e-6, labels=0.0, tokens=0.0, detections=9)
    assert not tie.small
    assert tie.within(moved)
    assert not tie.within(still)
    assert not Differences(2e-3, 1e-6, 0.0, 0.0, 9).within(moved)
    assert not Differences(1e-5, 1e-6, 0.1, 0.0, 9).within(moved)
    assert not Differences(1e-5, 1e-6, 0.0, 0.1, 9).within(moved)
    assert not Differences(float("nan"), 1e-6, 0.0, 0.0, 9).within(moved)
    assert made.rounding.scores > 0  # the pixels were moved


def test_predictors_of_files_can_be_pickled(made, run):
    exported = Predictor(made.path)
    again = pickle.loads(pickle.dumps(exported))
    picture = run / "val" / "plain.png"
    found, same = (each(picture, score_threshold=0) for each in (exported, again))
    np.testing.assert_array_equal(found.scores, same.scores)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["made.onnx", "b.pt2"], "is already an exported file"),
        (["model_best.pth", "b.pt2", "--size", "320000", "320000"], "pixels. Set a smaller one"),
        (["model_best.pth", "b.onnx", "--size", "-32", "64", "--int8", "val"], "must be positive"),
        (["model_best.pth", "b.pt2", "--int8-pictures", "4"], "needs --int8"),
        (["model_best.pth", "b.pt2", "--keep-ratio", "2"], "keep_ratio must be in"),
        (["model_best.pth", "b.pt2", "--score-threshold", "2"], "score_threshold must be in"),
    ],
)
def test_wrong_commands_end_in_one_sentence(words, message, run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    (run / "made.onnx").touch()
    assert main(["export", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (run / words[1]).exists()


def test_an_exported_file_is_no_checkpoint(tmp_path):
    (tmp_path / "a.ONNX").touch()
    with pytest.raises(CheckpointError, match=r"is an exported file\. Name the checkpoint"):
        load_checkpoint(tmp_path / "a.ONNX")
