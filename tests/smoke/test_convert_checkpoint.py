"""`sparsedet convert-weights`, whole: a small model under published names, and bad input."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sparsedet.cli.convert_weights
from sparsedet.checkpoint import load_checkpoint
from sparsedet.config import LazyConfig, instantiate, packaged
from sparsedet.conversion import COCO_CATEGORY_IDS
from sparsedet.weights import published_weights

CONFIG = "projects/deformable_detr/configs/released/deformable_detr_r50_refine.py"
SMALL = (
    "model.embed_dim=32",
    "model.backbone.name=resnet18",
    "model.neck.in_channels={res3: 128, res4: 256, res5: 512}",
    "model.encoder.num_layers=2",
    "model.encoder.feedforward_dim=16",
    "model.decoder.num_layers=2",
    "model.decoder.feedforward_dim=16",
    "model.query_initializer.num_queries=10",
)
# our names -> those of the original code
THEIRS = (
    (r"^backbone\.", "backbone.0."),
    (r"^neck\.convs\.", "input_proj."),
    (r"^neck\.extra_convs\.0", "input_proj.3"),
    (r"^level_embed", "transformer.level_embed"),
    (r"^query_initializer\.embedding", "query_embed"),
    (r"^query_initializer\.", "transformer."),
    (r"^heads\.decoder_heads\.(\d)\.class_embed", r"class_embed.\1"),
    (r"^heads\.decoder_heads\.(\d)\.box_embed", r"bbox_embed.\1"),
    (r"^(en|de)coder\.", r"transformer.\g<0>"),
    (r"encoder(.+)\.attention\.", r"encoder\1.self_attn."),
    (r"encoder(.+)\.attention_norm", r"encoder\1.norm1"),
    (r"encoder(.+)\.feedforward_norm", r"encoder\1.norm2"),
    (r"decoder(.+)\.self_attention\.", r"decoder\1.self_attn."),
    (r"decoder(.+)\.self_attention_norm", r"decoder\1.norm2"),
    (r"decoder(.+)\.cross_attention\.", r"decoder\1.cross_attn."),
    (r"decoder(.+)\.cross_attention_norm", r"decoder\1.norm1"),
    (r"decoder(.+)\.feedforward_norm", r"decoder\1.norm3"),
    (r"\.feedforward\.", "."),
)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return sparsedet.cli.convert_weights


@pytest.fixture(scope="module")
def ours(root: Path) -> dict[str, Tensor]:
    cfg = LazyConfig.apply_overrides(LazyConfig.load(root / CONFIG), SMALL)
    torch.manual_seed(0)
    return instantiate(cfg.model).state_dict()


@pytest.fixture(scope="module")
def theirs(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as the original code stores them, box heads twice."""
    published = {}
    for name, tensor in ours.items():
        for pattern, replacement in THEIRS:
            name = re.sub(pattern, replacement, name)
        published[name] = tensor
        if name.startswith("bbox_embed"):
            published[f"transformer.decoder.{name}"] = tensor.clone()
    return published


