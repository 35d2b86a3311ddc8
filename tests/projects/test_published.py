"""The constants of every published config, against the papers' and the released codes' numbers.

The numbers are written down here a second time on purpose: a config that changes one of them no
longer trains what it is named after.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import sparsedet.modeling as modeling
from sparsedet.config import LazyConfig, instantiate
from sparsedet.data import DETRAugmentation
from sparsedet.engine import ModelEma, scaled_lr
from sparsedet.layers.positional import SinePositionEmbedding
from tests.house.source import BASELINES, GUESTS, UNPUBLISHED, files

Facts = dict[str, Any]

# --- what the papers say --------------------------------------------------------------------------

# Deformable DETR (ICLR 2021), section 5 and appendix A.4; losses and costs: section A.2 and
# main.py of the released code
DEFORMABLE: Facts = {
    "backbone": "resnet50",
    "freeze_at": 2,
    "maps": {"res3": 512, "res4": 1024, "res5": 2048},
    "strides": [8, 16, 32],
    "levels": 4,
    "embed_dim": 256,
    "encoder": ("DeformableEncoder", 6, 8, 4, 1024, 0.1),
    "decoder": ("DeformableDecoder", 6, 8, 4, 1024, 0.1),
    "refine": False,
    "decoder_options": set(),
    "shared_heads": True,
    "queries": ("LearnedQueries", 300),
    "denoising": None,
    "tokens": (None, None, None, None),
    "encoder_aux_loss": False,
    "costs": (2.0, 5.0, 2.0),
    "losses": {"FocalLoss": 2.0, "BoxL1Loss": 5.0, "GIoULoss": 2.0},
    "max_detections": 100,
    "position": (10000.0, -0.5),
    "eps": 1e-5,
    "unmasked_border": False,
}
REFINE = {"refine": True, "shared_heads": False}
TWO_STAGE = REFINE | {"queries": ("TwoStageQueries", 300)}
# Efficient DETR's queries on Deformable DETR, the host of Sparse DETR (ICLR 2022), section 4
EFFICIENT = DEFORMABLE | REFINE | {"queries": ("EfficientQueries", 300)}
# DN-DETR (CVPR 2022), section 5 and appendix: 5 groups, label flips 0.2, box noise 0.4; the rest as
# detrex's project
DENOISING = (
    DEFORMABLE
    | REFINE
    | {
        "freeze_at": 1,
        "encoder": ("DeformableEncoder", 6, 8, 4, 2048, 0.0),
        "decoder": ("DeformableDecoder", 6, 8, 4, 2048, 0.0),
        "queries": ("AnchorQueries", 300),
        "denoising": ("Denoising", 5, 0.2, 0.4),
        "decoder_options": {"makes_pos", "scale_pos"},
        "losses": {"FocalLoss": 1.0, "BoxL1Loss": 5.0, "GIoULoss": 2.0},
        "max_detections": 300,
    }
)
# DINO (ICLR 2023), section 4.1 and appendix D: 900 queries, 100 denoising queries; half of 0.5 of
# the labels are drawn anew, boxes move by up to their own size; look forward twice: section 3.5
DINO = DENOISING | {
    "decoder_options": {"makes_pos", "look_forward_twice", "output_norm"},
    "queries": ("MixedQueries", 900),
    "denoising": ("ContrastiveDenoising", 100, 0.25, 1.0),
}
FIVE_LEVELS = {
    "levels": 5,
    "maps": {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048},
    "strides": [4, 8, 16, 32],
}

# Sparse DETR, section 3: the decoder's attention teaches the scorer with weight 1; tables 1 and 4
DAM = {"encoder_aux_loss": True}


def sparse(keep_ratio: float) -> Facts:
    """Sparse DETR's scorer and loss at a keep ratio of its table 1."""
    return DAM | {"tokens": ("DAMPredictor", "TopKSelector", keep_ratio, None)} | _loss("dam")


def _loss(kind: str) -> Facts:
    term = {"dam": ("DecoderAttentionLoss", 1.0), "foreground": ("ForegroundLoss", 1.5)}[kind]
    return {"stage_losses": dict([term])}


# Focus-DETR (ICCV 2023): keep ratio 0.3, the cascade of table 7, loss weight 1.5 (section 3.4)
CASCADE = [0.5, 0.4, 0.3, 0.3, 0.2, 0.1]
FOCUS = {"tokens": ("ForegroundScorer", "TopKSelector", 0.3, CASCADE)} | _loss("foreground")


