"""`sparsedet train` and its tool, whole: a tiny set of drawn images, and answers to bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sparsedet.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.cli.main import main
from sparsedet.config import LazyConfig

CONFIG = "projects/sparse_detr/configs/sparse_detr_r50_rho30_50ep.py"
SMALL = (
    "dataset.short_sides=[48,64]",
    "dataset.test_short_side=64",
    "dataset.max_size=96",
    "dataset.num_classes=null",
    "model.embed_dim=64",
    "model.backbone.name=resnet18",
    "model.backbone.weights=null",
    "model.neck.in_channels={res3: 128, res4: 256, res5: 512}",
    "model.encoder.num_layers=2",
    "model.encoder.feedforward_dim=32",
    "model.decoder.num_layers=2",
    "model.decoder.feedforward_dim=32",
    "model.query_initializer.num_queries=10",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.test.batch_size=4",
    "train.device=cpu",
    "train.tensorboard=false",
    "train.log_period=1",
)
# a checkpoint of a megabyte: otherwise writing them is most of what a run takes
NARROW = (
    *SMALL,
    "model.backbone._target_=TimmBackbone",
    "model.backbone.name=resnet10t",
    "+model.backbone.model_args={channels: [8, 8, 16, 16], stem_width: 8}",
    "model.neck.in_channels={res3: 8, res4: 16, res5: 16}",
)


def draw_set(
    folder: Path,
    classes: tuple[str, ...] = ("box", "dot", "bar"),
    heights: tuple[int, ...] = (48, 64),
) -> Path:
    """Six images with one or two boxes each, the same for training and validation."""
    images = folder / "images"
    images.mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * i + 1, "name": name} for i, name in enumerate(classes)],
    }
    for index in range(6):
        picture = Image.new("RGB", (64, heights[index % len(heights)]), (40 * index, 90, 120))
        for place in range(1 + index % 2):
            x, y, w, h = 5 + 25 * place, 6 + 2 * index, 20, 16
            ImageDraw.Draw(picture).rectangle((x, y, x + w, y + h), fill=(250, 200, 10 * index))
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index,
                    "category_id": content["categories"][index % len(classes)]["id"],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        picture.save(images / f"{index}.png")
        content["images"].append(
            {
                "id": index,
                "file_name": f"{index}.png",
                "width": picture.width,
                "height": picture.height,
            }
        )
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def set_overrides(folder: Path) -> list[str]:
    return [
        f"dataset.train_json={folder}/instances.json",
        f"dataset.train_images={folder}/images",
        f"dataset.val_json={folder}/instances.json",
        f"dataset.val_images={folder}/images",
    ]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("set") / "three")


@pytest.fixture(scope="module")
def train_net(root: Path) -> Iterator[Callable[..., int]]:
    """`main` of the tool, run in this process."""
    spec = importlib.util.spec_from_file_location("train_net", root / "tools/train_net.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules["train_net"] = tool
    spec.loader.exec_module(tool)

    def run(*arguments: str, config: str | Path = root / CONFIG) -> int:
        return tool.main(["--config-file", str(config), *arguments])

    yield run
    del sys.modules["train_net"]


@pytest.fixture(scope="module")
def trained(
    train_net: Callable[..., int], drawn: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output folder of a run of two epochs."""
    output = tmp_path_factory.mktemp("run")
    ours = (f"train.output_dir={output}", "train.epochs=2", "train.model_ema.enabled=true")
    assert train_net(*NARROW, *set_overrides(drawn), *ours) == 0
    return output


