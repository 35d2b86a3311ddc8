"""The configs and commands of the page of torchvision's detectors: whole runs, in small."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from sparsedet.analysis import count_flops, count_parameters
from sparsedet.checkpoint import leave_out_pretrained
from sparsedet.cli.main import main
from sparsedet.cli.train import Command, start
from sparsedet.config import LazyCall as L
from sparsedet.config import LazyConfig, find_config, instantiate
from tests.house.source import BASELINES, files
from tests.house.test_readme import blocks
from tests.modeling.small import samples
from tests.projects.test_configs import Strided
from tests.smoke.test_train_net import draw_set, set_overrides

CONFIGS = {path.stem: path for path in files("projects") if path.is_relative_to(BASELINES)}


def commands() -> list[tuple[str, ...]]:
    """Config and overrides of every command on the page that trains one of these."""
    found = []
    for text in blocks(BASELINES / "README.md", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line) if word not in ("--num-gpus", "8")]
            if words[:2] == ["sparsedet", "train"]:
                found.append(tuple(words[2:]))
            elif words[:2] == ["python", "tools/train_net.py"]:
                found.append(tuple(words[3:]))
    return [words for words in found if Path(words[0]).stem in CONFIGS]


def shrunk(*words: str):
    """A config with overrides that has a small backbone and fetches no weights."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(find_config(words[0])), list(words[1:]))
    cfg.dataset.num_classes = 3
    leave_out_pretrained(cfg)
    if cfg.model.backbone is not None:
        cfg.model.backbone = L(Strided)(dilation=False)
        cfg.model.in_channels = {name: 4 for name in cfg.model.in_channels}
    return cfg


