"""Frozen results of released implementations, and which configuration of ours answers to each."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.config import LazyConfig, instantiate
from sparsedet.conversion import convert
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import DetectorOutput, Targets

ROOT = Path(__file__).resolve().parents[2]
PARITY = ROOT.parent / "shared" / "parity"

DEFORMABLE = "projects/deformable_detr/configs/released/deformable_detr_r50_{}.py"
EFFICIENT = "projects/efficient_detr/configs/released/efficient_detr_r50.py"
SPARSE = "projects/sparse_detr/configs/released/sparse_detr_r50_rho30.py"
DINO = "projects/dino/configs/released/dino_r50_4scale.py"
DN_DEFORMABLE = "projects/dn_deformable_detr/configs/released/dn_deformable_detr_r50.py"
FOCUS = "projects/focus_detr/configs/released/focus_detr_r50.py"

# name of a fixture -> configuration, listing of the checkpoint's keys, source of the checkpoint
MODELS = {
    r"kakao_plain": (DEFORMABLE.format("plain"), "kakao_plain", "deformable-detr"),
    r"kakao_two_stage": (DEFORMABLE.format("two_stage"), "kakao_two_stage", "deformable-detr"),
    r"kakao_efficient": (EFFICIENT, "kakao_efficient", "sparse-detr"),
    r"kakao_rho(?P<keep_ratio>[\d.]+)": (SPARSE, "kakao_sparse", "sparse-detr"),
    r"detrex_deformable_two_stage": (
        DEFORMABLE.format("two_stage_detrex"),
        "detrex_deformable_two_stage",
        "detrex",
    ),
    r"hf_two_stage": (DEFORMABLE.format("two_stage"), "hf_two_stage", "huggingface"),
}


@cache
def fill() -> ModuleType:
    """The rule by which weights, images and targets of the fixtures are made."""
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Released:
    """One fixture."""

    name: str

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((PARITY / "fixtures" / f"{self.name}.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(PARITY / "fixtures" / f"{self.name}.safetensors")

    @property
    def cases(self) -> list[str]:
        return [key.removesuffix(".sizes") for key in self.facts if key.endswith(".sizes")]

    @cached_property
    def choice(self) -> tuple[re.Match, tuple[str, str, str]] | None:
        for pattern, choice in MODELS.items():
            if match := re.fullmatch(pattern, self.name):
                return match, choice
        return None

    @property
    def why_not(self) -> str | None:
        """Why there is nothing to compare, None where there is."""
        if self.choice is None:
            return f"there is no configuration for the weights of {self.name}"
        if not (ROOT / self.choice[1][0]).is_file():
            return f"{self.choice[1][0]} is not there"
        return None

    @cached_property
    def source(self) -> str:
        return self.choice[1][2]

    @cached_property
    def checkpoint(self) -> dict[str, Tensor]:
        return checkpoint(self.choice[1][1])

    def build(self) -> TokenSparseDetector:
        """Our model with the released weights and without dropout."""
        match, (config, _, _) = self.choice
        cfg = LazyConfig.load(str(ROOT / config)).model
        if "keep_ratio" in match.groupdict():
            cfg.selector.keep_ratio = float(match["keep_ratio"])
        model = instantiate(cfg)
        model.load_state_dict(convert(self.checkpoint, self.source))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        return model

    def inputs(self, case: str) -> tuple[Tensor, tuple[tuple[int, int], ...], Targets]:
        """Normalized images, their sizes and the targets of a case."""
        rule, recipe = fill(), self.facts["recipe"]
        sizes = tuple((int(h), int(w)) for h, w in self.facts[f"{case}.sizes"])
        seeds = self.facts.get(f"{case}.image_seeds", recipe["image_seeds"])
        images = [
            torch.from_numpy((rule.image(seed, *size) - rule.MEAN) / rule.STD)
            for seed, size in zip(seeds, sizes, strict=False)
        ]
        objects = [
            rule.targets(seed, count, self.facts["num_classes"])
            for seed, count in zip(recipe["target_seeds"], recipe["n_targets"], strict=True)
        ][: len(sizes)]
        return (
            torch.stack(images),
            sizes,
            Targets(
                tuple(torch.from_numpy(boxes) for boxes, _ in objects),
                tuple(torch.from_numpy(labels) for _, labels in objects),
            ),
        )

    def run(self, model: TokenSparseDetector, case: str) -> tuple[DetectorOutput, Targets]:
        """One case; with gradients where it is a case of training."""
        images, sizes, targets = self.inputs(case)
        training = "train" in case
        model.train(training)
        model.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(training):
            record = model.criterion.requires if training else ()
            return model.detect(images, sizes, targets, record=record), targets

    def losses(self, case: str) -> dict[str, float]:
        """Weighted losses under the released names; diagnostics and dead weights left out."""
        weights = self.facts["weight_dict"]
        if f"{case}.losses_weighted" in self.facts:
            found = self.facts[f"{case}.losses_weighted"]
            return {name: value for name, value in found.items() if name in weights}
        found = self.facts[f"{case}.losses_unweighted"]
        return {name: found[name] * weights[name] for name in weights if name in found}

    def loss_name(self, key: str, num_decoder: int) -> str:
        """The released name of one of our losses."""
        stage, term = key.split("/")
        term = {
            "focal": "class" if self.source == "detrex" else "ce",
            "box_l1": "bbox",
            "giou": "giou",
            "decoder_attention": "mask_prediction",
        }[term]
        if stage == "proposals":
            return f"loss_{term}_enc"
        if stage == "scorer":
            return f"loss_{term}"
        name, layer = stage.split(".")
        if name == "encoder":
            return f"loss_{term}_enc_{layer}"
        return f"loss_{term}" if int(layer) == num_decoder - 1 else f"loss_{term}_{layer}"

    def parameter_names(self) -> dict[str, str]:
        """The released name of a parameter -> ours, learnt by converting tagged tensors.

        Query, key and value projections that are stored apart have no name of their own here.
        """
        canonical = canonical_keys(self.choice[1][1])
        order = {key: float(i) for i, key in enumerate(sorted(canonical))}
        tags = {key: order[smallest] for key, smallest in canonical.items()}
        converted = convert({key: torch.full((1,), tag) for key, tag in tags.items()}, self.source)
        ours = {float(tag): key for key, tag in converted.items() if tag.numel() == 1}
        return {key: ours[tag] for key, tag in tags.items() if tag in ours}


def listing(name: str) -> list[list[str]]:
    """Rows (key, shape, dtype, canonical key, kind) of a checkpoint's listing."""
    lines = (PARITY / "keys" / f"{name}.txt").read_text().splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def canonical_keys(name: str) -> dict[str, str]:
    """Key -> the key whose tensor it shares (itself where it shares none)."""
    return {row[0]: row[3] for row in listing(name)}


def checkpoint(name: str) -> dict[str, Tensor]:
    """The whole checkpoint of a listing: floating numbers by the rule, counters zero."""
    state = {}
    for key, shape, dtype, canonical, _ in listing(name):
        size = tuple(int(x) for x in shape.strip("()").split(",") if x.strip())
        state[key] = (
            torch.from_numpy(fill().value_for(canonical, size))
            if dtype.startswith("float")
            else torch.zeros(size, dtype=getattr(torch, dtype))
        )
    return state


def fixtures() -> list[Released]:
    """All fixtures that are here."""
    return [Released(path.stem) for path in sorted(PARITY.glob("fixtures/*.json"))]
