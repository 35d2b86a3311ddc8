"""What a person gets from a predictor is what its evaluation measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedet.cli.eval import main
from sparsedet.config import instantiate
from sparsedet.evaluation import COCOEvaluator
from sparsedet.predictor import Predictor
from sparsedet.predictor.evaluation import evaluate_predictor
from tests.predictor.trained import config, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def written(run: Path, output: Path, *options: str) -> list[dict[str, Any]]:
    """What was found, as the command line writes it."""
    arguments = [str(run / "model_best.pth"), *options]
    assert main([*arguments, f"train.output_dir={output}", "train.device=cpu"]) == 0
    assert "bbox" in json.loads((output / "eval_results.json").read_text())["metrics"]
    return json.loads((output / "predictions.json").read_text())


def predicted(run: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    """What was found, as the evaluation of the predictor writes it."""
    predictor = Predictor(run / "model_best.pth", device="cpu", **options)
    dataset = instantiate(config(run).dataloader.test.dataset)
    results = evaluate_predictor(predictor, dataset, COCOEvaluator(dataset, output_dir=str(output)))
    assert results["num_images"] == len(dataset.records)
    return json.loads((output / "predictions.json").read_text())


def numbers(rows: list[dict[str, Any]]) -> np.ndarray:
    """Image, class, box and score of every row, in an order of their own."""
    return np.array(sorted([r["image_id"], r["category_id"], r["score"], *r["bbox"]] for r in rows))


def test_whole_pictures_give_what_the_test_loader_gives(run: Path, tmp_path: Path) -> None:
    own, loaded = (numbers(each(run, tmp_path)) for each in (predicted, written))
    assert len(own) > 50
    np.testing.assert_allclose(own, loaded, atol=1e-2)


def test_tiles_give_what_the_predictor_with_tiles_gives(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    tiled = written(run, tmp_path, "--tiles", "64", "--overlap", "0.25")
    assert tiled == predicted(run, tmp_path, tiles=64, overlap=0.25)
    assert len(tiled) != len(predicted(run, tmp_path))


def test_other_classes_are_refused(run: Path) -> None:
    predictor = Predictor(run / "model_best.pth", device="cpu")
    cfg = config(run).dataloader.test.dataset
    cfg.class_names = ["owl", "dog", "cat"]
    other = instantiate(cfg)
    with pytest.raises(ValueError, match="must have the classes"):
        evaluate_predictor(predictor, other, COCOEvaluator(other))


def test_tiles_need_named_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run / "config.yaml"), "--tiles", "64"]) == 2
    assert "--tiles evaluates given weights" in capsys.readouterr().err