def dual(host: Facts) -> Facts:
    """The host's encoder with dual attention (Focus-DETR, section 3.3)."""
    return {"encoder": ("DualAttentionEncoder", *host["encoder"][1:])}


def swin(kind: str, widths: list[int], drop_path: float | None = None) -> Facts:
    """Swin (ICCV 2021), table 7: channels of its last three stages; drop path as in detrex."""
    maps = dict(zip(("res3", "res4", "res5"), widths, strict=True))
    return {"backbone": kind, "maps": maps, "drop_path": drop_path, "freeze_at": None}


R101 = {"backbone": "resnet101"}
SWIN_T, SWIN_S = "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224"
SWIN_B, SWIN_L = "swin_base_patch4_window12_384", "swin_large_patch4_window12_384"
SWIN_B_224 = "swin_base_patch4_window7_224"
SMALL, BASE, LARGE = [192, 384, 768], [256, 512, 1024], [384, 768, 1536]
TORCHVISION_SWIN = swin("swin_t", SMALL) | {"freeze_at": 2}
WIDE = FIVE_LEVELS | {"maps": {"res2": 192, "res3": 384, "res4": 768, "res5": 1536}}

# DETR (ECCV 2020), section 4 and appendix A.4: a projection without norm, positions of whole cells,
# 100 queries without a reference, cross-entropy with weight 0.1 for no object
SINGLE = {"levels": 1, "maps": {"res5": 2048}, "strides": [32]}
DETR = (
    DEFORMABLE
    | SINGLE
    | {
        "neck_norm": None,
        "level_embed": False,
        "position": (10000.0, 0.0),
        "encoder": ("GlobalEncoder", 6, 8, None, 2048, 0.1),
        "decoder": ("GlobalDecoder", 6, 8, None, 2048, 0.1),
        "queries": ("PositionQueries", 100),
        "costs": (1.0, 5.0, 2.0),
        "losses": {"CrossEntropyLoss": 1.0, "BoxL1Loss": 5.0, "GIoULoss": 2.0},
        "no_object": 0.1,
        "global": {},
    }
)
DC5 = {"dilation": True, "strides": [16]}
# UP-DETR (CVPR 2021): its README trains with --pre_norm
# PnP-DETR (ICCV 2021), section 3 and its code: ratios from 1/3 to 0.8, 30 pooled tokens (DC5: 100)
POLLED = {"input_norm": True, "pool": ("PoolSampler", 30)}
PNP = DETR | {
    "tokens": ("PollScorer", "ElasticSelector", 0.33, None),
    "selector_options": {"train_ratios": [1 / 3, 0.8], "continuous": True, "one_more": False},
    "stage_losses": {"PollRegularizer": 1e-4},
    "global": POLLED,
}
PNP_RELEASED = PNP | {
    "tokens": ("PollScorer", "TopKSelector", 0.33, None),
    "selector_options": {"one_more": False},
    "global": POLLED | {"count_fillers": True},
}


def hundred(model: Facts) -> Facts:
    """The DC5 model."""
    return model | DC5 | {"global": model["global"] | {"pool": ("PoolSampler", 100)}}


PRE_NORM = {"global": {"encoder.norm_first": True, "decoder.norm_first": True}}
# Conditional DETR (ICCV 2021), section 3 and its code: 300 points, focal loss 2
CONDITIONAL = DETR | {
    "queries": ("PositionQueries", 300),
    "costs": (2.0, 5.0, 2.0),
    "losses": {"FocalLoss": 2.0, "BoxL1Loss": 5.0, "GIoULoss": 2.0},
    "no_object": None,
    "global": {"points": True, "decoder.cross": "conditional"},
}
# DAB-DETR (ICLR 2022), sections 4 and 5 and its code: temperature 20, PReLU, eps 1e-3, no dropout
BOXES = {
    "encoder.activation": "prelu",
    "encoder.scale_pos": True,
    "decoder.activation": "prelu",
    "decoder.cross": "conditional",
    "decoder.modulate_size": True,
}
DAB = CONDITIONAL | {
    "encoder": ("GlobalEncoder", 6, 8, None, 2048, 0.0),
    "decoder": ("GlobalDecoder", 6, 8, None, 2048, 0.0),
    "position": (20.0, 0.0),
    "queries": ("AnchorQueries", 300),
    "refine": True,
    "eps": 1e-3,
    "losses": {"FocalLoss": 1.0, "BoxL1Loss": 5.0, "GIoULoss": 2.0},
    "max_detections": 300,
    "decoder_options": {"makes_pos", "look_forward_twice"},
    "global": BOXES | {"patterns": 0},
}
THREE_PATTERNS = {"global": BOXES | {"patterns": 3, "indicator": False}}
KINDS = {
    "": {},
    "_dc5": DC5,
    "_3pat": THREE_PATTERNS,
    "_dc5_3pat": DC5 | THREE_PATTERNS,
}
DN = DAB | {"denoising": ("Denoising", 5, 0.2, 0.4), "global": BOXES | {"patterns": 1}}