def test_the_page_has_all_kinds():
    names = {shrunk(*words).model.name.split("_")[0] for words in commands()}
    assert names == {"fasterrcnn", "retinanet", "fcos", "ssdlite320"}
    assert {Path(words[0]).stem for words in commands()} == CONFIGS.keys()


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[-1].split("/")[-1])
def test_a_command_of_the_page_trains_a_step(words):
    cfg = shrunk(*words)
    model = instantiate(cfg.model).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    losses = model(samples([(64, 96), (60, 80)], [2, 3]))
    sum(losses.values()).backward()
    optimizer.step()
    moved = [key for key, parameter in model.named_parameters() if (parameter != before[key]).any()]
    parts = {".".join(key.split(".")[:3]) for key in before}  # such as detector.backbone.fpn
    assert len(parts) >= 4 and parts == {".".join(key.split(".")[:3]) for key in moved}
    rates = {
        key: group["lr"]
        for group in optimizer.param_groups
        for key, parameter in model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    slow = {key for key, rate in rates.items() if rate < max(rates.values())}
    own = {key for key in rates if re.match(r"detector\.backbone\.(body|features)\.", key)}
    assert slow == (own if Path(words[0]).stem == "faster_rcnn_photos" else set())


# torchvision's own numbers, which go with its weights: parameters, GFLOPs of an 800x800 image
@pytest.mark.parametrize(
    ("stem", "outputs", "parameters", "gflops"),
    [
        ("faster_rcnn_r50_26ep", 90, 41_755_286, 134.38),  # and the background
        ("retinanet_r50_26ep", 91, 34_014_999, 151.54),
        ("fcos_r50_26ep", 91, 32_269_600, 128.207),
    ],
)
def test_costs_are_those_that_torchvision_states(stem, outputs, parameters, gflops):
    cfg = LazyConfig.load(CONFIGS[stem])
    cfg.dataset.num_classes = outputs
    cfg.model.backbone.weights = None
    model = instantiate(cfg.model)
    assert count_parameters(model).total == parameters
    if stem == "retinanet_r50_26ep":
        return  # the shape of the count is that of FCOS, and it takes twice as long
    found = count_flops(model, (800, 800))
    assert found.total == pytest.approx(gflops, rel=0.002)
    heads = {"rpn", "roi_heads"} if stem.startswith("faster") else {"head"}
    assert set(found.stages) == {"backbone", "neck", *heads} and min(found.stages.values()) > 1


def test_recipes_are_torchvisions():
    facts = {}
    for stem in ("faster_rcnn_r50_26ep", "retinanet_r50_26ep", "fcos_r50_26ep"):
        cfg = LazyConfig.load(CONFIGS[stem])
        schedule = instantiate(cfg.lr_multiplier)
        rates = [round(schedule(epoch / 26), 4) for epoch in (1, 15.9, 16.1, 21.9, 22.1)]
        assert rates == [1.0, 1.0, 0.1, 0.1, 0.01] and schedule(0) == pytest.approx(0.001)
        assert cfg.dataloader.train.total_batch_size == 16 and cfg.train.epochs == 26
        assert cfg.optimizer.momentum == 0.9 and cfg.optimizer.weight_decay == 1e-4
        assert not cfg.train.clip_grad.enabled and list(cfg.dataset.short_sides) == [800]
        facts[stem.split("_")[0]] = (cfg.optimizer.lr, cfg.train.amp.enabled)
    assert facts == {"faster": (0.02, False), "retinanet": (0.01, False), "fcos": (0.01, True)}


# --- a whole run ----------------------------------------------------------------------------------

SMALL = (
    "model.backbone={_target_: TorchvisionResNet, name: resnet18, norm: bn, freeze_at: 0, "
    "out_features: [res2, res3, res4, res5]}",
    "model.in_channels={res2: 64, res3: 128, res4: 256, res5: 512}",
    "dataset.short_sides=[48,64]",
    "dataset.test_short_side=64",
    "dataset.max_size=96",
    "dataloader.train.num_workers=0",
    "train.device=cpu",
    "train.tensorboard=false",
    "train.log_period=1",
    "train.seed=0",
    "train.checkpointer.period=2",
    "train.max_iter=4",
    "optimizer.lr=1e-5",  # at more of it nothing scores above Faster R-CNN's threshold for a while
    "train.eval_period=0",
    "train.early_stopping.patience=null",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, and in `whole` what four iterations of Faster R-CNN on it leave."""
    folder = tmp_path_factory.mktemp("baseline")
    words = [*SMALL, *set_overrides(draw_set(folder / "set")), f"train.output_dir={folder}/whole"]
    assert main(["train", "faster_rcnn_photos", *words]) == 0
    return folder


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(run: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "metrics.json", "checkpoint_0000002.pth"):
        shutil.copy(run / "whole" / name, tmp_path)
    (tmp_path / "last_checkpoint").write_text("checkpoint_0000002.pth\n")
    words = ["--resume", f"train.output_dir={tmp_path}"]
    assert main(["train", f"{tmp_path}/config.yaml", *words]) == 0
    assert losses(tmp_path) == losses(run / "whole")
    first, second = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (run / "whole", tmp_path)
    )
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.slow
def test_two_processes_train(run: Path, tmp_path: Path, quick_processes: None) -> None:
    words = [*SMALL, *set_overrides(run / "set"), f"train.output_dir={tmp_path}"]
    path = str(CONFIGS["faster_rcnn_photos"])
    assert start(Command(path, tuple(words), num_gpus=2)) == 0
    assert len(losses(tmp_path)) == 4
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["num_processes"] == 2 and results["metrics"]["num_images"] == 6


def test_a_run_leaves_results_and_its_weights_evaluate_to_the_same(run: Path) -> None:
    first = json.loads((run / "whole/results.json").read_text())
    assert first["keep_ratio"] is None and first["metrics"]["num_images"] == 6
    assert len(losses(run / "whole")) == 4
    assert main(["eval", f"{run}/whole/model_final.pth", f"train.output_dir={run}/eval"]) == 0
    again = json.loads((run / "eval/eval_results.json").read_text())
    assert again["metrics"]["bbox"] == first["metrics"]["bbox"]


def test_pictures_are_predicted_with_the_config_in_the_file(run: Path) -> None:
    picture = f"{run}/set/images/0.png"
    words = [f"{run}/whole/model_final.pth", picture, "--device", "cpu", "--score-threshold", "0"]
    assert main(["predict", *words, "--output", f"{run}/found"]) == 0
    rows = json.loads((run / "found/predictions.json").read_text())
    evaluated = json.loads((run / "whole/predictions.json").read_text())
    own = [each for each in evaluated if each["image_id"] == 0]
    assert len(rows) == len(own) > 0
    for row, other in zip(rows, own, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-3)
        assert row["bbox"] == pytest.approx(other["bbox"], abs=0.1)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("visualize", ["{run}/set/images/0.png", "--weights", "{weights}"]),
        ("analyze", ["--tokens", "--weights", "{weights}"]),
        ("sweep", ["--weights", "{weights}", "--ratios", "0.1"]),
        ("calibrate", ["--weights", "{weights}", "--output", "{run}/calibrated"]),
    ],
)
def test_what_looks_at_tokens_says_that_there_are_none(run, capsys, command, words):
    before = sorted(run.rglob("*"))
    given = [word.format(run=run, weights=f"{run}/whole/model_final.pth") for word in words]
    assert main([command, f"{run}/whole/config.yaml", *given]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: TorchvisionDetector has no tokens to look at")
    assert sorted(run.rglob("*")) == before


def test_tokens_and_keep_ratios_of_pictures_are_refused(run, capsys):
    words = ["predict", f"{run}/whole/model_final.pth", f"{run}/set/images/0.png"]
    for option, message in (
        (["--tokens"], "no tokens"),
        (["--keep-ratio", "0.3"], "selector has a keep_ratio"),
    ):
        assert main([*words, *option, "--device", "cpu", "--output", f"{run}/none"]) == 2
        assert f"{message}" in capsys.readouterr().err
    assert not (run / "none").exists()


def test_costs_by_stage(run: Path, capsys) -> None:
    words = ["analyze", f"{run}/whole/config.yaml", "--size", "64", "96", "--latency"]
    assert main([*words, "--repetitions", "2"]) == 0
    stages = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert {"backbone", "neck", "rpn", "roi_heads", "total"} <= set(stages)


@pytest.mark.slow
def test_they_are_measured_by_stage(run: Path, capsys) -> None:
    for mode in ("model", "train-step"):
        words = ["benchmark", mode, "--config-file", f"{run}/whole/config.yaml", "--no-memory"]
        assert main([*words, "--image-size", "64x96", "--rounds", "2", "--seconds", "0"]) == 0
    assert "backbone" in capsys.readouterr().out


def test_a_set_is_checked_against_the_settings(run: Path, capsys) -> None:
    words = ["check-data", "faster_rcnn_photos", *set_overrides(run / "set")]
    assert main([*words, "model.max_detections=1"]) == 0
    said = capsys.readouterr().out
    assert "model.max_detections is 1, and a picture has up to 2 objects" in said
    assert "num_queries" not in said
    assert main([*words, "--suggest"]) == 0


def test_a_part_that_does_not_fit_is_found_before_training(run: Path, capsys, tmp_path) -> None:
    words = [*SMALL, *set_overrides(run / "set"), f"train.output_dir={tmp_path}/none"]
    words.append("model.in_channels={res2: 64, res3: 128, res4: 256, res5: 8}")
    assert main(["train", "faster_rcnn_photos", *words]) == 2
    assert "the parts of model do not fit together" in capsys.readouterr().err