def _rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def test_a_run_leaves_everything_behind(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.json",
        "results.json",
        "log.txt",
        "last_checkpoint",
        "checkpoint_0000003.pth",
        "checkpoint_0000006.pth",
        "model_best.pth",
        "model_final.pth",
        "report.html",
    }
    rows = _rows(trained)
    assert [row["iteration"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["iteration"] for row in rows if "eval/bbox/AP" in row] == [3, 6]
    results = json.loads((trained / "results.json").read_text())
    assert results["iterations"] == 6
    assert results["seconds_training"] > 0
    assert results["ended"] == "all iterations are done"
    assert 0 < results["keep_ratio"] < 0.6
    bbox = results["metrics"]["bbox"]
    assert results["metrics"]["details"]["unit"] == "percent"
    assert [row["class"] for row in results["metrics"]["details"]["per_class"]]
    evaluated = [row for row in rows if "eval/bbox/AP" in row]
    assert evaluated[-1]["eval/bbox/AP50"] == bbox["AP50"] >= 0
    assert not [name for row in rows for name in row if "details" in name]
    assert results["versions"]["torch"] == torch.__version__


def test_it_starts_again_from_its_saved_config(
    train_net: Callable[..., int], trained: Path, tmp_path: Path
) -> None:
    """The same losses, in two pieces, without any other override."""
    config = trained / "config.yaml"
    output = (f"train.output_dir={tmp_path}",)
    assert train_net(*output, "train.max_iter=4", "train.eval_epochs=0", config=config) == 0
    (tmp_path / "checkpoint_0000004.pth").unlink()  # as if killed after the third
    assert train_net("--resume", *output, config=config) == 0
    expected = [row["loss"] for row in _rows(trained) if "loss" in row]
    losses = [row["loss"] for row in _rows(tmp_path) if "loss" in row]
    assert losses[:3] == expected[:3]
    assert losses[3:] == expected[3:]


def test_resuming_a_run_that_is_done(train_net: Callable[..., int], trained: Path) -> None:
    before = (trained / "results.json").read_text()
    assert train_net("--resume", config=trained / "config.yaml") == 0
    assert (
        json.loads((trained / "results.json").read_text())["metrics"]
        == (json.loads(before)["metrics"])
    )


def test_a_run_that_learns_nothing_ends_early(
    train_net: Callable[..., int], trained: Path, tmp_path: Path
) -> None:
    arguments = (
        f"train.output_dir={tmp_path}",
        "optimizer.lr=0.0",
        "train.eval_period=1",
        "train.early_stopping.patience=2",
    )
    for _ in range(2):  # resumed, it does not go on
        assert train_net("--resume=auto", *arguments, config=trained / "config.yaml") == 0
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["iterations"] == 3 and results["best"]["iteration"] == 1
        assert results["ended"] == "early stopping: no better bbox/AP in 2 evaluations"
    assert [row["iteration"] for row in _rows(tmp_path) if "loss" in row] == [1, 2, 3]
    assert (tmp_path / "model_final.pth").is_file()


# Loaders and an evaluator as detectron2 has them: nothing but what its tools ask for.
GUEST = """
import itertools
import math
from collections import OrderedDict


class Endless:
    def __init__(self, dataset, mapper, total_batch_size):
        self.dataset, self.mapper, self.size = dataset, mapper, total_batch_size

    def __iter__(self):
        records = itertools.cycle(list(self.dataset.records))
        while True:
            yield [self.mapper(record) for record in itertools.islice(records, self.size)]


def batches(dataset, mapper):
    return [[mapper(record)] for record in dataset.records]


class Evaluator:
    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len([o["instances"].pred_boxes.tensor.shape[0] for o in outputs])

    def evaluate(self):
        assert self.count == 6
        return OrderedDict(bbox={"AP": 30.5, "APl": math.nan, "AP-box": 30.5})
"""


def test_loaders_and_evaluators_of_others(
    train_net: Callable[..., int],
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "guest.py").write_text(GUEST)
    monkeypatch.syspath_prepend(str(tmp_path))
    output = tmp_path / "run"
    ours = ("dataloader.train.num_workers", "dataloader.test.num_workers", "dataloader.test.batch")
    arguments = (
        *(each for each in NARROW if not each.startswith(ours)),
        *set_overrides(drawn),
        f"train.output_dir={output}",
        "dataloader.train._target_=guest.Endless",
        "dataloader.test._target_=guest.batches",
        "dataloader.evaluator._target_=guest.Evaluator",
    )
    assert train_net(*arguments) == 2
    error = capsys.readouterr().err
    assert "dataloader.train (Endless) has no length" in error
    assert "Set train.max_iter, train.eval_period, train.checkpointer.period" in error
    lengths = ("train.eval_period=0", "train.checkpointer.period=2")
    assert train_net(*arguments, *lengths, "train.max_iter=2") == 0
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"]["bbox"]["AP-box"] == 30.5
    assert results["best"]["value"] == 30.5
    assert "30.5" in capsys.readouterr().out
    assert train_net(*arguments, *lengths, "train.max_iter=3", "--resume") == 0
    assert (output / "log.txt").read_text().count("the resumed run starts a new epoch") == 1
    rows = [row for row in _rows(output) if "loss" in row]
    assert [row["iteration"] for row in rows] == [1, 2, 3] and "epoch" not in rows[0]


def test_any_transform_of_torchvision_is_an_override(
    train_net: Callable[..., int], trained: Path, tmp_path: Path
) -> None:
    """They come before or after our own, and survive the saved config."""
    transforms = (
        "dataloader.train.mapper.transforms="
        "[{_target_: torchvision.transforms.v2.RandomPhotometricDistort, p: 1.0},"
        " {_target_: sparsedet.data.AerialAugmentation, short_sides: [48], max_size: 96},"
        " {_target_: torchvision.transforms.v2.RandomRotation, degrees: 10}]"
    )
    output = f"train.output_dir={tmp_path}/"
    assert (
        train_net(transforms, output + "a", "train.max_iter=1", config=trained / "config.yaml") == 0
    )
    again = tmp_path / "a" / "config.yaml"
    assert train_net(output + "b", config=again) == 0
    assert _rows(tmp_path / "a")[0]["loss"] == _rows(tmp_path / "b")[0]["loss"]
    assert _rows(tmp_path / "a")[0]["loss"] != _rows(trained)[0]["loss"]


def test_evaluation_alone(
    train_net: Callable[..., int], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = f"train.init_checkpoint={trained}/model_final.pth"
    assert train_net("--eval-only", weights, config=trained / "config.yaml") == 0
    found = json.loads((trained / "eval_results.json").read_text())["metrics"]["bbox"]
    expected = json.loads((trained / "results.json").read_text())["metrics"]["bbox"]
    assert found == expected
    assert "AP50" in capsys.readouterr().out


def _strict(path: Path) -> Any:
    """JSON as other programs read it, which know no NaN."""
    return json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))