# IMFA (CVPR 2023), section 3, on DAB-DETR: every encoder layer before a decoder layer,
# positions of cell centers, a fifth of the queries with 8 points each on C2 to C5
INTERLEAVED = FIVE_LEVELS | {"levels": 4, "encoder": ("GlobalEncoder", 0, None, None, None, None)}


def imfa(host: Facts, regions: int) -> Facts:
    """IMFA on a host; what the host sets of its encoder the decoder sets of its own."""
    temperature, settings = host["position"][0], host["global"]
    own = {
        key.replace("encoder.scale_pos", "decoder.scale_tokens_pos"): value
        for key, value in settings.items()
        if key != "encoder.activation"
    }
    return (
        host
        | INTERLEAVED
        | {
            "decoder": ("InterleavedDecoder", 6, 8, 8, 2048, host["decoder"][-1]),
            "position": (temperature, -0.5),
            "global": own | {"regions": regions, "temperature": temperature},
        }
    )


# Recipes. Deformable DETR's: AdamW 2e-4, a tenth for backbone and what aims the attention, drop at
# 40 of 50 epochs, clipping at 0.1 (section 5; Sparse DETR keeps it, batch 16). DINO's: 1e-4, a
# tenth for the backbone, norms do not decay, drop at 11/20/30 of 12/24/36 epochs (appendix D).
OLD: Facts = {
    "rate": 2e-4,
    "slow": {r"^backbone\.": 0.1, "sampling_offsets": 0.1},
    "decay": (1e-4, None, None),
    "betas": [0.9, 0.999],
    "batch": 16,
    "clip": (True, 0.1, 2.0),
    "epochs": (50, 40),
    "short_sides": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    "test_size": (800, 1333),
    "chances": (0.5, 0.5),
    "ema": False,
    "accumulation": 1,
}
OF_DEFORMABLE = OLD | {
    "batch": 32,
    "slow": {r"^backbone\.": 0.1, "sampling_offsets|reference_points": 0.1},
}
OF_TWO_STAGE = OLD | {"batch": 32}
NEW = OLD | {"rate": 1e-4, "slow": {r"^backbone\.": 0.1}, "decay": (1e-4, 0.0, None)}
# DETR's: 1e-4, a tenth for the backbone, drop at 400 of 500 epochs or at 200 of 300
OF_DETR = OLD | {"rate": 1e-4, "slow": {r"^backbone\.": 0.1}}
ONE_EACH = {"batch": 8}
EP12, EP24, EP36 = ({"epochs": pair} for pair in ((12, 11), (24, 20), (36, 30)))

TWO_STAGE_HOST = DEFORMABLE | TWO_STAGE
LEARNED_HOST = DEFORMABLE | REFINE

