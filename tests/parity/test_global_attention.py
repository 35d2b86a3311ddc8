"""Our models of global attention against those of ``transformers``, run side by side.

Their weights get the names of the released codes first, so that our converters are tried, too.
"""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from sparsedet.checkpoint import load_checkpoint, model_weights
from sparsedet.config import LazyConfig, instantiate
from sparsedet.conversion import convert, left_out
from tests.modeling.small import randomize
from tests.parity.released import ROOT, SMALL_THEIRS

transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'sparsedet[parity]'"
)

LOGITS, BOXES = 5e-4, 1e-4
CLASSES = 11
# a batch with padding, whose sizes divide into cells: the two differ in how masks are resized
SIZES = [(96, 128), (64, 96)]
CANVAS = (96, 160)
KINDS = {"detr": "Detr", "conditional_detr": "ConditionalDetr", "dab_detr": "DabDetr"}

# theirs -> the released codes', applied one after the other
NAMES = (
    (r"^model\.backbone\.(conv_encoder\.)?model\.(_backbone\.)?", "backbone.0.body."),
    (r"^model\.input_projection", "input_proj"),
    (r"^model\.query_position_embeddings", "query_embed"),
    (r"^model\.query_refpoint_embeddings", "refpoint_embed"),
    (r"^class_labels_classifier", "class_embed"),
    (r"^bbox_predictor", "bbox_embed"),
    (r"^model\.", "transformer."),
    (r"decoder\.layernorm", "decoder.norm"),
    (r"activation_fn", "activation"),
    (r"(self|cross)_attn\.((self|cross)_attn)", r"\2"),  # DAB-DETR's are in blocks of their own
    (r"encoder_attn\.", "cross_attn."),
    (r"encoder_attn_layer_norm|cross_attn_layer_norm", "norm2"),
    (r"self_attn_layer_norm", "norm1"),
    (r"mlp\.", ""),
    (r"encoder(\.layers\.\d)\.final_layer_norm", r"encoder\1.norm2"),
    (r"decoder(\.layers\.\d)\.final_layer_norm", r"decoder\1.norm3"),
    (r"fc(\d)", r"linear\1"),
    (r"\.(o_proj|output_proj)", ".out_proj"),
    (r"(self|cross)_attn[._](q|k|v|query|key|value)_(\w+_)?proj", r"\1~\2~\3proj"),
)
PLAIN = ((r"cross~(q|k|v)~proj", r"multihead_attn.in_proj.\1"), (r"cross_attn", "multihead_attn"))
APART = (
    (r"self~(q|k|v)\w*~(\w+_)proj", r"sa_\1\2proj"),
    (r"cross~(q|k|v)\w*~(\w+_)proj", r"ca_\1\2proj"),
    (r"decoder(\.layers\.\d)\.self~v(alue)?~proj", r"decoder\1.sa_v_proj"),
    (r"decoder(\.layers\.\d)\.cross~v(alue)?~proj", r"decoder\1.ca_v_proj"),
)
JOINED = ((r"self~(q|k|v)~proj", r"self_attn.in_proj.\1"),)


def released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released codes' names; query, key and value projections of one attention joined."""
    found: dict[str, Tensor] = {}
    apart = any("content" in key for key in state)
    for key, tensor in state.items():
        for pattern, name in (*NAMES, *(APART if apart else PLAIN), *JOINED):
            key = re.sub(pattern, name, key)
        found[key] = tensor
    joined: dict[str, Tensor] = {}
    for key, tensor in found.items():
        if match := re.fullmatch(r"(.+\.in_proj)\.[qkv]\.(weight|bias)", key):
            parts = [found[f"{match[1]}.{part}.{match[2]}"] for part in "qkv"]
            joined[f"{match[1]}_{match[2]}"] = torch.cat(parts)
        else:
            joined[key] = tensor
    return joined


