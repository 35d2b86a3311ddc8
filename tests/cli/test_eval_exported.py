"""`sparsedet eval` of an exported file: its AP is that of what it finds, on a set that is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsedet import Predictor
from sparsedet.cli.main import main
from sparsedet.data import open_dataset
from sparsedet.evaluation import COCOEvaluator
from sparsedet.export.formats import kind_of
from sparsedet.files import is_exported
from sparsedet.predictor.evaluation import evaluate_predictor
from tests.predictor.trained import NAMES, write_checkpoint, write_pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported detector, and a set whose boxes are what it finds but for one class."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder)
    files = [file for file in write_pictures(folder) if file.name != "deep.png"]
    Predictor(folder / "model_best.pth", device="cpu").export(folder / "model.pt2", (64, 96))
    predictor = Predictor(folder / "model.pt2")
    content = json.loads((folder / "val.json").read_text())
    content["images"] = [each for each in content["images"] if each["file_name"] != "deep.png"]
    content["annotations"] = []
    for image in content["images"]:
        file = next(file for file in files if file.name == image["file_name"])
        for row in predictor(file, score_threshold=0).to_coco(image["id"])[:4]:
            content["annotations"].append(
                {**row, "id": len(content["annotations"]) + 1, "iscrowd": 0, "area": 1000}
            )
    (folder / "val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def expected(run: Path) -> dict[str, float]:
    """What the evaluation loop says of the same file."""
    dataset = open_dataset(run / "val.json", run / "val", class_names=NAMES)
    evaluator = COCOEvaluator(dataset, output_dir=str(run / "own"), area_bounds="coco")
    return evaluate_predictor(Predictor(run / "model.pt2"), dataset, evaluator)["bbox"]


def words(run: Path, *more: str) -> list[str]:
    of_set = [f"dataset.val_json={run}/val.json", f"dataset.val_images={run}/val"]
    return [*of_set, f"train.output_dir={run}/eval", *more]


@pytest.mark.parametrize(
    "start",
    [
        ["{run}/model.pt2"],
        ["--weights", "{run}/model.pt2"],
        ["{run}/config.yaml", "--weights", "{run}/model.pt2"],
        ["quickstart", "--weights", "{run}/model.pt2"],
    ],
    ids=["alone", "named", "own config", "another config"],
)
def test_the_metrics_are_those_of_what_the_file_finds(run, expected, start, capsys):
    assert main(["eval", *(word.format(run=run) for word in start), *words(run)]) == 0
    assert expected["AP"] > 20
    assert f"{expected['AP']:.1f}" in capsys.readouterr().out
    written = json.loads((run / "eval" / "eval_results.json").read_text())
    assert written["metrics"]["bbox"]["AP"] == pytest.approx(expected["AP"])
    assert written["weights"] == f"{run}/model.pt2"
    assert (run / "eval" / "predictions.json").is_file()


def test_the_config_of_the_set_may_be_the_checkpoints(run, capsys):
    """The set of the training run, without a word more than its config."""
    start = [f"{run}/config.yaml", "--weights", f"{run}/model.pt2"]
    assert main(["eval", *start, f"train.output_dir={run}/other"]) == 0
    assert (run / "other" / "eval_results.json").is_file()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["dataset.test_short_side=320"], "dataset.test_short_side is fixed"),
        (["model.num_classes=7"], "model.num_classes is fixed"),
        (["train.device=cuda"], "train.device is fixed"),
        (["--num-gpus", "2"], "is evaluated in one process"),
        (["--overlap", "0.2"], "--overlap needs --tiles"),
        (["--dtype", "bfloat16"], "Predictor.dtype is fixed in an exported file"),
        (["--resume"], "--resume evaluates the last checkpoint of a run"),
        (["--weights", "other.pth"], "--weights other.pth are both weights"),
        (["dataset.val_jsno=a.json"], "dataset.val_jsno"),
        (["dataset.class_names=[dog,cat,owl]"], "must have the classes"),
    ],
)
def test_what_goes_wrong_is_said(run, change, sentence, capsys):
    assert main(["eval", f"{run}/model.pt2", *words(run), *change]) == 2
    assert sentence in capsys.readouterr().err


def test_a_set_has_to_be_named(run, tmp_path, capsys):
    assert main(["eval", f"{run}/model.pt2", f"train.output_dir={tmp_path}"]) == 2
    assert "Add dataset.val_json=PATH" in capsys.readouterr().err
    content = json.loads((run / "val.json").read_text())
    content["categories"][0]["name"] = "ant"
    (tmp_path / "ants.json").write_text(json.dumps(content))
    other = [*words(run), f"dataset.val_json={tmp_path}/ants.json"]
    assert main(["eval", f"{run}/model.pt2", *other]) == 2
    assert "ant" in capsys.readouterr().err
    (tmp_path / "none.onnx").write_bytes(b"no model")
    assert main(["eval", f"{tmp_path}/none.onnx", *words(run)]) == 2
    assert "none.onnx cannot be read" in capsys.readouterr().err
    assert main(["eval", f"{tmp_path}/absent.pt2", *words(run)]) == 2
    assert "is not a file" in capsys.readouterr().err


def test_the_command_knows_the_formats():
    for name in ("a.pt2", "a.aoti.pt2", "a.onnx", "a.ONNX"):
        assert is_exported(name) and kind_of(Path(name))
    assert not is_exported("a.pth")


def test_a_checkpoint_is_evaluated_in_another_format(run, capsys):
    """As the predictor of this format finds objects, which is not quite what it finds in fp32."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        evaluate = ["eval", f"{run}/model_best.pth", *words(run), "--dtype", dtype]
        assert main(evaluate) == 0
        predictor = Predictor(run / "model_best.pth", device="cpu", dtype=dtype)
        dataset = open_dataset(run / "val.json", run / "val", class_names=NAMES)
        evaluator = COCOEvaluator(dataset, output_dir=str(run / "own"), area_bounds="coco")
        expected = evaluate_predictor(predictor, dataset, evaluator)["bbox"]
        written = json.loads((run / "eval" / "eval_results.json").read_text())
        assert written["metrics"]["bbox"]["AP"] == pytest.approx(expected["AP"], abs=0.5)
        found[dtype] = expected["AP"]
    assert found["float32"] != found["bfloat16"]
    capsys.readouterr()
    assert main(["eval", f"{run}/model_best.pth", *words(run), "--dtype", "int4"]) == 2
    assert "Predictor.dtype must be one of float32, bfloat16, float16" in capsys.readouterr().err
    assert main(["eval", "quickstart", *words(run), "--dtype", "float16"]) == 2
    assert "--dtype evaluates given weights in one process" in capsys.readouterr().err


def test_an_output_that_cannot_be_a_folder_is_refused_before_the_evaluation(
    run, capsys, monkeypatch
):
    def never(*_: object) -> None:
        raise AssertionError("evaluated")

    monkeypatch.setattr("sparsedet.predictor.evaluation.evaluate_predictor", never)
    (run / "taken").touch()
    assert main(["eval", str(run / "model.pt2"), *words(run), f"train.output_dir={run}/taken"]) == 2
    assert "taken cannot be created" in capsys.readouterr().err