# What no paper has is ours alone and says so on its page: its selector or loss is pinned as well.
TRAINED: dict[str, Facts] = {
    "deformable_detr_r50_plain_50ep": DEFORMABLE | OF_DEFORMABLE,
    "deformable_detr_r50_refine_50ep": DEFORMABLE | REFINE | OF_DEFORMABLE,
    "deformable_detr_r50_two_stage_50ep": TWO_STAGE_HOST | OF_TWO_STAGE,
    # Sparse DETR, table 1: the dense rows of Swin-T
    "deformable_detr_swint_plain_50ep": DEFORMABLE | TORCHVISION_SWIN | OF_DEFORMABLE,
    "efficient_detr_swint_50ep": EFFICIENT | TORCHVISION_SWIN | OLD,
    "efficient_detr_r50_50ep": EFFICIENT | OLD,
    # Focus-DETR, table 1: 36 epochs
    "efficient_detr_r50_3_1_36ep": EFFICIENT
    | {"encoder": ("DeformableEncoder", 3, 8, 4, 1024, 0.1)}
    | {"decoder": ("DeformableDecoder", 1, 8, 4, 1024, 0.1)}
    | OLD
    | EP36,
    "dab_deformable_detr_r50_50ep": DENOISING | {"denoising": None} | NEW,
    "detr_r50_50ep": DETR | OF_DETR,
    "detr_r50_500ep": DETR | OF_DETR | {"epochs": (500, 400)},
    "detr_r50_dc5_500ep": DETR | DC5 | OF_DETR | ONE_EACH | {"epochs": (500, 400)},
    "pnp_detr_r50_50ep": PNP | OF_DETR,
    "pnp_detr_r50_500ep": PNP | OF_DETR | {"epochs": (500, 400)},
    "pnp_detr_r50_dc5_500ep": hundred(PNP) | OF_DETR | ONE_EACH | {"epochs": (500, 400)},
    "up_detr_r50_300ep": DETR
    | PRE_NORM
    | OF_DETR
    | {"epochs": (300, 200), "slow": {r"^backbone\.": 0.5}},
    **{
        f"{name}_r50{kind}_50ep": host | change | OF_DETR | (ONE_EACH if "dc5" in kind else {})
        for name, host in (
            ("conditional_detr", CONDITIONAL),
            ("dab_detr", DAB),
            ("dn_detr", DN),
        )
        for kind, change in KINDS.items()
        if "3pat" not in kind or name == "dab_detr"
    },
    "imfa_detr_r50_50ep": imfa(DETR, 20) | OF_DETR,
    "imfa_conditional_detr_r50_50ep": imfa(CONDITIONAL, 60) | OF_DETR,
    **{
        f"imfa_dab_detr_r50_{epochs[0]}ep": imfa(DAB, 60) | OF_DETR | {"epochs": epochs}
        for epochs in ((12, 11), (36, 30), (50, 40))
    },
    "dn_deformable_detr_r50_12ep": DENOISING | NEW | EP12,
    "dn_deformable_detr_r50_50ep": DENOISING | NEW,
    "dino_r50_4scale_12ep": DINO | NEW | EP12,
    "dino_r50_4scale_24ep": DINO | NEW | EP24,
    "dino_r50_4scale_36ep": DINO | NEW | EP36,
    "dino_r101_4scale_12ep": DINO | R101 | NEW | EP12,
    "dino_r50_5scale_12ep": DINO | FIVE_LEVELS | NEW | EP12,
    "dino_r50_5scale_24ep": DINO | FIVE_LEVELS | NEW | EP24,
    "dino_r50_5scale_36ep": DINO | FIVE_LEVELS | NEW | EP36,
    "dino_r50_4scale_level_schedule_12ep": DINO
    | {"tokens": (None, "LevelScheduleSelector", None, None)}
    | NEW
    | EP12,
    **{
        f"dino_swin_{size}_4scale_{epochs[0]}ep": DINO | swin(*kind) | NEW | {"epochs": epochs}
        for size, kind, epochs in (
            ("tiny_224", (f"{SWIN_T}.ms_in1k", SMALL, 0.1), (12, 11)),
            ("tiny_224_22k", (f"{SWIN_T}.ms_in22k_ft_in1k", SMALL, 0.1), (12, 11)),
            ("small_224", (f"{SWIN_S}.ms_in1k", SMALL, 0.2), (12, 11)),
            ("small_224_22k", (f"{SWIN_S}.ms_in22k_ft_in1k", SMALL, 0.2), (12, 11)),
            ("base_384_22k", (f"{SWIN_B}.ms_in22k_ft_in1k", BASE, 0.2), (12, 11)),
            (
                "large_224_22k",
                ("swin_large_patch4_window7_224.ms_in22k_ft_in1k", LARGE, 0.2),
                (12, 11),
            ),
            ("large_384_22k", (f"{SWIN_L}.ms_in22k_ft_in1k", LARGE, 0.2), (12, 11)),
            ("large_384_22k", (f"{SWIN_L}.ms_in22k_ft_in1k", LARGE, 0.2), (36, 30)),
        )
    },
    **{
        f"dino_swin_large_384_22k_5scale_{epochs[0]}ep": DINO
        | swin(f"{SWIN_L}.ms_in22k_ft_in1k", LARGE, 0.2)
        | WIDE
        | NEW
        | {"epochs": epochs}
        for epochs in ((12, 11), (36, 30))
    },
    **{
        f"sparse_detr_{name}_rho{rho}_50ep": EFFICIENT | sparse(rho / 100) | backbone | OLD
        for name, backbone in (("r50", {}), ("swint", TORCHVISION_SWIN))
        for rho in (10, 20, 30, 40, 50)
    },
    "sparse_detr_r50_objectness_rho30_50ep": EFFICIENT
    | DAM
    | {"tokens": ("ObjectnessScorer", "TopKSelector", 0.3, None)}
    | OLD,
    **{
        f"focus_detr_{name}_{epochs[0]}ep": DINO
        | FOCUS
        | dual(DINO)
        | backbone
        | NEW
        | {"epochs": epochs}
        for name, backbone, lengths in (
            ("r50", {}, (12, 24, 36)),
            ("r101", R101, (12, 24, 36)),
            ("swin_tiny_224", swin(f"{SWIN_T}.ms_in1k", SMALL, 0.1), (12, 24, 36)),
            ("swin_tiny_224_22k", swin(f"{SWIN_T}.ms_in22k_ft_in1k", SMALL, 0.1), (36,)),
            ("swin_base_384_22k", swin(f"{SWIN_B}.ms_in22k", BASE, 0.2), (36,)),
            ("swin_base_224_22k", swin(f"{SWIN_B_224}.ms_in22k", BASE, 0.2), (36,)),
            ("swin_large_384_22k", swin(f"{SWIN_L}.ms_in22k", LARGE, 0.2), (36,)),
        )
        for epochs in ((12, 11), (24, 20), (36, 30))
        if epochs[0] in lengths
    },
    **{
        f"focus_detr_r50_{name}_12ep": DINO | FOCUS | dual(DINO) | change | NEW | EP12
        for name, change in {
            "adaptive": {
                "tokens": ("ForegroundScorer", "AdaptiveSelector", 0.3, CASCADE),
                "selector_options": {"max_ratio": 0.9},
            },
            "elastic": {
                "tokens": ("ForegroundScorer", "ElasticSelector", 0.3, CASCADE),
                "selector_options": {"train_ratios": [0.06, 0.12, 0.21, 0.3, 0.51]},
            },
            "salience": {"stage_losses": {"SalienceLoss": 1.5}},
        }.items()
    },
    # Focus-DETR, tables 3 and 11: its parts and Sparse DETR's in four hosts
    **{
        f"focus_detr_{name}_{part}": host | recipe | change
        for name, host, recipe in (
            ("learned", LEARNED_HOST, OF_DEFORMABLE),
            ("two_stage", TWO_STAGE_HOST, OF_TWO_STAGE),
            ("dn", DENOISING, NEW),
            ("dino", DINO, NEW | EP36),
        )
        for part, change in {
            f"sparse_{recipe['epochs'][0]}ep": sparse(0.3),
            f"sparse_dual_{recipe['epochs'][0]}ep": sparse(0.3) | dual(host),
            f"focus_{recipe['epochs'][0]}ep": FOCUS | dual(host),
        }.items()
        if (name, part) != ("dino", "focus_36ep")  # that one is Focus-DETR itself
    },
}

