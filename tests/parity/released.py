"""Frozen results of released implementations, and which configuration of ours answers to each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsedet.config import LazyConfig, instantiate
from sparsedet.conversion import convert
from sparsedet.modeling import TokenSparseDetector, encoder, queries
from sparsedet.modeling.stages import (
    DetectorOutput,
    NoisedTargets,
    Queries,
    Targets,
    TokenSelection,
)
from sparsedet.structures import pad_images
from tests.parity import recipe
from tests.parity.recipe import FILES

ROOT = Path(__file__).resolve().parents[2]
WHOLE = ROOT.parent / "shared" / "parity" / "fixtures"

SMALL_THEIRS = dict(  # of a configuration of transformers
    use_timm_backbone=True,
    use_pretrained_backbone=False,
    backbone="resnet18",
    encoder_layers=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    num_queries=20,
)
DEFORMABLE = "projects/deformable_detr/configs/released/deformable_detr_r50_{}.py"
EFFICIENT = "projects/efficient_detr/configs/released/efficient_detr_r50.py"
SPARSE = "projects/sparse_detr/configs/released/sparse_detr_r50_rho30.py"
DINO = "projects/dino/configs/released/dino_r50_4scale.py"
DN_DEFORMABLE = "projects/dn_deformable_detr/configs/released/dn_deformable_detr_r50.py"
FOCUS = "projects/focus_detr/configs/released/focus_detr_r50.py"
CONDITIONAL = "projects/conditional_detr/configs/released/conditional_detr_r50{}.py"
DAB = "projects/dab_detr/configs/released/dab_detr_r50{}.py"
DN = "projects/dn_detr/configs/released/dn_detr_r50{}.py"
UP_DETR = "projects/up_detr/configs/released/up_detr_r50{}.py"
DETR = "projects/detr/configs/released/detr_r50{}.py"
PNP_DETR = "projects/pnp_detr/configs/released/pnp_detr_r50{}.py"

# Name of a fixture -> configuration, listing of the checkpoint's keys, source of the checkpoint.
MODELS = {
    r"kakao_plain": (DEFORMABLE.format("plain"), "kakao_plain", "deformable-detr"),
    r"kakao_two_stage": (DEFORMABLE.format("two_stage"), "kakao_two_stage", "deformable-detr"),
    r"kakao_efficient": (EFFICIENT, "kakao_efficient", "sparse-detr"),
    r"kakao_rho(?P<keep_ratio>[\d.]+)": (SPARSE, "kakao_sparse", "sparse-detr"),
    r"detrex_deformable": (DEFORMABLE.format("plain_detrex"), "detrex_deformable", "detrex"),
    r"detrex_deformable_two_stage": (
        DEFORMABLE.format("two_stage_detrex"),
        "detrex_deformable_two_stage",
        "detrex",
    ),
    r"detrex_dn_deformable": (DN_DEFORMABLE, "detrex_dn_deformable", "detrex"),
    r"detrex_dino(_r(?P<depth>\d+))?": (DINO, "detrex_dino", "detrex"),
    r"detrex_dino(_r(?P<depth>\d+))?_5scale": (
        DINO.replace("4scale", "5scale"),
        "detrex_dino",
        "detrex",
    ),
    r"detrex_focus(_r(?P<depth>\d+))?(_rho(?P<keep_ratio>[\d.]+))?": (
        FOCUS,
        "detrex_focus",
        "focus-detr",
    ),
    r"detr_r50": (DETR.format(""), "detr_r50", "detr"),
    r"detr_r50_dc5": (DETR.format("_dc5"), "detr_r50_dc5", "detr"),
    r"up_r50": (UP_DETR.format(""), "up_r50", "up-detr"),
    r"conditional_r50": (CONDITIONAL.format(""), "conditional_r50", "conditional-detr"),
    r"dab_r50_dc5_3pat": (DAB.format("_dc5_3pat"), "dab_r50_dc5_3pat", "dab-detr"),
    r"dn_r50_dc5": (DN.format("_dc5"), "dn_r50_dc5", "dn-detr"),
    r"pnp_r50_ratio(?P<keep_ratio>[\d.]+)": (PNP_DETR.format(""), "pnp_r50", "pnp-detr"),
    r"pnp_r50_dc5_ratio(?P<keep_ratio>[\d.]+)": (
        PNP_DETR.format("_dc5"),
        "pnp_r50_dc5",
        "pnp-detr",
    ),
    r"hf_plain": (DEFORMABLE.format("plain"), "hf_plain", "huggingface"),
    r"hf_two_stage": (DEFORMABLE.format("two_stage"), "hf_two_stage", "huggingface"),
}


def without_dropout(model: nn.Module) -> nn.Module:
    """Let nothing in a model drop out."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


