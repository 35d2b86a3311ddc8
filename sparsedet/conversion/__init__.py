"""Convert published checkpoints to state dicts of ``TokenSparseDetector``.

A layout maps the module names of a source to ours. Every key is used or named in an error; tensors
that the source stores under several keys must be equal.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsedet.checkpoint import CLASS_HEAD, LABEL_EMBEDDING
from sparsedet.conversion.layouts import SOURCES, Layout

# Published heads with 91 classes have a row per COCO category id; these ten ids are unused.
_UNUSED_COCO_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
COCO_CATEGORY_IDS = tuple(index for index in range(1, 91) if index not in _UNUSED_COCO_IDS)

# A buffer that a model computes from its sizes; some sources store it.
_DERIVED = ".attn.relative_position_index"
_FIRST_STAGE = "heads.proposal_head.class_embed."


def convert(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename a published checkpoint to the keys of ``TokenSparseDetector``.

    Args:
        state_dict: tensors under the keys of the source.
        source: "deformable-detr" (fundamentalvision), "sparse-detr" (kakaobrain, with its
            Deformable and Efficient DETR baselines), "detr" (facebookresearch), "up-detr",
            "conditional-detr", "dab-detr", "dn-detr", "pnp-detr" (the authors'), "detrex"
            (Deformable DETR, DN-Deformable-DETR and DINO), "focus-detr" (in detrex's layout) or
            "huggingface" (transformers' Deformable DETR), or "huggingface-detr",
            "huggingface-conditional-detr" or "huggingface-dab-detr" (other models of
            transformers).

    Returns:
        The tensors under our keys, shared ones once.

    Raises:
        ValueError: the source is unknown, a key does not belong to the source, or copies of a
            shared tensor differ.
    """
    if source not in SOURCES:
        raise ValueError(f"convert.source must be one of {sorted(SOURCES)}, got {source!r}.")
    layout = SOURCES[source]
    names = _our_names(state_dict, source)
    _refuse_unknown(state_dict, source, [key for key, new in names.items() if new is None])
    renamed: dict[str, Tensor] = {}
    for key, new in names.items():
        tensor = state_dict[key]
        if new is None or new.endswith(_DERIVED):
            continue
        if new in renamed and not torch.equal(renamed[new], tensor):
            raise ValueError(
                f"convert: {key!r} should be a copy of another tensor of {source!r} (our name: "
                f"{new!r}), but {_how_they_differ(renamed[new], tensor)}. The file is damaged or "
                "from another source."
            )
        renamed[new] = tensor
    if layout.softmax:
        renamed = _split_no_object(renamed)
    labels = renamed.get(LABEL_EMBEDDING)
    if layout.content_label and labels is not None:
        # cloned, since safetensors files refuse tensors that share memory
        renamed["query_initializer.embedding.weight"] = labels[-1:].clone()
    return _join_projections(_as_linear(renamed))


def _our_names(state_dict: Mapping[str, Tensor], source: str) -> dict[str, str | None]:
    """Our name of every key; None for keys that do not belong to the source."""
    layout, dropped = SOURCES[source], set(left_out(state_dict, source))
    num_decoder = _count_layers(state_dict, f"{layout.root}decoder.layers.")
    shared_heads = _shares_heads(state_dict, layout, num_decoder)
    return {
        key: rename(key, layout, num_decoder, shared_heads=shared_heads)
        for key in state_dict
        if key not in dropped
    }


def _refuse_unknown(state_dict: Mapping[str, Tensor], source: str, unknown: Sequence[str]) -> None:
    """Raise an error that names unknown keys, and the sources that know every key."""
    if not unknown:
        return
    fitting = [each for each in SOURCES if None not in _our_names(state_dict, each).values()]
    choice = f"No source of {sorted(SOURCES)} has all keys of this file."
    if fitting:
        choice = f"Choose {' or '.join(map(repr, sorted(fitting)))}, which has all of them."
    raise ValueError(
        f"convert: {len(unknown)} keys do not belong to source {source!r}: {', '.join(unknown[:8])}"
        f"{' ...' if len(unknown) > 8 else ''}. {choice}"
    )


def left_out(state_dict: Mapping[str, Tensor], source: str) -> list[str]:
    """Keys of a checkpoint that ``convert`` leaves out, since only pre-training used them."""
    names = dict.fromkeys(SOURCES[source].left_out, "")
    return [key for key in state_dict if _replace(key, names) is not None]


