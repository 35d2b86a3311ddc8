"""Conversion apart from whole listings, which ``parity/test_keys.py`` has."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from timm.models.swin_transformer import checkpoint_filter_fn

from sparsedet.conversion import COCO_CATEGORY_IDS, contiguous_classes, convert, num_classes
from sparsedet.modeling import TimmBackbone

SWIN = "swin_tiny_patch4_window7_224"


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
    with pytest.raises(ValueError, match="are not of source"):
        convert({"elsewhere.attn.relative_position_index": torch.zeros(1)}, "detrex")


def test_a_projection_that_lacks_a_part_is_refused():
    name = "model.decoder.layers.0.self_attn.{}_proj.weight"
    state = {name.format(part): torch.zeros(4, 4) for part in "qk"}
    with pytest.raises(ValueError, match=r"without .*in_proj\.v\.weight"):
        convert(state, "huggingface")


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
    with pytest.raises(ValueError, match="contiguous already"):
        contiguous_classes(picked)


@pytest.mark.parametrize("rows", [(), (3, 4)])
def test_heads_of_no_number_of_classes(rows):
    state = {f"heads.decoder_heads.{n}.class_embed.bias": torch.zeros(n) for n in rows}
    with pytest.raises(ValueError, match=r"must have one number of rows, got \["):
        num_classes(state)
