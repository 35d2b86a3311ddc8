"""`sparsedet sweep`, whole: small models with random weights, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sparsedet.sweep
from sparsedet.checkpoint import load_checkpoint, save_checkpoint
from sparsedet.cli import calibrate as calibrate_command
from sparsedet.cli.sweep import main
from sparsedet.config import LazyCall, LazyConfig, instantiate
from sparsedet.data.shapes import CLASS_NAMES, ShapesOptions, write_shapes
from sparsedet.evaluation import evaluate
from sparsedet.modeling import ElasticSelector, TimmBackbone
from sparsedet.sweep import measuring, results
from tests.smoke.looking import write_run

QUICK = ("--repetitions", "1")
# 64 x 96: 8 x 12 + 4 x 6 + 2 x 3 tokens
TOKENS = 126


def small(cfg: Any, folder: Path) -> Any:
    """The quickstart's config with as little of everything as there can be."""
    model, dataset = cfg.model, cfg.dataset
    model.embed_dim, model.num_levels = 32, 3
    model.backbone = LazyCall(TimmBackbone)(name="test_resnet")
    model.neck.in_channels, model.neck.strides = dict(res3=48, res4=192, res5=96), [8, 16, 32]
    model.encoder.num_layers, model.decoder.num_layers = 2, 1
    model.query_initializer.num_queries = 10
    model.criterion.unmatched[0].size_ranges = [[-1, 16], [8, 32], [16, 999999]]
    model.selector = LazyCall(ElasticSelector)(keep_ratio=0.5, train_ratios=[0.1, 0.5])
    for split in ("train", "val"):
        dataset[f"{split}_json"] = str(folder / f"set/annotations/instances_{split}.json")
        dataset[f"{split}_images"] = str(folder / f"set/{split}")
    dataset.class_names, dataset.num_classes = list(CLASS_NAMES), len(CLASS_NAMES)
    dataset.test_short_side, dataset.max_size = 64, 128
    cfg.dataloader.test.batch_size = 2
    cfg.train.device, cfg.train.output_dir = "cpu", str(folder / "run")
    return cfg


def save(cfg: Any, folder: Path, seed: int) -> None:
    """What a training would leave in a folder: config and weights."""
    LazyConfig.save(cfg, folder / "config.yaml")
    torch.manual_seed(seed)
    model = instantiate(cfg.model)
    checkpoint = {
        "model": model.state_dict(),
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }
    save_checkpoint(checkpoint, folder / "model.pth")
    save_checkpoint({"model": model.backbone.state_dict()}, folder / "backbone.pth")


