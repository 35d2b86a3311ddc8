"""`sparsedet visualize`, whole: a small model with random weights, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparsedet.checkpoint import save_checkpoint
from sparsedet.cli.visualize import distinct_names, main
from sparsedet.config import LazyCall, LazyConfig, instantiate
from sparsedet.modeling import TimmBackbone
from sparsedet.predictor import Predictor
from tests.predictor.trained import shrink

NAMELESS = ("dataset.class_names=null", "dataset.num_classes=null")


def small(cfg: Any) -> Any:
    """The quickstart's config with as little of everything as there can be."""
    cfg = shrink(cfg, ["cat", "dog"])
    cfg.model.selector.layer_ratios = None
    return cfg


@pytest.fixture(scope="module")
def tool() -> Callable[..., int]:
    """The command, run in this process."""
    return main


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that a training would leave: config and weights; and two images."""
    folder = tmp_path_factory.mktemp("run")
    cfg = small(LazyConfig.load(root / "configs/quickstart.py"))
    cfg.train.output_dir = str(folder)
    LazyConfig.save(cfg, folder / "config.yaml")
    (folder / "model.yaml").write_text("model: {}\n")
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    save_checkpoint({"model": model.state_dict()}, folder / "model.pth")
    save_checkpoint({"model": model.backbone.state_dict()}, folder / "backbone.pth")
    Image.effect_noise((96, 64), 80).convert("RGB").save(folder / "a.png")
    (folder / "other").mkdir()
    Image.new("L", (40, 40), 99).save(folder / "other" / "a.jpg")
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_it_draws_every_image(
    tool: Callable[..., int], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = (str(run / "a.png"), str(run / "other" / "a.jpg"))
    weights = ("--weights", str(run / "model.pth"))
    code = tool(
        ["--config-file", str(run / "config.yaml"), *weights, *images, "--score-threshold", "0"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    # 96 x 64: 12 x 8 + 6 x 4 + 3 x 2 = 126 tokens; 40 x 40 becomes 64 x 64: 64 + 16 + 4
    assert [line.partition(": ")[2] for line in lines] == [
        f"detections: 20, tokens kept: {32 / 126:.1%} of 126: {run}/tokens/a.png",
        f"detections: 20, tokens kept: {22 / 84:.1%} of 84: {run}/tokens/a_2.png",
    ]
    sizes = [size_of(run / "tokens" / name) for name in ("a.png", "a_2.png")]
    assert all(width > 600 and height > 300 for width, height in sizes)


def test_overrides_scores_and_another_folder(
    tool: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--config-file", str(run / "config.yaml"), "--weights", str(run / "model.pth"))
    image = str(run / "a.png")
    plain = [*arguments, "--output", str(tmp_path / "plain"), image]
    assert tool([*plain, "model.selector.layer_ratios=[1.0,0.5]"]) == 0
    assert "tokens kept" in capsys.readouterr().out
    dense = ["model.selector._target_=DenseSelector", "model.scorer=null"]
    dense += ["model.criterion.unmatched=[]", f"--output={tmp_path}/dense"]
    assert tool([*arguments, *dense, image]) == 0  # the weights of the scorer are left out
    assert "100.0%" in capsys.readouterr().out
    assert tool([*arguments, "--scores", "--output", str(tmp_path / "scores"), image]) == 0
    assert "25.4%" in capsys.readouterr().out
    drawn = [size_of(tmp_path / name / "a.png") for name in ("plain", "scores")]
    assert drawn[0] != drawn[1]


def test_models_are_drawn_below_each_other(
    tool: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparser = LazyConfig.load(run / "config.yaml")
    sparser.model.selector.keep_ratio = 0.1
    LazyConfig.save(sparser, tmp_path / "sparser.yaml")
    model, image = ("--weights", str(run / "model.pth")), str(run / "a.png")
    first, second = ["--config-file", str(run / "config.yaml")], str(tmp_path / "sparser.yaml")
    assert tool([*first, *model, "--output", str(tmp_path / "one"), image]) == 0
    beside = ["--beside", second, model[1], "--output", str(tmp_path / "two")]
    capsys.readouterr()
    assert tool([*first, *model, *beside, image]) == 0
    shares = [line.split("tokens kept: ")[1][:5] for line in capsys.readouterr().out.splitlines()]
    assert shares == [f"{32 / 126:.1%}", f"{13 / 126:.1%}"]
    with Image.open(tmp_path / "one/a.png") as one, Image.open(tmp_path / "two/a.png") as two:
        assert two.height == 2 * one.height


def test_layers_and_levels_have_figures_of_their_own(
    tool: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, image = str(run / "model.pth"), str(run / "a.png")
    arguments = ["--config-file", str(run / "config.yaml"), "--weights", weights, image]
    dense = LazyConfig.load(run / "config.yaml")
    dense.model.selector._target_, dense.model.scorer = "DenseSelector", None
    dense.model.criterion.unmatched = []
    del dense.model.selector.keep_ratio, dense.model.selector.layer_ratios
    LazyConfig.save(dense, tmp_path / "dense.yaml")
    beside = ["--beside", str(tmp_path / "dense.yaml"), weights]
    for name, more in (("layers", []), ("levels", beside)):
        assert tool([*arguments, *more, "--figure", name, f"--output={tmp_path}/{name}"]) == 0
    lines = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert [line.partition("detections")[0] for line in lines] == [
        "",
        f"{run.name}/config.yaml: ",
        f"{tmp_path.name}/dense.yaml: ",
    ]
    layers, levels = (size_of(tmp_path / name / "a.png") for name in ("layers", "levels"))
    assert levels[0] >= 4 * 360 and levels[1] >= 2 * 240  # two levels of two models in a row
    assert layers[0] > 3 * 360  # the detections and two layers


def test_pnp_detr_is_drawn_with_what_it_polls_and_how_many_it_pools(
    tool: Callable[..., int], root: Path, run: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The gray picture becomes 64 x 64, so 2 x 2 cells: one is kept, the others are pooled."""
    cfg = LazyConfig.load(root / "projects/pnp_detr/configs/pnp_detr_r50_50ep.py")
    model = cfg.model
    model.backbone = LazyCall(TimmBackbone)(name="test_resnet", out_features=["res5"])
    model.neck.in_channels, model.embed_dim = dict(res5=96), 32
    model.encoder.num_layers, model.decoder.num_layers = 2, 1
    model.encoder.pool.num_tokens = 3
    cfg.dataset.test_short_side, cfg.dataset.max_size = 64, 128
    cfg.dataset.class_names, cfg.dataset.num_classes, cfg.train.device = ["cat"], 1, "cpu"
    LazyConfig.save(cfg, tmp_path / "config.yaml")
    torch.manual_seed(0)
    save_checkpoint({"model": instantiate(cfg.model).state_dict()}, tmp_path / "model.pth")
    weights, image = str(tmp_path / "model.pth"), str(run / "other" / "a.jpg")
    command = [str(tmp_path / "config.yaml"), "--weights", weights, image]
    assert tool([*command, f"--output={tmp_path}", "model.selector.keep_ratio=0.3"]) == 0
    line = capsys.readouterr().out
    assert f"tokens kept: {1 / 4:.1%} of 4, pooled: 3: {tmp_path}/a.png" in line
    with Image.open(tmp_path / "a.png") as figure:
        panel = np.asarray(figure.convert("RGB"))[-42 - 360 : -42, -12 - 360 : -12]
    middles = panel[90::180, 90::180].astype(int)
    kept = Predictor(weights, cfg).explain(image)[1].selections[0].mask(4)[0].view(2, 2).numpy()
    assert kept.sum() == 1 and (middles[kept] > 60).any()
    assert abs(middles[~kept] - 0.3 * 99).max() <= 2, "dim, where no token of its own is kept"