# Models of published weights: where they leave the papers (spelled out on each project's page).
OF_DETREX = {"eps": 1e-3, "freeze_at": 1, "losses": DINO["losses"]}
SHIFTED = {"position": (20.0, 0.0)}  # detrex's ResNets at 24 and 36 epochs
BORDER = {"unmasked_border": True}
FOCUS_DETREX = (
    FOCUS
    | dual(DINO)
    | {
        "size_ranges": [(-1, 64), (64, 128), (128, 256), (256, 999999)],
        "value_source": "input",
        "scorer_options": {"align_corners": True, "modulate_before_norm": True},
        "objects": ("proposal", "logit"),
    }
)
RELEASED: dict[str, Facts] = {
    "deformable_detr_r50_plain": DEFORMABLE,
    "deformable_detr_r50_single_scale": DEFORMABLE | SINGLE,
    "deformable_detr_r50_single_scale_dc5": DEFORMABLE | SINGLE | DC5,
    "pnp_detr_r50": PNP_RELEASED,
    "pnp_detr_r50_dc5": hundred(PNP_RELEASED),
    **{
        f"{name}_r50{kind}": host | change
        for name, host in (
            ("detr", DETR),
            ("up_detr", DETR | PRE_NORM),
            ("conditional_detr", CONDITIONAL),
            ("dab_detr", DAB),
            ("dn_detr", DN),
        )
        for kind, change in KINDS.items()
        if "3pat" not in kind or name == "dab_detr"
    },
    "deformable_detr_r50_refine": DEFORMABLE | REFINE,
    "deformable_detr_r50_two_stage": TWO_STAGE_HOST | BORDER,
    "deformable_detr_r50_plain_detrex": DEFORMABLE | OF_DETREX,
    "deformable_detr_r50_refine_detrex": DEFORMABLE | REFINE | OF_DETREX,
    "deformable_detr_r50_two_stage_detrex": TWO_STAGE_HOST | BORDER | OF_DETREX,
    "efficient_detr_r50": EFFICIENT | BORDER,
    "sparse_detr_r50_rho30": EFFICIENT | sparse(0.3) | BORDER,
    "sparse_detr_swint_rho30": EFFICIENT | sparse(0.3) | BORDER | swin(SWIN_T, SMALL),
    "dn_deformable_detr_r50": DENOISING | OF_DETREX,
    **{
        name: DINO | OF_DETREX | BORDER | change
        for name, change in {
            "dino_r50_4scale": {},
            "dino_r50_4scale_24ep": SHIFTED,
            "dino_r50_5scale": FIVE_LEVELS,
            "dino_r101_4scale": R101,
            **{
                f"dino_swin_{size}_4scale": swin(*kind)
                for size, kind in {
                    "tiny_224": (SWIN_T, SMALL),
                    "small_224": (SWIN_S, SMALL),
                    "base_384": (SWIN_B, BASE),
                    "large_224": ("swin_large_patch4_window7_224", LARGE),
                    "large_384": (SWIN_L, LARGE),
                }.items()
            },
            "dino_swin_large_384_5scale": swin(SWIN_L, LARGE) | WIDE,
            "focus_detr_r50": FOCUS_DETREX,
            "focus_detr_r50_24_36ep": FOCUS_DETREX | SHIFTED,
            "focus_detr_r101": FOCUS_DETREX | R101,
            "focus_detr_r101_24_36ep": FOCUS_DETREX | SHIFTED | R101,
            "focus_detr_swin_tiny_224": FOCUS_DETREX | swin(SWIN_T, SMALL),
            "focus_detr_swin_base_384": FOCUS_DETREX | swin(SWIN_B, BASE),
        }.items()
    },
}