def _how_they_differ(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape:
        return f"one has the shape {tuple(one.shape)}, the other {tuple(other.shape)}"
    if one.dtype != other.dtype:
        return f"one is of {one.dtype}, the other of {other.dtype}, and they round differently"
    return "they have NaN" if other.isnan().any() or one.isnan().any() else "their values differ"


def rename(key: str, layout: Layout, num_decoder: int, *, shared_heads: bool) -> str | None:
    """Our name of a key, None if the layout does not know it."""
    layer = re.fullmatch(rf"{re.escape(layout.root)}(en|de)coder\.layers\.(\d+)\.(.+)", key)
    if layer:
        names = layout.encoder_layer if layer[1] == "en" else layout.decoder_layer
        if part := _replace(layer[3], names):
            return f"{layer[1]}coder.layers.{layer[2]}.{part}"
        part = _replace(layer[3], layout.object_layer) if layer[1] == "en" else None
        return part and f"encoder.object_layers.{layer[2]}.{part}"
    head = re.fullmatch(
        rf"(?:{re.escape(layout.root)}(en|de)coder\.)?(class|bbox)_embed\.(\d+)\.(.+)", key
    )
    if head:
        # One list has the heads of the decoder layers, of the first stage and of the encoder
        # layers; the encoder's own list has only the last of these.
        index = int(head[3]) + (num_decoder + 1 if head[1] == "en" else 0)
        name = "class_embed" if head[2] == "class" else "box_embed"
        if shared_heads and index < num_decoder:
            index = 0
        return f"heads.{_head_place(index, num_decoder)}.{name}.{head[4]}"
    return _replace_swin(key) or _replace(key, layout.modules) or _replace_detectron2_resnet(key)


def _replace(key: str, names: Mapping[str, str]) -> str | None:
    for theirs, ours in names.items():
        pattern = re.escape(theirs).replace(r"\*", r"\d+")
        if match := re.match(rf"{pattern}(?=\.|$)", key):
            return ours + key[match.end() :]
    return None


def _head_place(index: int, num_decoder: int) -> str:
    if index < num_decoder:
        return f"decoder_heads.{index}"
    if index == num_decoder:
        return "proposal_head"
    return f"encoder_heads.{index - num_decoder - 1}"


def _shares_heads(state: Mapping[str, Tensor], layout: Layout, num_decoder: int) -> bool:
    """Whether all decoder layers share one head: a model without box refinement.

    A decoder that refines boxes has box heads among its own keys. Files that store shared tensors
    once may lack those keys; then equal class weights of two layers indicate a shared head.
    """
    if any(key.startswith(f"{layout.root}decoder.bbox_embed.") for key in state):
        return False
    keys = (f"class_embed.{layer}.weight" for layer in range(num_decoder))
    weights = [state[key] for key in keys if key in state]
    return len(weights) == 1 or any(torch.equal(*two) for two in itertools.combinations(weights, 2))


def _replace_detectron2_resnet(key: str) -> str | None:
    """Rename detectron2's ResNet: it numbers the residual stages from 2, torchvision from 1."""
    match = re.fullmatch(r"backbone\.(stem|res\d)\.(?:(\d+)\.)?(conv\d|shortcut)\.(.+)", key)
    if match is None:
        return None
    stage, block, conv, rest = match.groups()
    norm = rest.startswith("norm.")
    rest = rest.removeprefix("norm.")
    if conv == "shortcut":
        conv = f"downsample.{int(norm)}"
    elif norm:
        conv = conv.replace("conv", "bn")
    place = "" if stage == "stem" else f"layer{int(stage[3:]) - 1}.{block}."
    return f"backbone.body.{place}{conv}.{rest}"


def _replace_swin(key: str) -> str | None:
    """Rename the original Swin transformer to timm's, which merges patches at stage starts."""
    match = re.fullmatch(
        r"backbone\.(?:0\.body\.)?"
        r"(patch_embed|norm(\d)|layers\.(\d)\.(blocks|downsample))\.(.+)",
        key,
    )
    if match is None:
        return None
    place, norm, stage, part, rest = match.groups()
    if norm is not None:
        return f"backbone.norms.res{int(norm) + 2}.{rest}"
    if stage is not None:
        place = f"layers_{int(stage) + (part == 'downsample')}.{part}"
    return f"backbone.body.{place}.{rest}"


def _count_layers(keys: Mapping[str, Tensor], prefix: str) -> int:
    indices = (key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix))
    return max((int(index) for index in indices if index.isdecimal()), default=-1) + 1