def test_models_are_named_by_what_tells_them_apart() -> None:
    assert distinct_names([("c.py", "w.pth")]) == [""]
    runs = [("runs/a/config.yaml", "runs/a/model.pth"), ("runs/b/config.yaml", "runs/b/model.pth")]
    assert distinct_names(runs) == ["a", "b"]
    assert distinct_names([("runs/a.yaml", "w.pth"), ("b.yaml", "w.pth")]) == [
        "runs/a.yaml",
        "b.yaml",
    ]
    assert distinct_names([("c", "runs/a.pth"), ("c", "runs/a.pth/b")]) == ["a.pth", "a.pth/b"]


def test_classes_come_from_the_annotation_file(
    tool: Callable[..., int], run: Path, tmp_path: Path
) -> None:
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    entry = {"id": 1, "file_name": "a.png", "width": 96, "height": 64}
    content = {"images": [entry], "annotations": [], "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    overrides = [*NAMELESS, "dataset.train_json=null", f"dataset.val_json={tmp_path}/val.json"]
    arguments = ["--config-file", str(run / "config.yaml"), "--weights", str(run / "model.pth")]
    arguments += ["--output", str(tmp_path), str(run / "a.png"), *overrides]
    assert tool(arguments) == 0
    assert (tmp_path / "a.png").is_file()
    categories.append({"id": 8, "name": "cow"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert tool(arguments) == 2


# --- bad input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}/none.png"], ("none.png", "no such file")),
        (["{run}/config.yaml"], ("config.yaml", "not an image")),
        (["{run}/a.png", "{run}/other"], ("other", "it is a folder")),
        (["train.device=cpu"], ("No image",)),
        (["{run}/a.png", "--weights={run}/none.pth"], ("none.pth", "does not exist")),
        (["{run}/a.png", "--weights={run}/a.png"], ("a.png", "not a checkpoint")),
        (["{run}/a.png", "--weights={run}/backbone.pth"], ("backbone.pth", "model.backbone")),
        (["{run}/a.png", "dataset.class_names=[cat]"], ("2 classes, but the model has 1",)),
        (["{run}/a.png", "model.num_classes=3"], ("is 3, and the data has 2 classes",)),
        (["{run}/a.png", "model.embed_dim=64"], ("does not fit the model",)),
        (["{run}/a.png", "model.embed_dm=64"], ("embed_dim",)),
        (["{run}/a.png", "train.device=tpu"], ("train.device",)),
        (["{run}/a.png", "--config-file={run}/none.yaml"], ("none.yaml",)),
        (["{run}/a.png", "--config-file={run}/model.yaml"], ("model.yaml", "dataloader, dataset")),
        (
            ["{run}/a.png", *NAMELESS, "dataset.train_json=none.json", "dataset.val_json=null"],
            ("none.json", "name the classes"),
        ),
        (["{run}/a.png", "model.scorer._target_=OracleScorer"], ("ForegroundLoss",)),
        (["{run}/a.png", "--beside", "{run}/config.yaml", "{run}/none.pth"], ("none.pth",)),
        (["{run}/a.png", "--beside", "{run}/none.yaml", "{run}/model.pth"], ("none.yaml",)),
        (["{run}/a.png", "--figure=layers", "--scores"], ("--scores", "--figure layers")),
    ],
)
def test_bad_input_is_one_sentence(
    tool: Callable[..., int],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: tuple[str, ...],
) -> None:
    arguments = ["--config-file", str(run / "config.yaml"), "--weights", str(run / "model.pth")]
    arguments += ["--output", str(tmp_path / "drawn"), *(word.format(run=run) for word in words)]
    code = tool(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(text in lines[0] for text in says), lines[0]
    assert not (tmp_path / "drawn").exists()


def test_scorers_that_look_at_the_truth_say_so(
    tool: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are no annotations here; a picture of what an empty image keeps would mislead."""
    overrides = ["model.scorer._target_=OracleScorer", "model.criterion.unmatched=[]"]
    config = LazyConfig.apply_overrides(LazyConfig.load(run / "config.yaml"), overrides)
    LazyConfig.save(config, tmp_path / "config.yaml")
    save_checkpoint({"model": instantiate(config.model).state_dict()}, tmp_path / "model.pth")
    arguments = ["--config-file", str(tmp_path / "config.yaml")]
    arguments += ["--weights", str(tmp_path / "model.pth"), "--output", str(tmp_path)]
    assert tool([*arguments, str(run / "a.png")]) == 2
    assert "OracleScorer needs targets" in capsys.readouterr().err