DECODER_OPTIONS = ("makes_pos", "look_forward_twice", "output_norm", "scale_pos")

# --- what the configs say -------------------------------------------------------------------------


def called(node: DictConfig | None) -> str | None:
    """Name of the class that a description builds."""
    if node is None:
        return None
    target = node["_target_"]
    return target.rsplit(".", 1)[-1] if isinstance(target, str) else target.__name__


def weights(terms: list[DictConfig]) -> dict[str, float]:
    return {called(term): term.weight for term in terms}


def part(node: DictConfig) -> tuple:
    names = ("num_layers", "num_heads", "num_points", "feedforward_dim")
    sizes = (node.get(key) for key in names)
    return called(node), *sizes, node.get("dropout")


def of_model(model: DictConfig) -> Facts:
    """The constants of a model, named as above."""
    scorer, selector, denoising = (model.get(key) for key in ("scorer", "selector", "denoising"))
    backbone, position = model.backbone, model.position_embedding
    chosen = {} if selector is None else selector
    facts = {
        "backbone": backbone.name,
        "freeze_at": backbone.get("freeze_at"),
        "drop_path": backbone.get("model_args", {}).get("drop_path_rate"),
        "maps": dict(model.neck.in_channels),
        "strides": list(model.neck.strides),
        "levels": model.num_levels,
        "embed_dim": model.embed_dim,
        "encoder": part(model.encoder),
        "decoder": part(model.decoder),
        "refine": model.decoder.refine,
        "decoder_options": {name for name in DECODER_OPTIONS if model.decoder.get(name)},
        "shared_heads": model.shared_heads,
        "queries": (called(model.query_initializer), model.query_initializer.num_queries),
        "denoising": denoising and (called(denoising), *_noise(denoising)),
        "tokens": (
            called(scorer),
            called(selector),
            chosen.get("keep_ratio"),
            chosen.get("layer_ratios"),
        ),
        "encoder_aux_loss": model.get("encoder_aux_loss", False),
        "costs": tuple(model.criterion.matcher[f"{k}_cost"] for k in ("class", "box", "giou")),
        "losses": weights(model.criterion.matched),
        "stage_losses": weights(model.criterion.unmatched),
        "max_detections": model.get("max_detections", 100),
        "position": (position.get("temperature", 10000.0), position.get("offset", -0.5)),
        "eps": model.decoder.get("eps", 1e-5),
        "unmasked_border": model.get("unmasked_border", False),
        "value_source": model.encoder.get("value_source"),
        "objects": (
            model.encoder.get("category_head", "decoder"),
            model.encoder.get("object_scorer", {}).get("product", "probability"),
        ),
        "scorer_options": _options(scorer, "embed_dim", "num_levels"),
        "selector_options": _options(selector, "keep_ratio", "layer_ratios"),
        "size_ranges": None,
        "dilation": backbone.get("dilation", False),
        "neck_norm": model.neck.get("norm", "group"),
        "level_embed": model.get("level_embed", True),
        "no_object": model.criterion.matched[0].get("no_object_weight"),
    }
    if called(model.decoder) in ("GlobalDecoder", "InterleavedDecoder"):
        facts["global"] = _global(model)
    for term in model.criterion.unmatched:
        if "size_ranges" in term:
            facts["size_ranges"] = [tuple(pair) for pair in term.size_ranges]
    if denoising is not None:
        assert denoising.get("eps", 1e-5) == facts["eps"]
    return facts