@pytest.fixture(scope="module")
def work(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An elastic model in `run`, a dense one in `dense`, and pictures for both in `set`."""
    folder = tmp_path_factory.mktemp("work")
    write_shapes(folder / "set", num_train=4, num_val=3, options=ShapesOptions(size=(64, 96)))
    cfg = small(LazyConfig.load(root / "configs/quickstart.py"), folder)
    save(cfg, folder / "run", 0)
    dense = ["model.selector._target_=DenseSelector", "model.scorer=null"]
    LazyConfig.apply_overrides(cfg, [*dense, "model.criterion.unmatched=[]"])
    save(cfg, folder / "dense", 1)
    (folder / "model.yaml").write_text("model: {}\n")
    return folder


@pytest.fixture
def tool() -> Any:
    return sparsedet.sweep


@pytest.fixture(scope="module")
def calibrate(work: Path) -> Callable[..., int]:
    """The command that calibrates, with the elastic model."""
    model = [str(work / "run/config.yaml"), "--weights", str(work / "run/model.pth")]
    return lambda *words: calibrate_command.main([*model, *words])


@pytest.fixture
def sweep(work: Path) -> Callable[..., int]:
    """The command with the elastic model."""
    model = [str(work / "run/config.yaml"), "--weights", str(work / "run/model.pth")]

    def run(*words: str) -> int:
        given = model[1:] if "--config-file" in words else model
        return main([*given, *QUICK, *words])

    return run


def models(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "sweep.json").read_text())["models"]


def test_a_sweep_beside_another_model(
    sweep: Callable[..., int], work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    fixed = f"{work}/dense/config.yaml:{work}/dense/model.pth"
    words = ["--ratios", "0.5", "0.1", "--fixed", fixed, "dataset.max_size=130"]
    assert sweep("--output", str(tmp_path), *words) == 0
    swept, dense = models(tmp_path)
    assert (swept["name"], dense["name"]) == ("run", "dense")
    rows = [*swept["rows"], *dense["rows"]]
    assert [row["asked_ratio"] for row in rows] == [0.1, 0.5, None]
    assert [row["tokens"] for row in rows] == [int(0.1 * TOKENS) + 1, int(0.5 * TOKENS) + 1, TOKENS]
    ratios = [row["keep_ratio"] for row in rows]
    assert ratios == pytest.approx([each / TOKENS for each in (13, 64, 126)])
    assert all(row["images"] == 3 and row["all_tokens"] == TOKENS for row in rows)
    gflops = [row["GFLOPs_by_stage"]["encoder"] for row in rows]
    assert gflops == sorted(gflops) and gflops[0] < 0.7 * gflops[1] < 0.7 * gflops[2]
    assert all(row["GFLOPs"] == pytest.approx(sum(row["GFLOPs_by_stage"].values())) for row in rows)
    assert all(row["ms"] > 0 and row["protocol"]["image_size"] == [64, 96] for row in rows)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 600
    lines = capsys.readouterr().out.splitlines()
    assert any("repetitions=1" in line and "threads=" in line for line in lines)
    table = [line.split() for line in lines[-5:-1]]
    assert table[0][:5] == ["model", "asked_ratio", "keep_ratio", "tokens", "AP"]
    assert [line[:4] for line in table[1:]] == [
        ["run", "0.100", "0.103", "13"],
        ["run", "0.500", "0.508", "64"],
        ["dense", "-", "1.000", "126"],
    ]


def test_rows_are_those_of_an_evaluation_at_that_ratio(tool: Any, work: Path) -> None:
    weights = str(work / "run/model.pth")
    config = str(work / "run/config.yaml")
    subject = measuring.load_subject(config, weights, ["model.selector.keep_ratio=0.2"])
    row = measuring.measure(subject, (64, 96), 1)
    results = evaluate(subject.model, subject.loader, subject.evaluator)
    assert row["AP"] == results["bbox"]["AP"]
    assert row["keep_ratio"] == results["keep_ratio"] == pytest.approx(26 / TOKENS)
    assert row["asked_ratio"] == 0.2
    assert not (work / "run/predictions.json").exists()


def test_it_goes_on_where_it_stopped(
    tool: Any, sweep: Callable[..., int], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there of the same weights and settings is not measured again."""
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    measured = []

    def measure(subject: Any, size: Any, repetitions: int, share: Any) -> dict[str, Any]:
        ratio = subject.model.selector.keep_ratio
        if ratio == 0.4 and 0.4 not in measured:
            measured.append(0.4)
            raise OSError("stopped")
        measured.append(ratio)
        numbers = dict.fromkeys(("tokens", "AP", "AP50", "APs", "APm", "GFLOPs", "ms"), 1.0)
        ratios = {"asked_ratio": ratio, "keep_ratio": ratio + 0.001}
        return {**ratios, "APl": None, "protocol": {}, "by_content": None, **numbers}

    monkeypatch.setattr(results, "measure", measure)
    output = work / "run/sweep"
    assert sweep("--ratios", "0.1", "0.4") == 2
    assert [row["asked_ratio"] for row in models(output)[0]["rows"]] == [0.1]
    assert sweep("--ratios", "0.1", "0.4", "0.05", "--repetitions", "2") == 0
    assert measured == [0.1, 0.4, 0.05, 0.4]
    assert [row["asked_ratio"] for row in models(output)[0]["rows"]] == [0.05, 0.1, 0.4]
    assert sweep("model.selector.keep_ratio=0.9", "--ratios", "0.4", "train.seed=3") == 0
    assert len(measured) == 4, "settings that do not matter are others"
    for words in (["dataset.test_short_side=32"], ["--image-size", "64x64"]):
        before = (output / "sweep.json").read_text()
        assert sweep("--ratios", "0.1", *words) == 2
        assert (output / "sweep.json").read_text() == before
    for other in ("[]", '{"models": [{"rows": [{"keep_ratio": 0.1, "kept": 0.103}]}]}'):
        (output / "sweep.json").write_text(other)
        assert sweep("--ratios", "0.1") == 2


def test_classes_are_in_the_order_of_the_weights(tool: Any, work: Path, tmp_path: Path) -> None:
    cfg = LazyConfig.load(work / "run/config.yaml")
    cfg.dataset.class_names = cfg.dataset.num_classes = None
    LazyConfig.save(cfg, tmp_path / "config.yaml")
    content = json.loads(Path(cfg.dataset.val_json).read_text())
    content["categories"].reverse()
    (tmp_path / "val.json").write_text(json.dumps(content))
    override = f"dataset.val_json={tmp_path}/val.json"
    weights = str(work / "run/model.pth")
    subject = measuring.load_subject(str(tmp_path / "config.yaml"), weights, [override])
    assert list(subject.cfg.dataset.class_names) == list(CLASS_NAMES)


# --- tiles


@pytest.fixture(scope="module")
def looking(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at some of 12 tiles."""
    return write_run(root, tmp_path_factory.mktemp("looking"))


def test_a_sweep_of_look_ratios(looking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    model = [str(looking / "config.yaml"), "--weights", str(looking / "model.pth"), *QUICK]
    assert main([*model, "--look", "0.5", "0.1"]) == 0
    (swept,) = models(looking / "sweep_look")
    few, many = swept["rows"]
    assert [row["asked_ratio"] for row in (few, many)] == [0.1, 0.5]
    assert [row["look_ratio"] for row in (few, many)] == pytest.approx([2 / 12, 7 / 12])
    assert few["GFLOPs_by_stage"]["backbone"] == many["GFLOPs_by_stage"]["backbone"]
    assert many["GFLOPs_by_stage"]["look"] == pytest.approx(3.5 * few["GFLOPs_by_stage"]["look"])
    assert few["random"] == pytest.approx(100 * 2 / 12)
    assert few["tile_recall"] <= few["oracle"] < many["oracle"] == 100
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-4:-1]]
    head = ["model", "asked_ratio", "keep_ratio", "look_ratio", "tile_recall", "oracle", "random"]
    assert table[0][:7] == head
    assert table[1][3:7] == ["0.167", f"{few['tile_recall']:.1f}", f"{few['oracle']:.1f}", "16.7"]
    with Image.open(looking / "sweep_look/sweep.png") as picture:
        assert picture.width > 1200
    # settings that do not matter to it, and those that do
    measured = (looking / "sweep_look/sweep.json").read_text()
    assert main([*model, "--look", "0.1", "model.regions.look_ratio=0.9"]) == 0
    assert (looking / "sweep_look/sweep.json").read_text() == measured
    assert main([*model, "--look", "0.1", "model.selector.keep_ratio=0.9"]) == 2
    assert "other weights or settings" in capsys.readouterr().err


def test_an_adaptive_choice_of_tiles_is_swept(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    adaptive = "model.regions.selector={_target_: AdaptiveSelector, keep_ratio: 0.3}"
    run = write_run(root, tmp_path, "model.regions.look_ratio=null", adaptive)
    model = [str(run / "config.yaml"), "--weights"]
    new = tmp_path / "new"
    assert calibrate_command.main([*model, str(run / "model.pth"), "--output", str(new)]) == 0
    given = [*model, str(new / "model_calibrated.pth"), *QUICK]
    assert main([*given, "--look", "0.3", "--output", str(tmp_path / "sweep")]) == 0
    ((row,),) = (each["rows"] for each in models(tmp_path / "sweep"))
    tiles = [round(12 * each["kept"]) for each in row["per_image"]]
    assert sum(tiles) / 36 == pytest.approx(row["look_ratio"]) and 1 / 12 <= row["blank"] <= 1
    assert row["protocol"]["input"] == "image"
    out = capsys.readouterr().out.splitlines()[-3:]
    assert out[0].split()[:4] == ["model", "asked_ratio", "look_ratio", "blank"]
    assert (tmp_path / "sweep/kept.png").exists()


# --- a share for every image


ADAPTIVE = "model.selector._target_=AdaptiveSelector"


def test_an_adaptive_model_is_calibrated_and_swept(
    calibrate: Callable[..., int],
    sweep: Callable[..., int],
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    new = tmp_path / "adaptive"
    assert calibrate("--output", str(new), ADAPTIVE) == 0
    assert "calibrated on 4 images" in capsys.readouterr().out
    assert sorted(path.name for path in new.iterdir()) == ["config.yaml", "model_calibrated.pth"]
    known, old = (
        load_checkpoint(p)["model"] for p in (new / "model_calibrated.pth", work / "run/model.pth")
    )
    assert {name for name in known if name not in old} == {
        "selector.curve.num_images",
        "selector.curve.shares",
    }
    assert all(torch.equal(known[name], old[name]) for name in old)
    beside = f"{work}/run/config.yaml:{work}/run/model.pth"
    words = ["--config-file", str(new / "config.yaml"), "--ratios", "0.2", "0.5"]
    words += ["--weights", str(new / "model_calibrated.pth"), "--beside", beside]
    assert sweep(*words, "--output", str(tmp_path)) == 0
    adaptive, elastic = models(tmp_path)
    assert (adaptive["name"], elastic["name"]) == ("adaptive", "run")
    assert all(each["swept"] and len(each["rows"]) == 2 for each in (adaptive, elastic))
    for row, fixed in zip(adaptive["rows"], elastic["rows"], strict=True):
        assert fixed["by_content"] is None and fixed["protocol"]["input"] == "noise"
        kept = [each["kept"] for each in row["per_image"]]
        assert sum(kept) / 3 == pytest.approx(row["keep_ratio"])
        assert all(each["objects"] > 0 and each["area"] > 0 for each in row["per_image"])
        assert set(row["by_content"]) == {"area", "objects"} and 0 < row["blank"] < 1
        assert row["protocol"]["input"] == "image" and row["protocol"]["costed_images"] == 3
    table = capsys.readouterr().out.splitlines()[-4:-1]
    assert table[0].split()[:4] == ["model", "asked_ratio", "keep_ratio", "blank"]
    assert [line.split()[:2] for line in table[1:]] == [
        ["adaptive", "0.200"],
        ["adaptive", "0.500"],
    ]
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--output", "{work}/run"], ("/run already holds a run", "--output")),
        (["--images", "0"], ("--images", "got 0")),
        (["model.selector._target_=TopKSelector"], ("TopKSelector", "AdaptiveSelector")),
        (["--weights", "{work}/none.pth"], ("none.pth", "does not exist")),
        (["dataset.train_json=none.json"], ("none.json",)),
    ],
)
def test_what_cannot_be_calibrated(
    calibrate: Callable[..., int],
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: tuple[str, ...],
) -> None:
    output = ["--output", str(tmp_path / "out"), ADAPTIVE]
    assert calibrate(*output, *(word.format(work=work) for word in words)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(text in lines[0] for text in says), lines[0]
    assert not (tmp_path / "out").exists()


# --- bad input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ratios", "0.1", "1.5"], ("--ratios", "(0, 1]", "'1.5'")),
        (["--ratios", "many"], ("--ratios", "'many'")),
        (["--look", "0"], ("--look", "(0, 1]", "'0'")),
        (["--look", "0.1"], ("run/config.yaml has no model.regions", "projects/large_images")),
        (["--fixed", "config.yaml"], ("CONFIG:WEIGHTS", "'config.yaml'")),
        (["--fixed", "{work}/none.yaml:w.pth"], ("none.yaml",)),
        (["--image-size", "800"], ("HxW", "'800'")),
        (["--repetitions", "0"], ("--repetitions", "got 0")),
        (["--weights", "{work}/none.pth"], ("none.pth", "does not exist")),
        (["--weights", "{work}/run/backbone.pth"], ("model.backbone", "whole detector")),
        (["--config-file", "{work}/model.yaml"], ("model.yaml", "dataloader, dataset, train")),
        (["dataset.val_json=none.json"], ("none.json",)),
        (["model.num_classes=91"], ("model.num_classes is 91", "Set model.num_classes=")),
        (["dataset.val_images={work}"], ("{work}",)),
        (["train.device=tpu"], ("train.device",)),
        (["model.selector.keep_ration=0.1"], ("keep_ratio",)),
        (
            ["model.selector.layer_ratios=[1.0,0.5]", "--ratios", "0.1", "0.9"],
            ("--ratios: ElasticSelector.keep_ratio must be at most 0.75",),
        ),
        (
            ["--config-file", "{work}/dense/config.yaml", "--weights", "{work}/dense/model.pth"],
            ("DenseSelector has no keep_ratio", "--fixed"),
        ),
        (
            ["model.selector._target_=AdaptiveSelector"],
            ("AdaptiveSelector derives its threshold", "sparsedet calibrate"),
        ),
        (["--beside", "config.yaml"], ("--beside", "CONFIG:WEIGHTS", "'config.yaml'")),
    ],
)
def test_bad_input_is_one_sentence(
    sweep: Callable[..., int],
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: tuple[str, ...],
) -> None:
    code = sweep("--output", str(tmp_path / "out"), *(word.format(work=work) for word in words))
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(text.format(work=work) in lines[0] for text in says), lines[0]
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_so_at_once(
    tool: Any,
    sweep: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tool, "load_subject", lambda *given: pytest.fail("work has begun"))
    assert sweep() == 2
    assert "pip install 'sparsedet[plot]'" in capsys.readouterr().err
