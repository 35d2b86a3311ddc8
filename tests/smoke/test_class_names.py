"""Names of classes are data: they come out of every command as the annotation file has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsedet.cli.main import main
from sparsedet.config import LazyConfig, texts
from sparsedet.predictor import Predictor
from tests.smoke.test_train_net import CONFIG, NARROW, draw_set, set_overrides

# In a config: still to be set, references, a reference that is cut, null, true, numbers, YAML.
NAMES = ("???", "${oc.env:HOME}", "a\\${b", "null", "1e3", "\\???", "true", "[x: {y}] # z", "~")


def test_names_that_mean_something_in_a_config(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HOME", "what the environment says")
    drawn, output = draw_set(tmp_path / "set", NAMES), tmp_path / "run"
    given = [*NARROW, *set_overrides(drawn), f"train.output_dir={output}"]
    config = str(root / CONFIG)
    assert main(["train", config, *given, "train.max_iter=1"]) == 0
    saved = LazyConfig.load(output / "config.yaml")
    assert tuple(texts(saved.dataset.class_names)) == NAMES
    assert main(["train", config, *given, "train.max_iter=1", "--resume"]) == 0
    weights = str(output / "model_final.pth")
    assert main(["eval", weights]) == 0
    results = json.loads((output / "results.json").read_text())
    assert [f"AP-{name}" in results["metrics"]["bbox"] for name in NAMES] == [True] * len(NAMES)
    predictor = Predictor(weights, device="cpu")
    assert predictor.class_names == NAMES
    words = ["--device", "cpu", "--score-threshold", "0", "--output", str(tmp_path / "found")]
    assert main(["predict", weights, str(drawn / "images"), *words]) == 0
    rows = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert {row["category_name"] for row in rows} <= set(NAMES)
    said = capsys.readouterr()
    logs = [path.read_text() for path in output.glob("*.txt")]
    for text in (said.out, said.err, caplog.text, *logs):
        assert "what the environment says" not in text