@dataclass
class Seen:
    """What went through the model in one pass.

    Attributes:
        maps: what the neck gave.
        proposals: scores of all tokens and our choice of them, best first; None for queries that
            are learned.
        queries: what the decoder started from.
        objects: per encoder layer, which of its kept tokens attended to each other.
        encoded: what entered the first encoder layer of global attention, and its positions.
    """

    maps: tuple[Tensor, ...] = ()
    proposals: tuple[Tensor, Tensor] | None = None
    queries: Queries | None = None
    objects: list[TokenSelection] = field(default_factory=list)
    encoded: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Released:
    """One fixture: the cases that a released model computed."""

    name: str

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((FILES / f"cases/{self.name}.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Indices and inputs of the cases, and samples of what came out."""
        with np.load(FILES / f"cases/{self.name}.npz") as stored:
            return {key: torch.from_numpy(stored[key]) for key in stored.files}

    @cached_property
    def whole(self) -> dict[str, Tensor]:
        """The tensors that the samples were taken of, where they are."""
        path = WHOLE / f"{self.name}.safetensors"
        return load_file(path) if path.is_file() else {}

    @property
    def cases(self) -> list[str]:
        return [key.removesuffix(".sizes") for key in self.facts if key.endswith(".sizes")]

    @cached_property
    def choice(self) -> tuple[re.Match, tuple[str, str, str]] | None:
        for pattern, choice in MODELS.items():
            if match := re.fullmatch(pattern, self.name):
                return match, choice
        return None

    @cached_property
    def source(self) -> str:
        return self.choice[1][2]

    @cached_property
    def listing(self) -> str:
        return self.choice[1][1]

    def build(self) -> TokenSparseDetector:
        """Our model with the released weights and without dropout."""
        match, (config, _, _) = self.choice
        cfg = LazyConfig.load(str(ROOT / config)).model
        changes = match.groupdict()
        if changes.get("keep_ratio"):
            cfg.selector.keep_ratio = float(changes["keep_ratio"])
        if changes.get("depth"):
            cfg.backbone.name = f"resnet{changes['depth']}"
        model = instantiate(cfg)
        assert model.num_classes == self.facts["num_classes"]
        state = recipe.checkpoint(self.listing)
        for ending, factor in self.facts.get("scale", {}).items():
            for key in state:
                if key.endswith(ending):
                    state[key] *= factor
        model.load_state_dict(convert(state, self.source))
        return without_dropout(model)

    def inputs(self, case: str) -> tuple[Tensor, tuple[tuple[int, int], ...], Targets]:
        """Normalized images padded with zeros, their sizes and the targets of a case."""
        facts = self.facts["recipe"]
        sizes = tuple((int(h), int(w)) for h, w in self.facts[f"{case}.sizes"])
        seeds = self.facts.get(f"{case}.image_seeds") or facts["image_seeds"]
        images = [
            torch.from_numpy((recipe.picture(seed, *size) - recipe.MEAN) / recipe.STD)
            for seed, size in zip(seeds, sizes, strict=False)
        ]
        objects = [
            recipe.objects(seed, count, self.facts["num_classes"])
            for seed, count in zip(facts["target_seeds"], facts["n_targets"], strict=True)
        ][: len(sizes)]
        return (
            pad_images(images)[0],
            sizes,
            Targets(
                tuple(torch.from_numpy(boxes) for boxes, _ in objects),
                tuple(torch.from_numpy(labels) for _, labels in objects),
            ),
        )

    def run(self, model: TokenSparseDetector, case: str) -> tuple[DetectorOutput, Targets, Seen]:
        """One case; with gradients where it is a case of training."""
        images, sizes, targets = self.inputs(case)
        training = "train" in case
        model.train(training)
        model.zero_grad(set_to_none=True)
        with (
            torch.set_grad_enabled(training),
            self._noise(model, case, targets),
            self._watched(model, case) as seen,
        ):
            record = model.criterion.requires if training else ()
            return model.detect(images, sizes, targets, record=record), targets, seen

    @contextmanager
    def _noise(self, model: TokenSparseDetector, case: str, targets: Targets) -> Iterator[None]:
        """Denoising as in the case: none, without noise, or with the stored one."""
        denoising = model.denoising
        stored = f"{case}.dn_box_logits" in self.tensors
        with ExitStack() as stack:
            if case.endswith("_nodn"):
                stack.enter_context(mock.patch.object(model, "denoising", None))
            elif denoising is not None and stored:
                noised = self._noised(case, targets)
                stack.enter_context(mock.patch.object(denoising, "sample", lambda _: noised))
            elif denoising is not None:
                assert case.endswith("_nonoise") or "train" not in case
                for name in ("label_noise", "box_noise"):
                    stack.enter_context(mock.patch.object(denoising, name, 0.0))
            yield

    def _noised(self, case: str, targets: Targets) -> NoisedTargets:
        """The stored noise. Labels are listed copy by copy, in each all objects of all images."""
        boxes = self.tensors[f"{case}.dn_box_logits"].sigmoid()
        counts, slots = targets.counts, max(targets.counts)
        copies = boxes.shape[1] // slots
        listed = self.tensors[f"{case}.noised_labels"].long().view(copies, sum(counts))
        labels = torch.zeros(boxes.shape[:2], dtype=torch.long)
        valid = torch.zeros(boxes.shape[:2], dtype=torch.bool)
        for image, of_image in enumerate(listed.split(counts, dim=1)):
            labels[image].view(copies, slots)[:, : counts[image]] = of_image
            valid[image].view(copies, slots)[:, : counts[image]] = True
        meta = self.facts[f"{case}.dn_meta"]
        groups = meta["groups"] if "groups" in meta else meta["dn_num"]
        return NoisedTargets(labels, boxes, valid, groups)

    @contextmanager
    def _watched(self, model: TokenSparseDetector, case: str) -> Iterator[Seen]:
        """Keep what goes through; proposals are handed on in the released order.

        The order differs where scores are all but equal, and queries may be bound to ranks.
        """
        seen, order = Seen(), self._proposal_order(case)
        best, best_rows = queries._best, encoder.best_rows

        def choose(scores: Tensor, valid: Tensor, count: int) -> Tensor:
            own = best(scores, valid, count)
            seen.proposals = scores.masked_fill(~valid, float("-inf")), own
            return own if order is None else order

        def keep_objects(*arguments: Any) -> TokenSelection:
            seen.objects.append(best_rows(*arguments))
            return seen.objects[-1]

        def keep_maps(module: nn.Module, inputs: Any, maps: Any) -> None:
            seen.maps = tuple(x.detach() for x in maps)

        def keep_queries(module: nn.Module, inputs: Any) -> None:
            seen.queries = inputs[0]

        def keep_encoded(module: nn.Module, inputs: Any) -> None:
            seen.encoded = inputs[0].detach(), inputs[1].detach()

        with (
            mock.patch.object(queries, "_best", choose),
            mock.patch.object(encoder, "best_rows", keep_objects),
            model.neck.register_forward_hook(keep_maps),
            model.decoder.register_forward_pre_hook(keep_queries),
            model.encoder.layers[0].register_forward_pre_hook(keep_encoded),
        ):
            yield seen

    def _proposal_order(self, case: str) -> Tensor | None:
        """The order of the case, or of another one of the same mode and images; None: unknown."""
        inputs = (self.facts[f"{case}.sizes"], self.facts.get(f"{case}.image_seeds"))
        for other in (case, *self.cases):
            key = f"{other}.proposal_inds_in_score_order"
            same = inputs == (self.facts[f"{other}.sizes"], self.facts.get(f"{other}.image_seeds"))
            if key in self.tensors and same and ("train" in case) == ("train" in other):
                return self.tensors[key].long()
        return None

    def losses(self, case: str) -> dict[str, float]:
        """Weighted losses under the released names; diagnostics and dead weights left out.

        Without denoising the released code has losses of zero for it.
        """
        weights = self.facts["weight_dict"]
        if f"{case}.losses_weighted" in self.facts:
            found = self.facts[f"{case}.losses_weighted"]
            found = {name: value for name, value in found.items() if name in weights}
        else:
            found = self.facts[f"{case}.losses_unweighted"]
            found = {name: found[name] * weights[name] for name in weights if name in found}
        return {name: value for name, value in found.items() if value or "_dn" not in name}

    def loss_name(self, key: str, num_decoder: int) -> str:
        """The released name of one of our losses."""
        if key == "poll":
            return "sample_reg_loss"
        stage, term = key.split("/")
        term = {
            "focal": "loss_class" if "detrex" in self.name else "loss_ce",
            "cross_entropy": "loss_ce",
            "box_l1": "loss_bbox",
            "giou": "loss_giou",
            "decoder_attention": "loss_mask_prediction",
            "foreground": "select_loss",
        }[term]
        if stage == "proposals":
            return f"{term}_enc"
        if stage == "scorer":
            return term
        name, layer = stage.split(".")
        if name == "encoder":
            return f"{term}_enc_{layer}"
        term = f"{term}_dn" if name == "denoising" else term
        return term if int(layer) == num_decoder - 1 else f"{term}_{layer}"

    def parameter_names(self) -> dict[str, tuple[str, ...]]:
        """The released name of a parameter -> ours, learnt by converting tagged tensors.

        Rows that are apart here make several names of one. Query, key and value projections that
        are stored apart there have no name of their own here.
        """
        canonical = recipe.canonical_keys(self.listing)
        order = {key: float(i) for i, key in enumerate(sorted(canonical))}
        tags = {key: order[smallest] for key, smallest in canonical.items()}
        converted = convert({key: torch.full((2,), tag) for key, tag in tags.items()}, self.source)
        ours: dict[float, tuple[str, ...]] = {}
        for key, tag in converted.items():
            if len(found := set(tag.tolist())) == 1:
                ours[found.pop()] = (*ours.get(float(tag[0]), ()), key)
        return {key: ours[tag] for key, tag in tags.items() if tag in ours}


def fixtures() -> list[Released]:
    """All fixtures."""
    return [Released(path.stem) for path in sorted(FILES.glob("cases/*.json"))]
