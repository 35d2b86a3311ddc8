"""`sparsedet analyze`, whole: a small model, bad input, and rows of the published table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import sparsedet.cli.analyze
from sparsedet import published as costs
from sparsedet.analysis import calibrate_selector, tile_recall
from sparsedet.checkpoint import save_checkpoint
from sparsedet.config import LazyConfig, instantiate
from sparsedet.loading import load_detector
from tests.predictor.trained import shrink
from tests.smoke.looking import write_run

CONFIG = "projects/sparse_detr/configs/sparse_detr_r50_rho30_50ep.py"
SPARSE = "Sparse DETR, table 1"
SIZES = [(64, 96), (64, 96), (128, 96)]  # become 64 x 96 and 85 x 64


def small(cfg: Any) -> Any:
    """Sparse DETR's config with as little of everything as there can be."""
    cfg = shrink(cfg, ["cat", "dog"])
    cfg.dataloader.test.num_workers = 0
    return cfg


@pytest.fixture
def tool() -> ModuleType:
    return sparsedet.cli.analyze


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: config and weights; and a small data set."""
    folder = tmp_path_factory.mktemp("run")
    images, boxes = [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        name = f"{number}.png"
        Image.effect_noise((width, height), 80).convert("RGB").save(folder / name)
        images.append(dict(id=number, file_name=name, height=height, width=width))
        boxes.append(dict(id=number, image_id=number, category_id=1, bbox=[8, 8, 40, 30]))
        boxes[-1].update(area=1200, iscrowd=0)
    categories = [dict(id=1, name="cat"), dict(id=2, name="dog")]
    content = dict(images=images, annotations=boxes, categories=categories)
    (folder / "val.json").write_text(json.dumps(content))
    cfg = small(LazyConfig.load(root / CONFIG))
    cfg.dataset.val_json, cfg.dataset.val_images = str(folder / "val.json"), str(folder)
    LazyConfig.save(cfg, folder / "config.yaml")
    (folder / "empty.yaml").write_text("train: {}\n")
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    save_checkpoint({"model": model.state_dict()}, folder / "model.pth")
    save_checkpoint({"model": model.backbone.state_dict()}, folder / "backbone.pth")
    return folder


def analyze(tool: ModuleType, run: Path, tmp_path: Path, *words: str) -> dict[str, Any]:
    output = tmp_path / "new" / "figures.json"
    arguments = ["--config-file", str(run / "config.yaml"), "--output", str(output), *words]
    assert tool.main(arguments) == 0
    return json.loads(output.read_text())


def test_costs_by_stage(
    tool: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = analyze(tool, run, tmp_path, "--size", "64", "96", "--latency", "--repetitions", "2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "parameters", "M", "trainable", "M", "GFLOPs", "ms"]
    names = [line.split()[0] for line in lines[1:]]
    assert names[:3] == ["backbone", "neck", "scorer"] and "total" in names
    assert "glance" not in "\n".join(lines)
    stages = figures["gflops"]["stages"]
    assert min(stages.values()) > 0
    assert figures["gflops"]["total"] == pytest.approx(sum(stages.values()))
    assert figures["gflops"]["sizes"] == [[64, 96, 1]]
    assert figures["parameters"]["total"] == sum(figures["parameters"]["by_stage"].values())
    assert figures["latency"]["protocol"]["repetitions"] == 2
    assert figures["latency"]["stages"]["encoder"] > 0
    memory = figures["memory"]
    assert memory["peak_mb"] > memory["before_mb"] > 50
    assert f"memory: peak {memory['peak_mb']:.0f} MB" in "\n".join(lines)
    full = analyze(tool, run, tmp_path, "--size", "64", "96", "--full-sampling")
    assert full["gflops"]["total"] > figures["gflops"]["total"] and full["latency"] is None
    more = analyze(tool, run, tmp_path, "--size", "64", "96", "model.selector.keep_ratio=0.5")
    assert more["gflops"]["stages"]["encoder"] > stages["encoder"]
    assert more["gflops"]["stages"]["decoder"] == stages["decoder"]


def test_mean_over_the_sizes_of_an_annotation_file(
    tool: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = analyze(tool, run, tmp_path, "--coco-sizes", str(run / "val.json"))
    assert figures["gflops"]["sizes"] == [[85, 64, 1], [64, 96, 2]]
    assert "3 images, 2 sizes" in capsys.readouterr().out
    few = ("--coco-sizes", str(run / "val.json"), "--max-images", "1")
    assert analyze(tool, run, tmp_path, *few)["gflops"]["sizes"] == [[64, 96, 1]]
    assert analyze(tool, run, tmp_path)["gflops"]["sizes"] == [[64, 85, 1]]  # 480 x 640


def test_tokens_and_corr(
    tool: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--weights", str(run / "model.pth"), "--tokens", "--images", "2", "--size", "64", "96")
    tokens = analyze(tool, run, tmp_path, *words)["tokens"]
    assert tokens["num_images"] == 2
    assert [sum(layer) for layer in tokens["kept"]] == [32.0, 32.0]  # of 126 tokens
    assert tokens["tokens"] == [96.0, 24.0, 6.0]
    assert 0 < tokens["corr"] < 1 and 0 < tokens["corr_kept"] < 1
    out = capsys.readouterr().out
    assert f"Corr: {tokens['corr']:.4f} on the 10% of tokens with the best scores" in out
    assert "layer 2" in out and "means over 2 images" in out and "referred" not in out


def test_the_share_of_the_tokens_that_the_decoder_refers_to(
    tool: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--weights", str(run / "model.pth"), "--referred", "--images", "2")
    tokens = analyze(tool, run, tmp_path, *words)["tokens"]
    out = capsys.readouterr().out
    assert "Corr" not in out and "holds 99% of the decoder's cross-attention" in out
    rows = [line.split() for line in out[out.index("referred tokens") :].splitlines()[1:5]]
    assert [row[0] for row in rows] == ["level"] * 3 + ["all"]
    assert rows[3][1:] == ["126.0", "100.0%", f"{tokens['referred_ratio']:.1%}"]
    assert rows[0][3:] == [f"{tokens['mass'][0]:.1%}", f"{tokens['referred'][0]:.1%}"]
    assert 0 < tokens["referred_ratio"] < 1


@pytest.fixture(scope="module")
def looking(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at some of 12 tiles."""
    return write_run(root, tmp_path_factory.mktemp("looking"))