@pytest.mark.parametrize("kept", [{}, {"annotations": []}])
def test_evaluation_without_annotations(
    train_net: Callable[..., int],
    trained: Path,
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kept: dict[str, Any],
) -> None:
    """Of COCO's test-dev nobody has the boxes: the predictions are what is wanted."""
    content = json.loads((drawn / "instances.json").read_text())
    del content["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(content | kept))
    words = [f"dataset.val_json={tmp_path}/test.json", f"train.output_dir={tmp_path}"]
    weights = f"{trained}/model_final.pth"
    config = trained / "config.yaml"
    ways: list[Callable[[], int]] = [
        lambda: train_net("--eval-only", f"train.init_checkpoint={weights}", *words, config=config),
        lambda: main(["eval", weights, *words, "dataloader.evaluator.plots=true"]),
    ]
    for run in ways:
        (tmp_path / "predictions.json").unlink(missing_ok=True)
        assert run() == 0
        assert {each["image_id"] for each in _strict(tmp_path / "predictions.json")} == set(
            range(6)
        )
        metrics = _strict(tmp_path / "eval_results.json")["metrics"]
        assert set(metrics["bbox"].values()) == {None}
        assert "has no annotated boxes, so AP is undefined" in (tmp_path / "log.txt").read_text()
        table = capsys.readouterr().out.splitlines()
        assert table[0].split()[:2] == ["AP", "AP50"] and table[1].split()[:2] == ["-", "-"]
        assert len(table) == 2  # no class has boxes
        assert not list(tmp_path.glob("c*.json"))


def test_tables_and_rules_of_an_evaluation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old configs too take the evaluator's settings as overrides."""
    evaluator = "dataloader.evaluator."
    words = [
        f"train.output_dir={tmp_path}",
        f"{evaluator}area_bounds=ai-tod",
        f"{evaluator}max_detections=[1,7]",
    ]
    assert main(["eval", str(trained / "model_final.pth"), *words]) == 0
    metrics = _strict(tmp_path / "eval_results.json")["metrics"]
    names = [name for name in metrics["bbox"] if not name.startswith("AP-")]
    assert names == [
        *("AP", "AP50", "AP75", "APvt", "APt", "APs", "APm"),
        *("AR1", "AR7", "ARvt", "ARt", "ARs", "ARm", "AP50_class_agnostic"),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "APvt", "APt", "APs", "APm", "keep_ratio"]
    assert lines[3].split() == ["class", "images", "boxes", "AP", "AP50", "AR"]
    rows = {row["class"]: row for row in metrics["details"]["per_class"]}
    assert set(rows) == {line.split()[0] for line in lines[4:]} == {"box", "dot", "bar"}
    assert sum(row["boxes"] for row in rows.values()) == 9
    written = {path.name for path in tmp_path.iterdir()}
    assert {"curves.json", "confusion.json"} <= written and "curves.png" not in written


def test_an_evaluator_of_others(
    train_net: Callable[..., int],
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its NaN and its numbers of numpy become valid JSON."""
    words = (
        "dataloader.evaluator._target_=tests.smoke.test_train_net.ForeignEvaluator",
        f"train.init_checkpoint={trained}/model_final.pth",
        f"train.output_dir={tmp_path}",
    )
    assert train_net("--eval-only", *words, config=trained / "config.yaml") == 0
    metrics = _strict(tmp_path / "eval_results.json")["metrics"]
    assert metrics["bbox"] == {"AP": 12.5, "AP50": None, "AP-box": None}
    assert metrics["segm"] == {"AP": 1.0}
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["12.5", "-"]


class ForeignEvaluator:
    """As detectron2's: no details, NaN where there is nothing, numbers of numpy."""

    def reset(self) -> None:
        pass

    def process(self, inputs: list[Any], outputs: list[Any]) -> None:
        pass

    def evaluate(self) -> dict[str, Any]:
        nan = float("nan")
        bbox = {"AP": np.float32(12.5), "AP50": np.float64(nan), "AP-box": nan}
        return {"bbox": bbox, "segm": {"AP": 1.0}}


def test_evaluation_by_the_config_in_the_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads((trained / "results.json").read_text())["metrics"]["bbox"]
    weights = str(trained / "model_final.pth")
    here = f"train.output_dir={tmp_path}"
    for words in ([weights], [str(trained / "config.yaml"), "--weights", weights]):
        assert main(["eval", *words, here]) == 0
        found = json.loads((tmp_path / "eval_results.json").read_text())
        assert found["metrics"]["bbox"] == expected
        assert found["config"] == words[0]
    save_checkpoint({"model": load_checkpoint(weights)["model"]}, tmp_path / "bare.pth")
    assert main(["eval", str(tmp_path / "bare.pth")]) == 2
    assert "sparsedet eval CONFIG --weights" in capsys.readouterr().err
    for words, says in (
        (["--weights", weights], "are both weights"),
        (["--resume"], "--resume evaluates the last checkpoint of a run"),
    ):
        assert main(["eval", weights, *words, here]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("place", ["model.backbone", "dataloader.evaluator", "dataloader.test"])
def test_evaluation_by_a_config_that_calls_something_foreign(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    mark = tmp_path / "called"
    checkpoint = load_checkpoint(trained / "model_final.pth")
    cfg = LazyConfig.load(trained / "config.yaml")
    group, key = place.split(".")
    cfg[group][key] = {"_target_": "os.mkdir", "path": str(mark)}
    LazyConfig.save(cfg, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    save_checkpoint({**checkpoint, "config": text}, tmp_path / "model.pth")
    assert main(["eval", str(tmp_path / "model.pth"), f"train.output_dir={tmp_path}"]) == 2
    assert f"would call os.mkdir for {place}" in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("names", [("hand", "foot"), ("hand", "foot", "head")])
def test_fine_tuning_onto_other_classes(
    train_net: Callable[..., int], trained: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Also where they are as many as before."""
    other = draw_set(tmp_path / "other", names)
    output = tmp_path / "run"
    arguments = [
        *NARROW,
        *set_overrides(other),
        f"train.output_dir={output}",
        f"train.init_checkpoint={trained}/model_final.pth",
        "train.reinit_class_heads=true",
        "train.max_iter=1",
        "optimizer.lr=0.0",
        "model.backbone.freeze_at=5",  # nor do statistics move
    ]
    assert train_net(*arguments) == 0
    old = load_checkpoint(trained / "model_final.pth")["model"]
    new = load_checkpoint(output / "model_final.pth")["model"]
    anew = {name for name in old if ".class_embed." in name}
    assert anew and not any(torch.equal(old[name], new[name]) for name in anew)
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - anew)
    (said,) = re.findall("new class heads: (.*)", (output / "log.txt").read_text())
    assert set(said.split(", ")) == anew


# --- bad input


def _break_json(folder: Path) -> None:
    path = folder / "instances.json"
    path.write_text(path.read_text()[:-50])


def _remove_json(folder: Path) -> None:
    (folder / "instances.json").unlink()


def _remove_images(folder: Path) -> None:
    (folder / "images").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(_break_json, "instances.json"), (_remove_json, "instances.json"), (_remove_images, "images")],
)
def test_spoiled_sets(
    train_net: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    says: str,
) -> None:
    folder = draw_set(tmp_path / "set")
    spoil(folder)
    output = tmp_path / "run"
    code = train_net(*NARROW, *set_overrides(folder), f"train.output_dir={output}")
    _assert_one_sentence(code, capsys, output, str(folder), says)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.max_itr=5"], "max_iter"),
        (["+train.max_itr=5"], "max_iter"),
        (["model.selector.keep_ratio=1.3"], "keep_ratio"),
        (["model.scorer._target_=DAMPredictr"], "DAMPredictor"),
        (["model.scorer=null"], "scorer"),
        (["model.embed_dim=60"], "embed_dim"),
        (["model.neck.strides=[4,8,16]"], "Set model.neck.strides"),
        (["model.neck.in_channels={res3: 64, res4: 256, res5: 512}"], "parts of model do not fit"),
        (["model.encoder=null"], "model.encoder"),
        (["model.query_initializer.num_queries=0"], "num_queries"),
        (["dataloader.evaluator=null"], "dataloader.evaluator"),
        (["train.max_iter=1.5"], "max_iter"),
        (["train.device=tpu"], "train.device"),
        (["train.amp.dtype=float12"], "train.amp.dtype"),
        (["optimizer.params.rules.0.pattern=bakcbone"], "bakcbone"),
        (["dataloader.train.total_batch_size=0"], "total_batch_size"),
        (["lr_multiplier.warmup_length=2.0"], "warmup_length"),
        (["train.max_iter=0"], "max_iter"),
        (["train.init_checkpoint=nowhere.pth"], "nowhere.pth"),
        (["train.early_stopping.patience=0"], "train.early_stopping.patience"),
        (["train.early_stopping.patience=2", "train.eval_period=0"], "Set train.eval_period"),
        (["--num-gpus", "0"], "--num-gpus"),
        (["--eval-only"], "train.init_checkpoint"),
    ],
)
def test_bad_settings(
    train_net: Callable[..., int],
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    says: str,
) -> None:
    output = tmp_path / "run"
    arguments = (*NARROW, *set_overrides(drawn), f"train.output_dir={output}", *overrides)
    _assert_one_sentence(train_net(*arguments), capsys, output, says)


@pytest.mark.parametrize("name", ["nowhere.pth", "focus_detr_r50_36e"])
def test_weights_that_do_not_exist_leave_no_folder(
    train_net: Callable[..., int],
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    output = tmp_path / "run"
    words = (*set_overrides(drawn), f"train.output_dir={output}", f"train.init_checkpoint={name}")
    _assert_one_sentence(train_net(*NARROW, *words), capsys, output, name)
    assert not output.exists()


def test_a_config_file_that_does_not_exist(
    train_net: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = train_net(config=tmp_path / "none.py")
    _assert_one_sentence(code, capsys, tmp_path, "none.py")


def test_a_checkpoint_of_other_classes(
    train_net: Callable[..., int],
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = draw_set(tmp_path / "two", ("hand", "foot"))
    output = tmp_path / "run"
    arguments = (
        *NARROW,
        *set_overrides(two),
        f"train.output_dir={output}",
        f"train.init_checkpoint={trained}/model_best.pth",
    )
    says = ("3 classes, but the model has 2", "train.reinit_class_heads=True")
    _assert_one_sentence(train_net(*arguments), capsys, output, *says)
    code = train_net(*arguments, "--eval-only", "train.reinit_class_heads=true")
    _assert_one_sentence(code, capsys, output, "'hand' is not one of the 3 classes")


@pytest.mark.parametrize("words", [(), ("--eval-only",)])
@pytest.mark.parametrize("classes", [2, 91])
def test_a_model_of_other_classes_than_the_data(
    train_net: Callable[..., int],
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    classes: int,
) -> None:
    """Weights that fit the model do not help: class n of it is another one in the data."""
    weights = load_checkpoint(trained / "model_final.pth")["model"]
    for name in [name for name in weights if ".class_embed." in name]:
        weights[name] = weights[name].new_zeros(classes, *weights[name].shape[1:])
    save_checkpoint({"model": weights}, tmp_path / "a.pth")
    arguments = (
        *words,
        f"model.num_classes={classes}",
        f"train.init_checkpoint={tmp_path}/a.pth",
        f"train.output_dir={tmp_path}/run",
    )
    code = train_net(*arguments, config=trained / "config.yaml")
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"error: model.num_classes is {classes}, and the data has 3 classes.")
    assert "Set model.num_classes=3." in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [(), ("--eval-only",)])
def test_a_model_of_category_ids_on_the_classes_of_coco(
    train_net: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    folder = draw_set(tmp_path / "set", tuple(f"thing {index}" for index in range(80)))
    arguments = (*NARROW, *set_overrides(folder), f"train.output_dir={tmp_path}/run", *words)
    assert train_net(*arguments, "model.num_classes=91") == 2
    error = capsys.readouterr().err
    assert "Set model.num_classes=80." in error and "--classes contiguous" in error
    assert not (tmp_path / "run").exists()


def test_evaluation_keeps_the_order_of_the_classes_of_the_weights(
    train_net: Callable[..., int], trained: Path, drawn: Path, tmp_path: Path
) -> None:
    content = json.loads((drawn / "instances.json").read_text())
    for entry in content["categories"]:
        entry["id"] = 100 - entry["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = 100 - annotation["category_id"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    arguments = (*NARROW, *set_overrides(drawn), f"dataset.val_json={other}", "--eval-only")
    weights = f"train.init_checkpoint={trained}/model_final.pth"
    assert train_net(*arguments, weights, f"train.output_dir={tmp_path}/run") == 0
    found = json.loads((tmp_path / "run/eval_results.json").read_text())["metrics"]["details"]
    expected = json.loads((trained / "results.json").read_text())["metrics"]["details"]
    assert found["per_class"] == expected["per_class"]


def test_trained_weights_serve_other_scorers(
    train_net: Callable[..., int], trained: Path, tmp_path: Path
) -> None:
    arguments = (
        "--eval-only",
        "model.scorer._target_=OracleScorer",
        "model.criterion.unmatched=[]",
    )
    weights = f"train.init_checkpoint={trained}/model_final.pth"
    output = f"train.output_dir={tmp_path}/run"
    assert train_net(*arguments, weights, output, config=trained / "config.yaml") == 0


def test_evaluation_of_a_backbone_alone(
    train_net: Callable[..., int],
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = load_checkpoint(trained / "model_final.pth")["model"]
    start = "backbone.body."
    body = {key.removeprefix(start): w for key, w in weights.items() if key.startswith(start)}
    save_checkpoint({"model": body}, tmp_path / "body.pth")
    output = tmp_path / "run"
    arguments = (f"train.init_checkpoint={tmp_path}/body.pth", f"train.output_dir={output}")
    code = train_net("--eval-only", *arguments, config=trained / "config.yaml")
    _assert_one_sentence(code, capsys, output, "body.pth", "a whole model")


def test_an_earlier_run_is_neither_overwritten_nor_mixed(
    train_net: Callable[..., int], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = (trained / "config.yaml").read_text()
    config = trained / "config.yaml"
    for arguments, says in (
        ([], "--resume"),
        (["--resume", "model.selector.keep_ratio=0.1"], "model.selector.keep_ratio was 0.3"),
        (["--resume", "train.seed=7"], "train.seed was 0"),
    ):
        assert train_net(*arguments, config=config) == 2
        assert says in capsys.readouterr().err
    assert (trained / "config.yaml").read_text() == saved


def test_a_file_of_something_else_is_not_resumed(
    train_net: Callable[..., int], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint({"model": {"w": torch.zeros(1)}}, tmp_path / "checkpoint_0000001.pth")
    arguments = (*NARROW, *set_overrides(drawn), f"train.output_dir={tmp_path}", "--resume")
    assert train_net(*arguments) == 2
    assert "cannot be resumed" in capsys.readouterr().err


def _assert_one_sentence(
    code: int, capsys: pytest.CaptureFixture[str], output: Path, *says: str
) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert all(text in lines[0] for text in says), lines[0]
    assert not (output / "metrics.json").exists() or not _rows(output)


# --- processes


def _command(root: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    tool = [sys.executable, "-u", str(root / "tools/train_net.py"), "--config-file"]
    threads = str(torch.get_num_threads())  # other counts round otherwise
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": threads}
    return [*tool, str(root / CONFIG), *NARROW, *arguments], environment


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on(
    root: Path, trained: Path, drawn: Path, tmp_path: Path, number: int
) -> None:
    command, environment = _command(
        root,
        *set_overrides(drawn),
        f"train.output_dir={tmp_path}",
        "train.epochs=2",
        "train.model_ema.enabled=true",
        "train.checkpointer.period=1",
        "--resume=auto",
    )
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint_0000002.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    assert "Traceback" not in stderr
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = {row["iteration"]: row["loss"] for row in _rows(trained) if "loss" in row}
    losses = {row["iteration"]: row["loss"] for row in _rows(tmp_path) if "loss" in row}
    assert losses == expected


@pytest.mark.slow
def test_two_processes(root: Path, drawn: Path, tmp_path: Path) -> None:
    arguments = ("--num-gpus", "2", f"train.output_dir={tmp_path}", "train.max_iter=3")
    command, environment = _command(root, *set_overrides(drawn), *arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["num_processes"] == 2
    assert results["metrics"]["num_images"] == 6
    command[-1] = "train.max_iter=3"
    bad = [*command, "model.selector.keep_ratio=1.3", f"train.output_dir={tmp_path}/other"]
    done = subprocess.run(bad, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1