def theirs(kind: str) -> torch.nn.Module:
    width = "hidden_size" if kind == "dab_detr" else "d_model"
    config = getattr(transformers, f"{KINDS[kind]}Config")(
        **SMALL_THEIRS,
        num_labels=CLASSES,
        decoder_layers=3,
        **{width: 32},
    )
    model = getattr(transformers, f"{KINDS[kind]}ForObjectDetection")(config).eval()
    randomize(model)
    with torch.no_grad():  # queries would all answer the same otherwise
        for name, parameter in model.named_parameters():
            if re.search(r"query_\w+_embeddings|(_|\.)(q|k|query|key)_\w*proj\.weight", name):
                parameter.mul_(5)
            if re.search(r"decoder.+self_attn\.(\w+\.)?o\w*_proj\.weight", name):
                parameter.mul_(0.25)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model


def ours(kind: str) -> torch.nn.Module:
    model = LazyConfig.load(ROOT / f"projects/{kind}/configs/released/{kind}_r50.py").model
    model.num_classes, model.embed_dim = CLASSES, 32
    model.backbone.name = "resnet18"
    model.neck.in_channels = dict(res5=512)
    for part in (model.encoder, model.decoder):
        part.update(num_layers=2, num_heads=4, feedforward_dim=48)
    model.decoder.num_layers = 3
    model.query_initializer.num_queries = 20
    if kind == "dab_detr":
        model.decoder.eps = 1e-5  # as there; the released code has 1e-3
    return instantiate(model).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_agree(kind):
    released, model = theirs(kind), ours(kind)
    model.load_state_dict(convert(released_names(released.state_dict()), kind.replace("_", "-")))
    images, mask = torch.zeros(2, 3, *CANVAS), torch.zeros(2, *CANVAS, dtype=torch.long)
    for image, valid, (height, width) in zip(images, mask, SIZES, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
        valid[:height, :width] = 1
    with torch.no_grad():
        expected = released(pixel_values=images, pixel_mask=mask)
        got = model.detect(images, SIZES).decoder[-1]
    for answers, least in ((expected.logits, 0.02), (expected.pred_boxes, 0.01)):
        assert answers.std(dim=1).mean() > least, "the queries answer the same"
    torch.testing.assert_close(got.logits, expected.logits, atol=LOGITS, rtol=0)
    torch.testing.assert_close(got.boxes, expected.pred_boxes, atol=BOXES, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_transformers_are_read(kind, tmp_path):
    """Under the names that its models have and those that it writes, which published files have."""
    released, source = theirs(kind), kind.replace("_", "-")
    state = released.state_dict()
    expected = convert(released_names(state), source)
    released.save_pretrained(tmp_path)
    saved = model_weights(load_checkpoint(tmp_path / "model.safetensors"))
    for found in (state, saved):
        converted = convert(found, f"huggingface-{source}")
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[key], expected[key]) for key in expected)
    assert state.keys() != saved.keys(), "the same was tried twice"


def test_what_pre_training_alone_needs_is_left_out_by_name():
    state = released_names(theirs("detr").state_dict())
    surplus = {"patch2query.weight": torch.zeros(2), "feature_align.layers.0.bias": torch.zeros(2)}
    assert left_out({**state, **surplus}, "up-detr") == list(surplus)
    assert convert({**state, **surplus}, "up-detr").keys() == convert(state, "detr").keys()
    with pytest.raises(
        ValueError, match=r"2 keys do not belong to source 'detr': patch2query\.weight"
    ):
        convert({**state, **surplus}, "detr")


def test_the_content_of_dn_detr_is_its_label_of_nothing():
    state = released_names(theirs("dab_detr").state_dict())
    labels = torch.randn(CLASSES + 1, 31)
    converted = convert({**state, "label_enc.weight": labels}, "dn-detr")
    cfg = LazyConfig.load(ROOT / "projects/dn_detr/configs/released/dn_detr_r50.py").model
    assert cfg.query_initializer.num_patterns == 1
    assert torch.equal(converted["query_initializer.embedding.weight"], labels[-1:])
    assert torch.equal(converted["denoising.label_embedding.weight"], labels)
    assert save(converted), "no two tensors overlap"