def test_recall_of_the_tiles_of_a_glance(
    tool: ModuleType, looking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--weights", str(looking / "model.pth"), "--size", "192", "256", "--look"]
    rows = analyze(tool, looking, tmp_path, *words, "--images", "3")["tiles"]
    out = capsys.readouterr().out
    assert "backbone, neck: on the downscaled picture; look: both on the chosen tiles" in out
    assert [row["ratio"] for row in rows] == [0.05, 0.1, 0.2]
    assert [row["looked"] for row in rows] == pytest.approx([100 * n / 12 for n in (1, 2, 3)])
    model = load_detector(LazyConfig.load(looking / "config.yaml"), looking / "model.pth")
    loader = instantiate(LazyConfig.load(looking / "config.yaml").dataloader.test)
    expected = tile_recall(model, loader, (0.05, 0.1, 0.2), area_bounds=[256, 576])
    assert rows == [pytest.approx(row) for row in expected]
    table = [line.split() for line in out[out.index("look ratio") :].splitlines()]
    assert table[1][:4] == ["0.05", "8.3", "scorer", f"{rows[0]['recall']:.1f}"]
    assert table[9][:3] == ["0.2", "25.0", "random"]
    changed = ("0.3", "model.regions.look_ratio=0.5")
    (row,) = analyze(tool, looking, tmp_path, *words, *changed)["tiles"]
    assert row["looked"] == pytest.approx(100 * 4 / 12)


def test_a_model_that_looks_first_is_counted_on_a_picture(
    tool: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptive = ("model.selector._target_=AdaptiveSelector", "model.selector.keep_ratio=0.3")
    cfg = LazyConfig.apply_overrides(LazyConfig.load(run / "config.yaml"), adaptive)
    model = load_detector(cfg, run / "model.pth")
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    calibrate_selector(model, [[{"image": image}]])
    save_checkpoint({"model": model.state_dict()}, tmp_path / "calibrated.pth")
    arguments = ["--config-file", str(run / "config.yaml"), "--size", "64", "96", *adaptive]
    assert tool.main(arguments) == 2
    assert "depends on the image" in capsys.readouterr().err
    words = ("--image", str(run / "3.png"), "--weights", str(tmp_path / "calibrated.pth"))
    figures = analyze(tool, run, tmp_path, *words, *adaptive)
    assert figures["gflops"]["sizes"] == [[85, 64, 1]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "0", "96"], ("--size", "0")),
        (["--max-images", "3"], ("--coco-sizes",)),
        (["--latency", "--coco-sizes", "{run}/val.json"], ("--latency",)),
        (["--coco-sizes", "{run}/none.json"], ("none.json",)),
        (["--image", "{run}/val.json"], ("val.json", "cannot be read")),
        (["--weights", "{run}/none.pth"], ("none.pth", "does not exist")),
        (["--weights", "{run}/backbone.pth"], ("backbone.pth", "model.backbone")),
        (["--config-file", "{run}/empty.yaml"], ("empty.yaml", "no model")),
        (["--look", "1.5"], ("--look", "(0, 1]", "'1.5'")),
        (["--look", "0.1"], ("--look", "model.regions.scorer", "projects/large_images")),
        (["--tokens", "dataset.val_images={run}/none"], ("none", "does not exist")),
        (["model.embed_dm=64"], ("embed_dim",)),
        (["train.device=tpu"], ("train.device",)),
        (["model.scorer=null"], ("TokenSparseDetector.scorer",)),
    ],
)
def test_bad_input_is_one_sentence(
    tool: ModuleType,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: tuple[str, ...],
) -> None:
    arguments = ["--config-file", str(run / "config.yaml"), "--output", str(tmp_path / "f.json")]
    code = tool.main([*arguments, *(word.format(run=run) for word in words)])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "error" in line.lower()]
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(text in lines[0] for text in says), lines[0]
    assert not captured.out and not (tmp_path / "f.json").exists()