@pytest.fixture(scope="module")
def published(theirs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "a.pth"
    torch.save({"model": theirs, "args": argparse.Namespace(lr=1.0), "epoch": 49}, path)
    return path


@pytest.fixture
def convert(tool: ModuleType, root: Path) -> Callable[..., int]:
    def run(*words: str | Path, source: str = "deformable-detr", config: str = CONFIG) -> int:
        given = ["--config-file", str(root / config), *SMALL] if config else []
        return tool.main(["--source", source, *map(str, words), *given])

    return run


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["b.safetensors", "b.pth"])
def test_it_converts(
    convert: Callable[..., int],
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    published: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    assert convert(published, tmp_path / name) == 0
    assert same(load_checkpoint(tmp_path / name)["model"], ours)
    said = capsys.readouterr().out
    assert f"{len(theirs)} tensors of {published} to {len(ours)}:" in said
    assert "classes: 91, COCO's category ids" in said
    assert CONFIG in said


def test_averaged_weights_and_safetensors_are_read(
    convert: Callable[..., int],
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    stale = {name: torch.zeros_like(tensor) for name, tensor in theirs.items()}
    torch.save({"model": stale, "model_ema": theirs}, tmp_path / "a.pth")
    save_file(theirs, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        output = tmp_path / f"converted_{name}"
        assert convert(tmp_path / name, output) == 0
        assert same(load_checkpoint(output)["model"], ours)


def test_the_80_classes_that_there_are(
    convert: Callable[..., int],
    ours: dict[str, Tensor],
    published: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "b.pth"
    assert convert("--classes", "contiguous", published, output, "model.num_classes=80") == 0
    assert "classes: 80 of 91" in capsys.readouterr().out
    found = load_checkpoint(output)["model"]
    assert (len(COCO_CATEGORY_IDS), COCO_CATEGORY_IDS[0], COCO_CATEGORY_IDS[-1]) == (80, 1, 90)
    heads = {name for name in ours if ".class_embed." in name}
    for name in ours:
        rows = list(COCO_CATEGORY_IDS) if name in heads else slice(None)
        assert torch.equal(found[name], ours[name][rows] if ours[name].ndim else ours[name]), name
    assert convert("--classes", "contiguous", published, tmp_path / "c.pth") == 2
    assert "(80,) instead of (91,)" in capsys.readouterr().err
    assert not (tmp_path / "c.pth").exists()


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two released configs, ``right.py`` of the small model and ``other.py``; their folder."""
    folder = tmp_path / "projects/method/configs/released"
    folder.mkdir(parents=True)
    changes = "\n".join(SMALL).replace("{", "dict(").replace("}", ")").replace(": ", "=")
    changes = re.sub(r"name=(\w+)", r"name='\1'", changes)
    lines = ["from sparsedet.config import get_config", f"model = get_config({CONFIG!r}).model"]
    (folder / "right.py").write_text("\n".join([*lines, changes, ""]))
    (folder / "other.py").write_text("\n".join([*lines, changes, "model.num_levels = 3", ""]))
    monkeypatch.setattr(packaged, "PACKAGE", tmp_path)
    return folder


@pytest.mark.parametrize(
    ("words", "rows", "says"),
    [
        ([], 91, "fits: {config}\n"),
        (["--classes=contiguous"], 91, "fits: {config} model.num_classes=80\n"),
        ([], 20, "fits: {config} model.num_classes=20\n"),
    ],
)
def test_it_says_which_released_config_fits(
    tool: ModuleType,
    released: Path,
    theirs: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    rows: int,
    says: str,
) -> None:
    state = {k: v[:rows] if k.startswith("class_embed") else v for k, v in theirs.items()}
    torch.save(state, tmp_path / "a.pth")
    given = [*words, str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    assert tool.main(["--source", "deformable-detr", *given]) == 0
    said = capsys.readouterr().out
    assert said.endswith(says.format(config="projects/method/configs/released/right.py"))
    assert said.count("fits:") == 1


@pytest.mark.parametrize(
    ("words", "keep", "says"),
    [
        ([], r"(?!transformer\.level_embed)", "right.py: tensors 1 missing (level_embed)."),
        (
            ["--classes=contiguous"],
            r"(?!transformer\.encoder\.layers\.0\.)",
            "right.py model.num_classes=80: tensors 16 missing (encoder.layers.0.",
        ),
        ([], "class_embed", " missing (level_embed, "),
    ],
)
def test_an_incomplete_file_is_not_written(
    tool: ModuleType,
    released: Path,
    theirs: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    keep: str,
    says: str,
) -> None:
    torch.save({k: v for k, v in theirs.items() if re.match(keep, k)}, tmp_path / "a.pth")
    given = [*words, str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    assert tool.main(["--source", "deformable-detr", *given]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
    assert "The nearest is projects/method/configs/released/" in said.err
    assert says in said.err and "--config-file" in said.err
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("class_embed.0.bias", torch.tensor(1.0), "must have a row per class"),
        ("bbox_embed.0.layers.0.bias", torch.tensor(1.0), "has the shape ()"),
        ("transformer.encoder.layers.x.norm1.bias", torch.zeros(2), "do not belong to source"),
        (7, torch.zeros(2), "maps names to tensors"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    convert: Callable[..., int],
    theirs: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str | int,
    tensor: Tensor,
    says: str,
) -> None:
    torch.save({"model": {**theirs, name: tensor}}, tmp_path / "a.pth")
    assert convert(tmp_path / "a.pth", tmp_path / "b.pth") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize(
    ("words", "source", "config", "says"),
    [
        (["{folder}/none.pth", "{out}/b.pth"], "deformable-detr", CONFIG, "does not exist"),
        (["{file}", "{out}/b.bin"], "deformable-detr", CONFIG, "must end in .pth or .safetensors"),
        (["{file}", "{file}"], "deformable-detr", CONFIG, "is also the input"),
        (["{file}", "{out}/b.pth"], "huggingface", CONFIG, "do not belong to source 'huggingface'"),
        (["{file}", "{out}/b.pth", "a.b=1"], "deformable-detr", "", "a.b=1 overrides a config"),
        (["{file}", "{out}/b.pth", "model.embed_dm=1"], "deformable-detr", CONFIG, "embed_dim"),
        (["{file}", "{out}/b.pth"], "deformable-detr", "configs/common/train.py", "no model"),
        (
            ["{file}", "{out}/b.pth", "model.num_levels=3"],
            "deformable-detr",
            CONFIG,
            "does not fit the model. Tensors that differ:",
        ),
        (
            ["{file}", "{out}/b.pth", "model.num_classes=4"],
            "deformable-detr",
            CONFIG,
            "of another shape",
        ),
        (
            ["--classes=contiguous", "{folder}/80.pth", "{out}/b.pth"],
            "deformable-detr",
            CONFIG,
            "already contiguous",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    tool: ModuleType,
    root: Path,
    theirs: dict[str, Tensor],
    published: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    source: str,
    config: str,
    says: str,
) -> None:
    fewer = {
        name: tensor[:80] if name.startswith("class_embed") else tensor
        for name, tensor in theirs.items()
    }
    torch.save(fewer, published.parent / "80.pth")
    before = published.read_bytes()
    given = ["--config-file", str(root / config)] if config else []
    places = dict(folder=published.parent, file=published, out=tmp_path)
    given += [word.format(**places) for word in words]
    given += SMALL if config == CONFIG else []
    code = tool.main(["--source", source, *given])
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0], lines
    assert not list(tmp_path.iterdir())
    assert published.read_bytes() == before


def test_the_page_of_published_weights_names_every_released_config(root: Path) -> None:
    page = (root / "docs/published_weights.md").read_text(encoding="utf-8")
    configs = {path.stem for path in root.glob("projects/*/configs/released/*.py")}
    methods = "|".join(sorted({path.name for path in (root / "projects").iterdir()}))
    named = set(re.findall(rf"`((?:{methods})_\w+)`", page))
    assert configs <= named
    assert named - configs <= set(published_weights())


def test_the_config_that_the_page_shows_is_whole(root: Path, tmp_path: Path) -> None:
    page = (root / "docs/published_weights.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (block,) = (each for each in blocks if "get_config(" in each)
    (tmp_path / "shown.py").write_text(block)
    cfg = LazyConfig.load(tmp_path / "shown.py")
    assert {"model", "dataloader", "dataset", "train", "optimizer", "lr_multiplier"} <= set(cfg)
    assert cfg.model.num_classes == cfg.dataset.num_classes
    assert cfg.model.unmasked_border
