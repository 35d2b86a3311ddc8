"""Conversion apart from whole listings, which ``parity/test_keys.py`` has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from timm.models.swin_transformer import checkpoint_filter_fn
from torch import nn

from sparsedet.config import LazyConfig, instantiate
from sparsedet.conversion import COCO_CATEGORY_IDS, contiguous_classes, convert, num_classes
from sparsedet.modeling import EfficientQueries, TimmBackbone, TwoStageQueries
from sparsedet.modeling.stages import DetectorOutput
from tests.modeling.small import randomize

SWIN = "swin_tiny_patch4_window7_224"
ROOT = Path(__file__).resolve().parents[1]
RELEASED = sorted(ROOT.glob("projects/*/configs/released/*.py"))
CATEGORY_IDS = [path for path in RELEASED if LazyConfig.load(path).model.num_classes == 91]
UNUSED = sorted(set(range(91)) - set(COCO_CATEGORY_IDS))


@pytest.mark.parametrize(
    ("prefix", "source"), [("backbone.0.body.", "sparse-detr"), ("backbone.", "detrex")]
)
def test_swin_transformers_get_the_names_of_timm(prefix, source):
    """The original names are those that timm's own reader of original files turns into timm's."""
    with torch.device("meta"):
        whole = timm.create_model(SWIN, num_classes=0)
        ours = TimmBackbone(SWIN, norm_maps=True).state_dict()
    tensors = {k: v for k, v in whole.state_dict().items() if not k.startswith("norm.")}
    original = {
        re.sub(r"layers\.(\d)\.downs", lambda m: f"layers.{int(m[1]) - 1}.downs", name): tensor
        for name, tensor in tensors.items()
    }
    read = checkpoint_filter_fn(original, whole)
    assert read.keys() == tensors.keys()
    assert all(read[name] is tensors[name] for name in tensors)

    published = {f"{prefix}{name}": tensor for name, tensor in original.items()}
    published[f"{prefix}layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    for level in (1, 2, 3):
        for part in ("weight", "bias"):
            published[f"{prefix}norm{level}.{part}"] = torch.full((1,), float(level))
    converted = convert(published, source)
    assert converted.keys() == {f"backbone.{name}" for name in ours}
    for name, tensor in tensors.items():
        flat = re.sub(r"layers\.(\d)", r"layers_\1", name)
        assert converted[f"backbone.body.{flat}"] is tensor, name
    assert converted["backbone.norms.res4.bias"] == 2


def test_an_index_that_nothing_has_is_not_passed_over():
    with pytest.raises(ValueError, match="do not belong to source"):
        convert({"elsewhere.attn.relative_position_index": torch.zeros(1)}, "detrex")


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("transformer.sampler.k_proj.weight", "Choose 'pnp-detr', which has all of them."),
        (
            "transformer.level_embed",
            "Choose 'deformable-detr' or 'sparse-detr', which has all of them.",
        ),
        ("somewhere.weight", "has all keys of this file."),
    ],
)
def test_the_error_of_a_file_names_the_sources_that_know_it(key, answer):
    with pytest.raises(
        ValueError, match=f"^convert: 1 keys do not belong to source 'detr': {key}. "
    ) as e:
        convert({key: torch.zeros(1), "query_embed.weight": torch.zeros(1)}, "detr")
    assert str(e.value).endswith(answer)


def test_a_projection_that_lacks_a_part_is_refused():
    name = "model.decoder.layers.0.self_attn.{}_proj.weight"
    state = {name.format(part): torch.zeros(4, 4) for part in "qk"}
    with pytest.raises(ValueError, match=r"but not .*in_proj\.v\.weight"):
        convert(state, "huggingface")


def test_the_ids_are_those_of_coco():
    """Those of the categories in COCO's instances_val2017.json: 80 of the first 90."""
    runs = ((1, 11), (13, 25), (27, 28), (31, 44), (46, 65), (67, 67), (70, 70), (72, 82), (84, 90))
    ids = [number for first, last in runs for number in range(first, last + 1)]
    assert len(ids) == 80
    assert list(COCO_CATEGORY_IDS) == ids


def test_picked_rows_are_those_of_the_categories():
    rows = torch.arange(92.0)
    state = {
        "heads.decoder_heads.0.class_embed.weight": rows[:91, None],
        "heads.proposal_head.class_embed.bias": rows[:91],
        "denoising.label_embedding.weight": rows[:, None],
        "query_initializer.embedding.weight": rows[:91, None],
    }
    picked = contiguous_classes(state)
    ids = list(COCO_CATEGORY_IDS)
    assert picked["heads.decoder_heads.0.class_embed.weight"][:, 0].tolist() == ids
    assert picked["heads.proposal_head.class_embed.bias"].tolist() == ids
    assert picked["denoising.label_embedding.weight"][:, 0].tolist() == [*ids, 91]  # "unknown"
    assert len(picked["query_initializer.embedding.weight"]) == 91
    assert num_classes(picked) == 80 == len(set(ids))
    with pytest.raises(ValueError, match="already contiguous"):
        contiguous_classes(picked)