def test_a_config_of_a_model_alone_needs_a_size(
    tool: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "projects/sparse_detr/configs/released/sparse_detr_r50_rho30.py"
    for words, says in (([], "--size H W"), (["--tokens"], "has no dataloader, dataset")):
        assert tool.main(["--config-file", str(root / config), *words]) == 2
        assert says in capsys.readouterr().err


# --- the published table


def published(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    wanted: Callable[[tuple], bool] = lambda row: True,
) -> list[dict[str, Any]]:
    rows = tuple(filter(wanted, costs.REFERENCES))
    names = {row[0] for row in rows}
    models = {name: model for name, model in costs.MODELS.items() if name in names}
    monkeypatch.setattr(costs, "REFERENCES", rows)
    monkeypatch.setattr(costs, "MODELS", models)
    assert tool.main(["--paper-table", "--output", str(tmp_path / "table.json")]) == 0
    return json.loads((tmp_path / "table.json").read_text())["rows"]


def check(rows: list[dict[str, Any]]) -> None:
    """Parameters to 0.1 million and GFLOPs to 1 % where the protocol is known."""
    for row in rows:
        if row["what"] == "params" and not row["source"].startswith("Focus-DETR"):
            assert row["ours"] == pytest.approx(row["reference"], abs=0.1), row
        elif "fvcore" in row["source"] or ("R50" in row["model"] and row["source"] == SPARSE):
            assert row["ours"] == pytest.approx(row["reference"], rel=0.01), row


def test_some_published_numbers(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = ("Sparse R50 0.1", "Deformable R50 top-k", "DINO R50", "Focus R50")
    rows = published(
        tool,
        monkeypatch,
        tmp_path,
        lambda row: row[0] in models and row[2] in (None, costs.S) and row[4] != costs.FOCUS,
    )
    check(rows)
    assert {row["model"] for row in rows} == set(models)
    out = capsys.readouterr().out
    assert "38 % less, not 41 %" in out
    assert "37 % less than DINO, both at 800x1066 (the paper's table: 45 %)" in out


@pytest.mark.slow
def test_all_published_numbers(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = published(tool, monkeypatch, tmp_path)
    check(rows)
    assert len(rows) == len(costs.REFERENCES) > 50
    assert {row["model"] for row in rows} == set(costs.MODELS)