def _join_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separately stored query, key and value projections."""
    joined: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = re.fullmatch(r"(.+\.in_proj)\.[qkv]\.(weight|bias)", key)
        if match is None:
            joined[key] = tensor
            continue
        names = [f"{match[1]}.{part}.{match[2]}" for part in "qkv"]
        if absent := [name for name in names if name not in state]:
            raise ValueError(
                f"convert: the file has {key!r}, but not {', '.join(absent)}. It is damaged."
            )
        parts = [state[name] for name in names]
        if len({part.shape for part in parts}) > 1 or not tensor.ndim:
            raise ValueError(f"convert: {names} must have the same shape. The file is damaged.")
        joined.setdefault(f"{match[1]}_{match[2]}", torch.cat(parts))
    return joined


def _as_linear(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn 1x1 convolutions of a scorer into linear layers."""
    return {
        key: tensor.flatten(1) if key.startswith("scorer.") and tensor.ndim == 4 else tensor
        for key, tensor in state.items()
    }


def _split_no_object(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split class heads and their last row, which is that of "no object"."""
    split: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if CLASS_HEAD.fullmatch(key):
            split[key], split[key.replace("class_embed", "no_object")] = tensor[:-1], tensor[-1:]
        else:
            split[key] = tensor
    return split


def contiguous_classes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep COCO's 80 classes of the 91 of a converted checkpoint, in the order of their ids.

    This selects rows of the class heads and of the label embedding (and keeps an additional row of
    the latter for "unknown"). A first-stage head that only separates objects from background
    (``TwoStageQueries``) keeps its first 80 rows instead: row 0 is its score, the others are
    unused.

    The outputs for the 80 classes do not change, with one exception: if the first stage ranks
    tokens by their best class (``EfficientQueries``), a token whose best class was an unused id
    ranks lower than before.

    Raises:
        ValueError: if the class heads do not have 91 rows, or the label embedding fewer.
    """
    found = num_classes(state)
    if found != 91:
        raise ValueError(
            f"contiguous_classes: the class heads must have 91 rows (COCO's category ids), got "
            f"{found}. The classes of this checkpoint are already contiguous."
        )
    labels = state.get(LABEL_EMBEDDING)
    if labels is not None and labels.shape[:1] not in ((91,), (92,)):
        raise ValueError(
            f"contiguous_classes: {LABEL_EMBEDDING!r} must have 91 or 92 rows, got the shape "
            f"{tuple(labels.shape)}. The file is damaged."
        )
    agnostic = _tells_objects_only(state)
    picked = {}
    for key, tensor in state.items():
        rows = list(COCO_CATEGORY_IDS)
        if key == LABEL_EMBEDDING:
            rows += range(91, len(tensor))
        elif agnostic and key.startswith(_FIRST_STAGE):
            rows = list(range(len(COCO_CATEGORY_IDS)))
        depends = key == LABEL_EMBEDDING or CLASS_HEAD.fullmatch(key)
        picked[key] = tensor[rows] if depends else tensor
    return picked


def _tells_objects_only(state: Mapping[str, Tensor]) -> bool:
    """Whether the first stage's score is its logit of class 0, as in ``TwoStageQueries``.

    It makes content and position of its queries from the boxes, with twice the channels.
    """
    made = state.get("query_initializer.pos_linear.weight")
    head = state.get(f"{_FIRST_STAGE}weight")
    return made is not None and head is not None and made.shape[:1] == (2 * head.shape[-1],)


def num_classes(state: Mapping[str, Tensor]) -> int:
    """Rows of the class heads of a converted checkpoint.

    Raises:
        ValueError: there are no class heads, their numbers of rows differ, or weights and biases
            do not have 2 and 1 dimensions.
    """
    heads = {key: tensor.shape for key, tensor in state.items() if CLASS_HEAD.fullmatch(key)}
    for key, shape in heads.items():
        if len(shape) != (1 if key.endswith("bias") else 2):
            raise ValueError(
                f"num_classes: {key!r} must have a row per class, got the shape {tuple(shape)}. "
                "The file is damaged."
            )
    rows = {shape[0] for shape in heads.values()}
    if len(rows) != 1:
        raise ValueError(
            f"num_classes: the class heads must have the same number of rows, got {sorted(rows)}. "
            "The file is damaged, or it is not a whole detector."
        )
    return rows.pop()