def _options(node: DictConfig | None, *others: str) -> Facts:
    """What a description sets beside its class and what is looked at elsewhere."""
    return {key: node[key] for key in node or () if key not in ("_target_", *others)}


def _global(model: DictConfig) -> dict[str, Any]:
    """What differs between the systems of global attention, where it is not the default."""
    found = {f"encoder.{key}": model.encoder.get(key) for key in ("activation", "scale_pos")}
    names = ("activation", "cross", "modulate_size", "scale_tokens_pos")
    found |= {f"decoder.{key}": model.decoder.get(key) for key in names}
    if called(model.decoder) == "InterleavedDecoder":
        found["regions"] = model.decoder.num_regions
        found["temperature"] = model.decoder.get("temperature", 10000.0)
    found["points"] = model.query_initializer.get("points")
    found["patterns"] = model.query_initializer.get("num_patterns")
    found["indicator"] = model.query_initializer.get("indicator")
    found["input_norm"], pool = model.encoder.get("input_norm"), model.encoder.get("pool")
    found["pool"] = pool and (called(pool), pool.num_tokens)
    for term in model.criterion.unmatched:
        found["count_fillers"] = term.get("count_fillers")
    for part_ in ("encoder", "decoder"):
        found[f"{part_}.norm_first"] = model[part_].get("norm_first")
    return {key: value for key, value in found.items() if value is not None}


def _noise(denoising: DictConfig) -> tuple:
    count = "num_queries" if "num_queries" in denoising else "num_groups"
    return denoising[count], denoising.label_noise, denoising.box_noise


def of_recipe(cfg: DictConfig) -> Facts:
    """The constants of a recipe, named as above."""
    optimizer, clip, data = cfg.optimizer, cfg.train.clip_grad, cfg.dataset
    groups = optimizer.params
    rate = optimizer.lr if isinstance(optimizer.lr, float) else instantiate(optimizer.lr)
    schedule, epochs = instantiate(cfg.lr_multiplier), cfg.train.epochs
    rates = [schedule(epoch / epochs) for epoch in range(epochs)]
    drop = rates.index(min(rates))
    assert rates == pytest.approx([1.0] * drop + [0.1] * (epochs - drop))
    train, test = cfg.dataloader.train.mapper.transforms, cfg.dataloader.test.mapper.transforms
    assert [called(each) for each in (*train, *test)] == ["DETRAugmentation", "ResizeShortSide"]
    assert (train[0].short_sides, train[0].max_size) == (data.short_sides, data.max_size)
    return {
        "rate": rate,
        "slow": {rule.pattern: rule.lr_factor for rule in groups.rules},
        "decay": (optimizer.weight_decay, groups.weight_decay_norm, groups.weight_decay_bias),
        "betas": list(optimizer.betas),
        "batch": cfg.dataloader.train.total_batch_size,
        "clip": (clip.enabled, clip.params.max_norm, clip.params.norm_type),
        "epochs": (epochs, drop),
        "short_sides": list(data.short_sides),
        "test_size": (test[0].short_sides, test[0].max_size),
        "chances": (train[0].flip_probability, train[0].crop_probability),
        "ema": cfg.train.model_ema.enabled,
        "accumulation": cfg.train.accumulation_steps,
    }


