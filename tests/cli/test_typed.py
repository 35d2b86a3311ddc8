"""Words after a config as people type them: each is a run, or one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsedet.cli.main import main
from tests.cli.fuzzing import small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    small_config("quickstart", folder)
    return folder / "quickstart.yaml"


def train(config, tmp_path, monkeypatch, *words):
    monkeypatch.chdir(tmp_path)
    return main(["train", str(config), "train.output_dir=run", *words])


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["++train.max_iter=1"], "run"),
        (["train.output_dir=2024"], "2024"),
        (["train.eval_period=None", "train.checkpointer.period=None"], "run"),
        (["train.max_iter=None", "dataset.class_names=None", "dataset.short_sides=(32,48)"], "run"),
        (
            ["optimizer._target_=torch.optim.SGD", "dataloader.evaluator.max_detections=[1,500]"],
            "run",
        ),
    ],
)
def test_runs(config, tmp_path, monkeypatch, words, folder):
    assert train(config, tmp_path, monkeypatch, *words) == 0
    assert Path(folder, "results.json").is_file()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "train.init_checkpoint=12345",
            "There are no published weights '12345', and no such file.",
        ),
        ("train.init_checkpoint=https://host.example/x.pth", "URLs are not fetched"),
        ("train.max_iter=many", "train.max_iter must be a number, got 'many'"),
        ("dataset.short_sides='[64]'", "must be one or more whole sizes >= 1, got ['[64]']"),
        ("dataset.max_size=null", "(config: dataset.max_size)"),
        ("dataset.value_range=-1", "dataset.value_range must be a list of numbers or null, got -1"),
        ("dataset=null", "dataset must be a group of settings or a component, got None"),
        ("optimizer._target_=SGD", "optimizer._target_=torch.optim.SGD"),
        ("optimizer.params=null", "optimizer.params"),
        ("optimizer.betas=[0.9]", "AdamW.betas must be a list of 2 values"),
        ("lr_multiplier.scheduler.end_value=-1", "lr_multiplier must give factors of at least 0"),
        ("model.pixel_std=[0,1,1]", "TokenSparseDetector.pixel_std must be positive numbers"),
        ("dataloader.evaluator.max_detections=500", "such as [1,10,500]"),
        ("dataloader.test=5", "dataloader.test"),
        ("train.epochs", "must be one word of the form key=value"),
        ("model.foo=1", "Unknown key model.foo."),
    ],
)
def test_sentences(config, tmp_path, monkeypatch, capfd, word, said):
    assert train(config, tmp_path, monkeypatch, word) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]


def test_a_config_from_elsewhere_needs_trust(config, tmp_path, monkeypatch, capfd):
    (tmp_path / "user_parts.py").write_text("from sparsedet.modeling import BoxL1Loss as OwnLoss\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own.yaml"
    text = config.read_text()
    assert "sparsedet.modeling.BoxL1Loss" in text
    path.write_text(text.replace("sparsedet.modeling.BoxL1Loss", "user_parts.OwnLoss"))
    for command in (["train"], ["eval"], ["analyze"], ["check-data", "--suggest"]):
        assert main([*command, str(path)]) == 2
        said = capfd.readouterr().err
        for word in (
            "user_parts.OwnLoss",
            "model.criterion.matched.1._target_",
            "--trust-config",
        ):
            assert word in said, command
    assert train(path, tmp_path, monkeypatch, "--trust-config") == 0
