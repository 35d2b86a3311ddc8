"""Small models of random weights under the names of others, and a table that lists them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from sparsedet.checkpoint import leave_out_pretrained
from sparsedet.config import instantiate, read_config
from sparsedet.conversion import SOURCES, rename
from tests.parity.recipe import listing

_SMALL = (
    "model.embed_dim=32",
    "model.encoder.feedforward_dim=16",
    "model.decoder.feedforward_dim=16",
    "model.query_initializer.num_queries=10",
)
_TINY = (
    *_SMALL,
    "model.backbone._target_=TimmBackbone",
    "model.backbone.name=test_resnet",
    "model.neck.in_channels={res3: 48, res4: 192, res5: 96}",
)
_R18 = (
    *_SMALL,
    "model.backbone.name=resnet18",
    "model.neck.in_channels={res3: 128, res4: 256, res5: 512}",
)
# source: config, its changes, listings of the keys of its files
MODELS = {
    "deformable-detr": (
        "released/deformable_detr_r50_refine",
        _TINY,
        ("kakao_two_stage", "kakao_plain"),
    ),
    "focus-detr": ("released/focus_detr_r50_24_36ep", _R18, ("detrex_focus",)),
    "huggingface": ("released/deformable_detr_r50_plain", _TINY, ("hf_plain",)),
}
_BACKBONES = {  # our keys -> those of the source
    "deformable-detr": [(r"^backbone\.body\.", "backbone.0.body.")],
    "huggingface": [(r"^backbone\.body\.", "model.backbone.model.")],
    "focus-detr": [
        (r"^backbone\.body\.(conv1|bn1)", r"backbone.stem.\1"),
        (r"^backbone\.body\.layer(\d)", lambda match: f"backbone.res{int(match[1]) + 1}"),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
    ],
}


@cache
def ours(source: str, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a small model."""
    config, overrides, _ = MODELS[source]
    cfg = read_config(config, overrides)
    leave_out_pretrained(cfg)
    torch.manual_seed(seed)
    model = instantiate(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.state_dict()


@cache
def published(source: str, seed: int = 0) -> dict[str, Tensor]:
    """The same tensors as their authors store them."""
    state, layout = _split(ours(source, seed)), SOURCES[source]
    found = {_of_backbone(key, source): state[key] for key in state if key.startswith("backbone.")}
    shared = not any("decoder_heads.1." in key for key in state)
    for theirs, *_ in (row for name in MODELS[source][2] for row in listing(name)):
        key = rename(theirs, layout, 6, shared_heads=shared)
        if key in state and not key.startswith("backbone."):
            found[theirs] = state[key].clone()
    return found


def _split(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the parts of joined projections, where a source has these."""
    parts = {
        f"{match[1]}.{part}.{match[2]}": tensor
        for key, joined in state.items()
        if (match := re.fullmatch(r"(.+\.in_proj)_(weight|bias)", key))
        for part, tensor in zip("qkv", joined.chunk(3), strict=True)
    }
    return {**state, **parts}


def _of_backbone(key: str, source: str) -> str:
    for pattern, replacement in _BACKBONES[source]:
        key = re.sub(pattern, replacement, key)
    return key


def pth(source: str = "deformable-detr", seed: int = 0) -> bytes:
    """As a training run of theirs leaves it."""
    file = io.BytesIO()
    torch.save({"model": published(source, seed), "epoch": 49}, file)
    return file.getvalue()


def safetensors(source: str = "deformable-detr", seed: int = 0) -> bytes:
    return save(published(source, seed))


def zipped(method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    """An archive; the names have an underscore for their dot."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"weights/{name.replace('_', '.')}", content)
        archive.writestr("__MACOSX/weights/._a.pth", b"what macOS adds")
        archive.writestr("weights/readme.txt", b"what people add")
    return file.getvalue()


def entry(address: str = "", source: str = "deformable-detr", **facts) -> dict:
    """An entry of a table for a small model."""
    config, overrides, _ = MODELS[source]
    known = {"title": "A small one", "address": address, "source": source, "ap": 12.3}
    classes = 80 if source == "focus-detr" else 91
    known |= {"config": config, "overrides": overrides, "classes": classes}
    return {**known, "page": "https://page.invalid", "licence": "Apache-2.0", **facts}


def write_table(path: Path, real: Path, **entries: dict) -> None:
    """A table of entries, with the class names of the real one."""
    content = json.loads(real.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "groups": [{"files": entries}]}))