def found(folder: str) -> dict[str, Any]:
    """The configs in folders of this name, by their stem; test_own_recipes has those of photos."""
    here = [path for path in files("projects") if path.parent.name == folder]
    others = (BASELINES, GUESTS, UNPUBLISHED)
    ours = [path for path in here if not any(map(path.is_relative_to, others))]
    return {path.stem: path for path in ours if not path.stem.endswith("_photos")}


ABSENT = dict.fromkeys(("drop_path", "value_source", "size_ranges"))
ABSENT |= {key: {} for key in ("stage_losses", "scorer_options", "selector_options")}
ABSENT |= {"objects": ("decoder", "probability")}
ABSENT |= {"dilation": False, "neck_norm": "group", "level_embed": True, "no_object": None}


def check(actual: Facts, expected: Facts) -> None:
    expected = ABSENT | expected
    differ = {
        key: (actual.get(key), expected.get(key))
        for key in actual.keys() | expected.keys()
        if actual.get(key) != expected.get(key)
    }
    assert not differ, f"(the config's, the published) {differ}"


@pytest.mark.parametrize("stem", found("configs"))
def test_a_config_trains_what_was_published(stem):
    cfg = LazyConfig.load(found("configs")[stem])
    OmegaConf.resolve(cfg)
    check(of_model(cfg.model) | of_recipe(cfg), TRAINED[stem])
    assert cfg.train.output_dir == f"output/{stem}"


@pytest.mark.parametrize("stem", found("released"))
def test_a_config_of_published_weights_is_their_model(stem):
    model = LazyConfig.load(found("released")[stem]).model
    check(of_model(model), RELEASED[stem])


def test_no_config_is_gone():
    assert found("configs").keys() == TRAINED.keys()
    assert found("released").keys() == RELEASED.keys()


# --- what the configs leave to the classes --------------------------------------------------------

FOCAL = {"alpha": 0.25, "gamma": 2.0}  # RetinaNet (ICCV 2017), section 4.1
DEFAULTS: dict[type, Mapping[str, Any]] = {
    modeling.FocalLoss: FOCAL,
    # Focus-DETR, table 8, first row
    modeling.ForegroundLoss: FOCAL
    | {"size_ranges": ((-1, 64), (64, 256), (128, 512), (256, 999999)), "distance": "sides"},
    modeling.SalienceLoss: FOCAL,
    # detrex's code of Focus-DETR: 300 object tokens; algorithm 1: the value is what was updated
    modeling.DualAttentionEncoder: {"num_objects": 300, "value_source": "updated"},
    modeling.MultiCategoryScorer: {"product": "probability"},  # equation 3
    modeling.ForegroundScorer: {"direction": "top_down", "align_corners": False},  # table 5
    SinePositionEmbedding: {"temperature": 10000.0, "offset": -0.5},
    modeling.DeformableDecoder: {"eps": 1e-5, "look_forward_twice": False, "output_norm": False},
    modeling.TokenSparseDetector: {
        "max_detections": 100,
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
    },
    # Lite DETR (CVPR 2023), section 3.3: the finest level in every third layer
    modeling.LevelScheduleSelector: {"levels": (((1, 2, 3), (1, 2, 3), (0, 1, 2, 3)) * 2)},
    ModelEma: {"decay": 0.9997},
    DETRAugmentation: {"flip_probability": 0.5, "crop_probability": 0.5},
}


@pytest.mark.parametrize("component", DEFAULTS, ids=lambda component: component.__name__)
def test_a_default_is_the_published_constant(component):
    signature = inspect.signature(component).parameters
    for name, value in DEFAULTS[component].items():
        assert signature[name].default == value, name


def test_the_rate_follows_the_root_of_the_batch():
    """As main.py of Sparse DETR's released code."""
    assert scaled_lr(2e-4, 64) == pytest.approx(4e-4)
    assert inspect.signature(scaled_lr).parameters["base_batch_size"].default == 16
