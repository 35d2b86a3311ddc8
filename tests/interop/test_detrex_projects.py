"""The configs of `projects/interop` that put something into detrex, or into whose recipe it goes.

They are built small, from the files as they are, and run by detrex's train tool and by ours.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsedet.config import LazyConfig
from tests.house.source import GUESTS, tree
from tests.interop.hosts import build, losses, samples, shrink, wake

CONFIGS = [path for path in sorted(GUESTS.glob("configs/*.py")) if "detectron2" not in path.stem]
MOST_LINES = 20


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request, detrex) -> Path:
    return request.param


def small(cfg):
    """The model of a config, made small in place."""
    inner = cfg.model.get("model", cfg.model)
    if "transformer" in inner:
        return shrink(inner) and cfg.model
    inner.num_classes = 3
    inner.backbone.weights = None
    inner.encoder.num_layers = inner.decoder.num_layers = 2
    inner.selector.layer_ratios = [0.4, 0.2]
    inner.query_initializer.num_queries = 40
    return cfg.model


def test_there_are_the_configs_that_the_page_has():
    assert len(CONFIGS) == 5


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_a_small_difference_of_its_host(file):
    module = tree(file)
    lines = {line for node in module.body[1:] for line in range(node.lineno, node.end_lineno + 1)}
    assert len(lines) <= MOST_LINES
    programs = (ast.If, ast.For, ast.While, ast.FunctionDef, ast.ClassDef, ast.Lambda)
    assert not [node for node in ast.walk(module) if isinstance(node, programs)]


def test_both_loaders_read_a_config_alike(path):
    from detectron2.config import LazyConfig as TheirLazyConfig
    from omegaconf import OmegaConf

    ours, theirs = LazyConfig.load(path), TheirLazyConfig.load(str(path))
    assert (
        set(ours) == {"model", "dataloader", "optimizer", "lr_multiplier", "train"} == set(theirs)
    )
    assert OmegaConf.to_container(ours.model) == OmegaConf.to_container(theirs.model)


def test_a_config_trains_and_detects(path):
    model = wake(build(small(LazyConfig.load(path))))
    found = losses(model, samples())
    sum(found.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
    assert any("loss" in name or "/" in name for name in found)
    with torch.no_grad():
        detections = model.eval()(samples())
    assert all(len(each["instances"]) for each in detections)


def test_the_model_of_the_deformable_config_learns_its_scorer(detrex):
    cfg = LazyConfig.load(GUESTS / "configs/interop_deformable_detr_sparse_50ep.py")
    assert "loss_decoder_attention" in losses(build(small(cfg)), samples())


# --- their train tool, ours


def coco_of_shapes(folder: Path) -> Path:
    """A set of shapes in the places of COCO 2017 and with its classes; the first eight occur."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    from sparsedet.data.shapes import write_shapes

    write_shapes(folder / "shapes", num_train=8, num_val=4)
    annotations = folder / "coco/annotations"
    annotations.mkdir(parents=True)
    things = [
        {"id": each["id"], "name": each["name"]} for each in COCO_CATEGORIES if each["isthing"]
    ]
    for split in ("train", "val"):
        content = json.loads((folder / f"shapes/annotations/instances_{split}.json").read_text())
        order = {each["id"]: number for number, each in enumerate(content["categories"])}
        for each in content["annotations"]:
            each["category_id"] = things[order[each["category_id"]]]["id"]
        content["categories"] = things
        content.setdefault("info", {})
        (annotations / f"instances_{split}2017.json").write_text(json.dumps(content))
        (folder / f"coco/{split}2017").symlink_to(folder / f"shapes/{split}")
    return folder


@pytest.fixture(scope="module")
def coco(detrex, tmp_path_factory) -> Path:
    return coco_of_shapes(tmp_path_factory.mktemp("datasets"))


def overrides(prefix: str) -> list[str]:
    """What makes a DINO of detrex small, and its run short; `prefix` leads to its keys."""
    return [
        f"{prefix}.transformer.decoder.num_layers=1",
        f"{prefix}.num_queries=40",
        f"{prefix}.select_box_nums_for_evaluation=20",
        f"{prefix}.dn_number=5",
        f"{prefix}.device=cpu",
        "train.device=cpu",
        "train.init_checkpoint=",
        "train.max_iter=2",
        "train.eval_period=0",
        "train.log_period=1",
        "train.seed=3",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentation_with_crop=null",
        "dataloader.train.mapper.augmentation.1.short_edge_length=[96]",
        "dataloader.test.mapper.augmentation.0.short_edge_length=96",
        "+dataloader.evaluator.use_fast_impl=False",
    ]


def test_a_config_runs_in_the_tool_of_detrex(detrex, coco, run_guest_tool, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(coco))
    config = GUESTS / "configs/interop_dino_sparse_12ep.py"
    given = [*overrides("model.model"), f"train.output_dir={tmp_path / 'out'}"]
    given += ["model.model.transformer.encoder.encoder.num_layers=1"]
    given += [f"dataloader.evaluator.output_dir={tmp_path / 'out'}"]
    done = run_guest_tool(
        detrex, "tools/train_net.py", "--config-file", str(config), *given, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.json").read_text().splitlines()]
    assert rows[0]["loss_decoder_attention"] > 0
    assert "bbox/AP" in rows[-1]
    saved = torch.load(tmp_path / "out/model_final.pth", weights_only=False)["model"]
    assert "transformer.encoder.scorer.predictor.output.4.weight" in saved


def test_a_config_of_detrex_runs_in_our_tool_as_it_is(detrex, coco, root, tmp_path):
    clone = Path(detrex.__file__).resolve().parents[1]
    config = clone / "projects/dino/configs/dino-resnet/dino_r50_4scale_12ep.py"
    given = [*overrides("model"), "model.transformer.encoder.num_layers=1"]
    given += [f"train.output_dir={tmp_path / 'out'}"]
    arguments = ["--config-file", str(config), *given]
    done = run_our_tool(root, coco, tmp_path, arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["iterations"] == 2 and "AP" in results["metrics"]["bbox"]
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.json").read_text().splitlines()]
    assert rows[0]["loss/loss_class"] > 0
    again = run_our_tool(root, coco, tmp_path, [*arguments, "train.max_iter=3", "--resume"])
    assert again.returncode == 0, again.stderr[-3000:]
    assert "starts a new epoch" in again.stderr


ON_CPU = """
import runpy, sys
for patch in runpy.run_path(sys.argv[1])["without_cuda"]():
    patch.start()
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_our_tool(root, coco, folder, arguments):
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [
            *(sys.executable, "-c", ON_CPU, str(root / "tests/interop/on_cpu.py")),
            *(str(root / "tools/train_net.py"), *arguments),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "DETECTRON2_DATASETS": str(coco)},
        capture_output=True,
        text=True,
        timeout=900,
    )