def small(path: Path, num_classes: int) -> nn.Module:
    """The model of a released config with fewer and thinner layers."""
    cfg = LazyConfig.load(path).model
    if "norm_maps" not in cfg.backbone:
        cfg.backbone.name = "resnet18"
        cfg.neck.in_channels = {m: cfg.neck.in_channels[m] // 4 for m in cfg.neck.in_channels}
        if cfg.backbone.get("dilation"):  # its blocks cannot, and no tensor depends on it
            cfg.backbone.dilation, cfg.neck.strides = False, [32]
    cfg.num_classes, cfg.embed_dim = num_classes, 32
    cfg.encoder.num_layers = cfg.decoder.num_layers = 2
    cfg.encoder.feedforward_dim = cfg.decoder.feedforward_dim = 16
    cfg.query_initializer.num_queries = 10
    return instantiate(cfg).eval()


@torch.no_grad()
def detect(model: nn.Module) -> DetectorOutput:
    image = torch.randint(256, (3, 96, 128), generator=torch.Generator().manual_seed(2))
    batch = model.preprocess([{"image": image.to(torch.uint8)}])
    return model.detect(batch.images, batch.image_sizes)


def test_there_are_released_models_of_category_ids():
    assert len(CATEGORY_IDS) == 22


@pytest.mark.parametrize("path", CATEGORY_IDS, ids=lambda path: path.stem)
def test_a_picked_model_answers_as_before(path):
    """Where tokens are ranked by their best class, provided that the best is one of the 80."""
    whole = randomize(small(path, 91), seed=1)
    state = whole.state_dict()
    proposal = "heads.proposal_head.class_embed"
    if isinstance(whole.query_initializer, EfficientQueries):
        state[f"{proposal}.bias"][UNUSED] = -100.0  # in place: of ``whole``, too
    picked_state = contiguous_classes(state)
    picked = small(path, 80)
    picked.load_state_dict(picked_state)
    before, after = detect(whole), detect(picked)
    ids = list(COCO_CATEGORY_IDS)
    for old, new in zip(before.decoder, after.decoder, strict=True):
        kept = [*ids, 91] if old.softmax else ids  # and no object
        torch.testing.assert_close(new.logits, old.logits[..., kept])
        torch.testing.assert_close(new.boxes, old.boxes)
    if isinstance(whole.query_initializer, TwoStageQueries):
        for part in ("weight", "bias"):
            name = f"{proposal}.{part}"
            assert torch.equal(picked_state[name], state[name][:80])


def test_a_layer_without_a_number_is_named():
    name = "transformer.encoder.layers.x.attentions.0.value_proj.weight"
    with pytest.raises(
        ValueError, match=rf"1 keys do not belong to source 'detrex': {re.escape(name)}"
    ):
        convert({name: torch.zeros(1)}, "detrex")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (torch.tensor([1 / 3, 2.0]), "their values differ"),
        (torch.tensor([1 / 3, 1.0]).half(), r"one is of torch.float32, the other of torch.float16"),
        (torch.tensor([1 / 3, torch.nan]), "they have NaN"),
        (torch.tensor([[1 / 3, 1.0]]), r"one has the shape \(2,\), the other \(1, 2\)"),
        (torch.tensor(1.0), r"the other \(\)"),
    ],
)
def test_it_says_how_copies_differ(other, says):
    one = torch.tensor([1 / 3, 1.0])
    assert not torch.equal(one, one.half())
    state = {f"{place}bbox_embed.0.layers.0.bias": one for place in ("", "transformer.decoder.")}
    assert len(convert(state, "sparse-detr")) == 1
    state["bbox_embed.0.layers.0.bias"] = other
    with pytest.raises(ValueError, match=rf"but .*{says}.* The file is damaged or from another"):
        convert(dict(reversed(state.items())), "sparse-detr")


def test_copies_that_are_all_nan():
    state = {
        f"{place}bbox_embed.0.layers.0.bias": torch.full((2,), torch.nan)
        for place in ("", "transformer.decoder.")
    }
    with pytest.raises(ValueError, match="but they have NaN"):
        convert(state, "sparse-detr")


@pytest.mark.parametrize("bad", [torch.zeros(()), torch.zeros(4, 3)])
def test_projections_of_other_shapes_are_refused(bad):
    name = "model.decoder.layers.0.self_attn.{}_proj.weight"
    state = {name.format(part): torch.zeros(4, 4) for part in "qk"} | {name.format("v"): bad}
    with pytest.raises(ValueError, match="must have the same shape"):
        convert(state, "huggingface")
    with pytest.raises(ValueError, match="must have the same shape"):
        convert({name.format(part): torch.zeros(()) for part in "qkv"}, "huggingface")


@pytest.mark.parametrize("labels", [torch.zeros(()), torch.zeros(81, 4)])
def test_labels_of_too_few_classes_are_not_picked(labels):
    state = {"heads.decoder_heads.0.class_embed.bias": torch.zeros(91)}
    with pytest.raises(ValueError, match="must have 91 or 92 rows"):
        contiguous_classes({**state, "denoising.label_embedding.weight": labels})


@pytest.mark.parametrize(
    ("part", "tensor"), [("bias", torch.zeros(())), ("weight", torch.zeros(91))]
)
def test_heads_without_rows(part, tensor):
    with pytest.raises(ValueError, match=rf"class_embed\.{part}' must have a row per class, got"):
        num_classes({f"heads.decoder_heads.0.class_embed.{part}": tensor})


@pytest.mark.parametrize("rows", [(), (3, 4)])
def test_heads_of_no_number_of_classes(rows):
    state = {f"heads.decoder_heads.{n}.class_embed.bias": torch.zeros(n) for n in rows}
    with pytest.raises(ValueError, match=r"must have the same number of rows, got \["):
        num_classes(state)
