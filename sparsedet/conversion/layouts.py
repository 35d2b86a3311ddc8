"""Maps from the module names of published checkpoints to ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_NECK_THREE_MAPS = {
    "input_proj.0": "neck.convs.0",
    "input_proj.1": "neck.convs.1",
    "input_proj.2": "neck.convs.2",
    "input_proj.3": "neck.extra_convs.0",
}
_STAGES = {
    "reference_points": "query_initializer.reference_points",
    "pos_trans": "query_initializer.pos_linear",
    "pos_trans_norm": "query_initializer.pos_norm",
    "enc_output": "heads.embedding.linear",
    "enc_output_norm": "heads.embedding.norm",
}
_SCORE_NETWORK = {
    "enc_mask_predictor.layer1": "scorer.predictor.input",
    "enc_mask_predictor.layer2": "scorer.predictor.output",
}


@dataclass(frozen=True)
class Layout:
    """The key names of a source.

    Attributes:
        root: prefix of the transformer's keys, with its dot.
        modules: keys or prefixes up to a dot, mapped to ours; ``*`` matches any number.
        encoder_layer: the same inside ``<root>encoder.layers.<i>.``
        decoder_layer: the same inside ``<root>decoder.layers.<i>.``
        object_layer: keys in ``<root>encoder.layers.<i>.`` of our ``encoder.object_layers.<i>.``
        softmax: the last row of the class heads is that of "no object", which we store separately.
        left_out: prefixes up to a dot of keys that only pre-training uses.
        content_label: the content of the queries is the last row of the label embedding.
    """

    root: str
    modules: Mapping[str, str]
    encoder_layer: Mapping[str, str]
    decoder_layer: Mapping[str, str]
    object_layer: Mapping[str, str] = field(default_factory=dict)
    softmax: bool = False
    left_out: tuple[str, ...] = ()
    content_label: bool = False


_ORIGINAL = Layout(
    root="transformer.",
    modules={
        **_NECK_THREE_MAPS,
        **{f"transformer.{key}": ours for key, ours in _STAGES.items()},
        "backbone.0.body": "backbone.body",
        "query_embed": "query_initializer.embedding",
        "transformer.level_embed": "level_embed",
        **{f"transformer.{key}": ours for key, ours in _SCORE_NETWORK.items()},
    },
    encoder_layer={
        "self_attn": "attention",
        "norm1": "attention_norm",
        "linear1": "feedforward.linear1",
        "linear2": "feedforward.linear2",
        "norm2": "feedforward_norm",
    },
    decoder_layer={
        "self_attn": "self_attention",
        "norm2": "self_attention_norm",
        "cross_attn": "cross_attention",
        "norm1": "cross_attention_norm",
        "linear1": "feedforward.linear1",
        "linear2": "feedforward.linear2",
        "norm3": "feedforward_norm",
    },
)


def _apart(prefix: str, attention: str) -> dict[str, str]:
    """Projections of contents and positions of an attention of Conditional DETR."""
    names = {"q": "query", "k": "key"}
    found = {
        f"{prefix}_{short}{kind}_proj": f"{attention}.{name}_{kind}"
        for short, name in names.items()
        for kind in ("content", "pos")
    }
    return {**found, f"{prefix}_v_proj": f"{attention}.value"}


# one head for all decoder layers, one map, and positions for queries
_DETR = Layout(
    root="transformer.",
    modules={
        "backbone.0.body": "backbone.body",
        "input_proj": "neck.convs.0.0",
        "query_embed": "query_initializer.embedding",
        "transformer.encoder.norm": "encoder.norm",
        "transformer.decoder.norm": "decoder.norm",
        "class_embed": "heads.decoder_heads.0.class_embed",
        "bbox_embed": "heads.decoder_heads.0.box_embed",
    },
    encoder_layer=_ORIGINAL.encoder_layer,
    decoder_layer={
        "self_attn": "self_attention",
        "norm1": "self_attention_norm",
        "multihead_attn": "cross_attention",
        "norm2": "cross_attention_norm",
        "linear1": "feedforward.linear1",
        "linear2": "feedforward.linear2",
        "norm3": "feedforward_norm",
    },
    softmax=True,
)

_UP_DETR = replace(_DETR, left_out=("patch2query", "feature_align"))

# contents and positions are projected apart
_CONDITIONAL = replace(
    _DETR,
    modules={
        **_DETR.modules,
        "transformer.decoder.ref_point_head": "query_initializer.point_mlp",
        "transformer.decoder.query_scale": "decoder.sine_scale",
    },
    decoder_layer={
        **_apart("sa", "self_attention"),
        **_apart("ca", "cross_attention"),
        "ca_qpos_sine_proj": "cross_attention.query_sine",
        "self_attn.out_proj": "self_attention.out_proj",
        "cross_attn.out_proj": "cross_attention.out_proj",
        **{key: ours for key, ours in _DETR.decoder_layer.items() if "attn" not in key},
    },
    softmax=False,
)

_ACTIVATION = {"activation": "feedforward.activation"}
_DAB = replace(
    _CONDITIONAL,
    modules={
        **_CONDITIONAL.modules,
        "refpoint_embed": "query_initializer.anchors",
        "transformer.patterns": "query_initializer.embedding",
        "transformer.encoder.query_scale": "encoder.pos_scale",
        "transformer.decoder.ref_point_head": "decoder.pos_mlp",
        "transformer.decoder.ref_anchor_head": "decoder.size_scale",
        "transformer.decoder.bbox_embed": "heads.decoder_heads.0.box_embed",
    },
    encoder_layer={**_DETR.encoder_layer, **_ACTIVATION},
    decoder_layer={**_CONDITIONAL.decoder_layer, **_ACTIVATION},
)
_DN = replace(
    _DAB,
    modules={**_DAB.modules, "label_enc": "denoising.label_embedding"},
    content_label=True,
)

_PNP_DETR = replace(
    _DETR,
    modules={
        **_DETR.modules,
        "transformer.sampler.score_pred_net.0": "scorer.predictor.layers.0",
        "transformer.sampler.score_pred_net.2": "scorer.predictor.layers.1",
        "transformer.sampler.k_proj": "encoder.pool.share",
        "transformer.sampler.v_proj": "encoder.pool.value",
    },
)

_DETREX = Layout(
    root="transformer.",
    modules={
        **{f"transformer.{key}": ours for key, ours in _STAGES.items()},
        **{f"neck.convs.{i}.conv": f"neck.convs.{i}.0" for i in range(4)},
        **{f"neck.convs.{i}.norm": f"neck.convs.{i}.1" for i in range(4)},
        "neck.extra_convs.0.conv": "neck.extra_convs.0.0",
        "neck.extra_convs.0.norm": "neck.extra_convs.0.1",
        "transformer.level_embeds": "level_embed",
        "query_embedding": "query_initializer.embedding",  # Deformable DETR
        "tgt_embed": "query_initializer.embedding",  # DN-Deformable-DETR
        "transformer.tgt_embed": "query_initializer.embedding",  # DINO
        "refpoint_embed": "query_initializer.anchors",
        "denoising_generator.label_encoder": "denoising.label_embedding",
        "label_enc": "denoising.label_embedding",
        "transformer.decoder.ref_point_head": "decoder.pos_mlp",
        "transformer.decoder.query_scale": "decoder.pos_scale",
        "transformer.decoder.norm": "decoder.norm",
    },
    encoder_layer={
        "attentions.0": "attention",
        "norms.0": "attention_norm",
        "ffns.0.layers.0.0": "feedforward.linear1",
        "ffns.0.layers.1": "feedforward.linear2",
        "norms.1": "feedforward_norm",
    },
    decoder_layer={
        "attentions.0.attn": "self_attention",
        "norms.0": "self_attention_norm",
        "attentions.1": "cross_attention",
        "norms.1": "cross_attention_norm",
        "ffns.0.layers.0.0": "feedforward.linear1",
        "ffns.0.layers.1": "feedforward.linear2",
        "norms.2": "feedforward_norm",
    },
)

_FOCUS_DETREX = replace(
    _DETREX,
    modules={
        **_DETREX.modules,
        **{f"transformer.{key}": ours for key, ours in _SCORE_NETWORK.items()},
        "transformer.alpha": "scorer.alpha",
        # the class head of the first stage rates the object tokens of every layer
        "transformer.encoder.enhance_MCSP.*": "heads.proposal_head.class_embed",
        "enhance_MCSP_layerlist.*": "heads.proposal_head.class_embed",
    },
    encoder_layer={
        **{key: ours for key, ours in _DETREX.encoder_layer.items() if key != "attentions.0"},
        "attentions.1": "attention",
    },
    object_layer={"attentions.0.attn": "attention", "norm2": "norm"},
)

_FEED_FORWARD_HUGGINGFACE = {
    "mlp.fc1": "feedforward.linear1",  # since transformers 5
    "mlp.fc2": "feedforward.linear2",
    "fc1": "feedforward.linear1",
    "fc2": "feedforward.linear2",
    "final_layer_norm": "feedforward_norm",
}
_HUGGINGFACE = Layout(
    root="model.",
    modules={
        **{f"model.{key}": ours for key, ours in {**_NECK_THREE_MAPS, **_STAGES}.items()},
        "model.backbone.model": "backbone.body",
        "model.backbone.conv_encoder.model": "backbone.body",
        "model.query_position_embeddings": "query_initializer.embedding",
        "model.level_embed": "level_embed",
    },
    encoder_layer={
        "self_attn": "attention",
        "self_attn_layer_norm": "attention_norm",
        **_FEED_FORWARD_HUGGINGFACE,
    },
    decoder_layer={
        **{f"self_attn.{part}_proj": f"self_attention.in_proj.{part}" for part in "qkv"},
        "self_attn.o_proj": "self_attention.out_proj",
        "self_attn.out_proj": "self_attention.out_proj",
        "self_attn_layer_norm": "self_attention_norm",
        "encoder_attn": "cross_attention",
        "encoder_attn_layer_norm": "cross_attention_norm",
        **_FEED_FORWARD_HUGGINGFACE,
    },
)


def _of_transformers(
    host: Layout, classes: str, decoder_layer: Mapping[str, str], modules: Mapping[str, str]
) -> Layout:
    """DETR and similar models with the names of transformers, before and since version 5."""
    return replace(
        host,
        root="model.",
        modules={
            "model.backbone.conv_encoder.model._backbone": "backbone.body",
            "model.backbone.conv_encoder.model": "backbone.body",
            "model.backbone.model": "backbone.body",
            "model.input_projection": "neck.convs.0.0",
            "model.query_position_embeddings": "query_initializer.embedding",
            "model.encoder.layernorm": "encoder.norm",
            "model.decoder.layernorm": "decoder.norm",
            classes: "heads.decoder_heads.0.class_embed",
            "bbox_predictor": "heads.decoder_heads.0.box_embed",
            **modules,
        },
        encoder_layer={
            **_in_parts("self_attn", "attention"),
            "self_attn_layer_norm": "attention_norm",
            **_FEED_FORWARD_HUGGINGFACE,
            "activation_fn": "feedforward.activation",
        },
        decoder_layer={
            **decoder_layer,
            "self_attn_layer_norm": "self_attention_norm",
            "encoder_attn_layer_norm": "cross_attention_norm",
            **_FEED_FORWARD_HUGGINGFACE,
        },
    )


def _in_parts(theirs: str, ours: str) -> dict[str, str]:
    """An attention with separate query, key and value projections, which we store as one."""
    parts = {f"{theirs}.{part}_proj": f"{ours}.in_proj.{part}" for part in "qkv"}
    return {**parts, **_output(theirs, ours)}


def _output(theirs: str, ours: str) -> dict[str, str]:
    names = ("o_proj", "out_proj", "output_proj")
    return {f"{theirs}.{name}": f"{ours}.out_proj" for name in names}


def _since_5(theirs: str, ours: str) -> dict[str, str]:
    """Separate projections of contents and positions: Conditional DETR since transformers 5."""
    names = {"q": "query", "k": "key"}
    found = {
        f"{theirs}.{short}_{kind}_proj": f"{ours}.{name}_{kind}"
        for short, name in names.items()
        for kind in ("content", "pos")
    }
    return {
        **found,
        f"{theirs}.v_proj": f"{ours}.value",
        f"{theirs}.q_pos_sine_proj": f"{ours}.query_sine",
        **_output(theirs, ours),
    }


def _of_dab(short: str, ours: str) -> dict[str, str]:
    """A block of DAB-DETR that holds an attention and its norm."""
    block = f"{short}_attn"
    found = {
        f"{block}.{block}_{name}_{kind}_proj": f"{ours}.{name}_{kind}"
        for name in ("query", "key")
        for kind in ("content", "pos")
    }
    return {
        **found,
        f"{block}.{block}_value_proj": f"{ours}.value",
        f"{block}.{block}_query_pos_sine_proj": f"{ours}.query_sine",
        **_output(f"{block}.{block}", ours),
        f"{block}.{block}_layer_norm": f"{ours}_norm",
    }


_HUGGINGFACE_DETR = _of_transformers(
    _DETR,
    "class_labels_classifier",
    {**_in_parts("self_attn", "self_attention"), **_in_parts("encoder_attn", "cross_attention")},
    {},
)
_HUGGINGFACE_CONDITIONAL = _of_transformers(
    _CONDITIONAL,
    "class_labels_classifier",
    {
        **_apart("sa", "self_attention"),
        **_apart("ca", "cross_attention"),
        "ca_qpos_sine_proj": "cross_attention.query_sine",
        **_since_5("self_attn", "self_attention"),
        **_since_5("encoder_attn", "cross_attention"),
    },
    {
        "model.decoder.ref_point_head": "query_initializer.point_mlp",
        "model.decoder.query_scale": "decoder.sine_scale",
    },
)
_HUGGINGFACE_DAB = _of_transformers(
    _DAB,
    "class_embed",
    {
        **_of_dab("self", "self_attention"),
        **_of_dab("cross", "cross_attention"),
        "mlp.activation_fn": "feedforward.activation",
        "mlp.final_layer_norm": "feedforward_norm",
    },
    {
        "model.query_refpoint_embeddings": "query_initializer.anchors",
        "model.patterns": "query_initializer.embedding",
        "model.encoder.query_scale": "encoder.pos_scale",
        "model.decoder.query_scale": "decoder.sine_scale",
        "model.decoder.ref_point_head": "decoder.pos_mlp",
        "model.decoder.ref_anchor_head": "decoder.size_scale",
        "model.decoder.bbox_embed": "heads.decoder_heads.0.box_embed",
    },
)

SOURCES: dict[str, Layout] = {
    "deformable-detr": _ORIGINAL,
    "sparse-detr": _ORIGINAL,
    "detr": _DETR,
    "up-detr": _UP_DETR,
    "conditional-detr": _CONDITIONAL,
    "dab-detr": _DAB,
    "dn-detr": _DN,
    "pnp-detr": _PNP_DETR,
    "detrex": _DETREX,
    "focus-detr": _FOCUS_DETREX,
    "huggingface": _HUGGINGFACE,
    "huggingface-detr": _HUGGINGFACE_DETR,
    "huggingface-conditional-detr": _HUGGINGFACE_CONDITIONAL,
    "huggingface-dab-detr": _HUGGINGFACE_DAB,
}
