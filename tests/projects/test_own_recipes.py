"""The constants with which our own configs gave the figures on the pages.

As in `test_published`, they are written down a second time: with other numbers the figures are
those of another recipe.
"""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from sparsedet.config import get_config, instantiate

# projects/focus_detr/README.md has those of the quickstart, docs/photographs.md those of photos
SMALL: dict[str, Any] = {
    "rate": 1.6e-3,
    "schedule": [0.01, 1.0, 0.01],
    "tokens": (0.2925, [0.39, 0.195]),
    "losses": [2.0, 5.0, 2.0, 1.5],
    "sizes": (64, 2, 3, 150, 60),
    "detections": 100,
}
OWN: dict[str, dict[str, Any]] = {
    "quickstart": SMALL
    | {
        "slow": {"sampling_offsets": 0.1},
        "length": (5, None),
        "batch": 8,
        "size_ranges": [[-1, 16], [8, 32], [16, 64], [32, 999999]],
        "sides": ([152, 160, 168], 160, 320),
        "chances": (0.5, 0.0),  # how large an object is tells its class
        "average": (False, 0.9997),
        "pixels": (None, None),
    },
    "photos": SMALL
    | {
        "slow": {r"^backbone\.": 0.1, "sampling_offsets|reference_points": 0.1},
        "length": (50, 2000),
        "batch": 2,
        "size_ranges": [[-1, 24], [12, 48], [24, 96], [48, 999999]],
        "sides": ([208, 224, 240, 256, 272], 240, 480),
        "chances": (0.5, 0.5),
        "average": (True, 0.995),
        "pixels": ([127.0] * 3, [128.0] * 3),  # as the weights of its backbone were trained
    },
}


def constants(cfg: DictConfig) -> dict[str, Any]:
    """What the figures depend on, named as above."""
    model, data, train = cfg.model, cfg.dataset, cfg.train
    schedule = instantiate(cfg.lr_multiplier)
    augmentation = cfg.dataloader.train.mapper.transforms[0]
    terms = (*model.criterion.matched, *model.criterion.unmatched)
    counts = (model.encoder.num_layers, model.decoder.num_layers)
    chosen = (model.query_initializer.num_queries, model.encoder.num_objects)
    return {
        "rate": cfg.optimizer.lr,
        "slow": {rule.pattern: rule.lr_factor for rule in cfg.optimizer.params.rules},
        "schedule": [round(schedule(where), 2) for where in (0.0, 0.02, 1.0)],
        "length": (train.epochs, train.max_iter),
        "batch": cfg.dataloader.train.total_batch_size,
        "tokens": (model.selector.keep_ratio, model.selector.layer_ratios),
        "losses": [term.weight for term in terms],
        "size_ranges": model.criterion.unmatched[0].size_ranges,
        "sizes": (model.embed_dim, *counts, *chosen),
        "detections": model.max_detections,
        "sides": (data.short_sides, data.test_short_side, data.max_size),
        "chances": (augmentation.flip_probability, augmentation.crop_probability),
        "average": (train.model_ema.enabled, train.model_ema.decay),
        "pixels": (model.get("pixel_mean"), model.get("pixel_std")),
    }


@pytest.mark.parametrize("name", OWN)
def test_a_config_is_the_one_that_was_measured(name: str) -> None:
    cfg = get_config(name)
    OmegaConf.resolve(cfg)
    assert constants(cfg) == OWN[name]


# what projects/torchvision_detectors/README.md compares with photos, which is the host of all
HOSTED: dict[str, dict[str, Any]] = {
    "dino_photos": {
        "rate": 1.6e-3,
        "tokens": None,
        "layers": ("DeformableEncoder", 2, 3),
        "queries": 150,
        "losses": [2.0, 5.0, 2.0],
    },
    "sparse_detr_photos": {
        "rate": 1.6e-3,
        "tokens": 0.3,
        "layers": ("DeformableEncoder", 2, 3),
        "queries": 150,
        "losses": [2.0, 5.0, 2.0, 1.0],
    },
    "detr_photos": {
        "rate": 1.6e-3,
        "tokens": None,
        "layers": ("GlobalEncoder", 2, 3),
        "queries": 100,
        "losses": [1.0, 5.0, 2.0],
    },
    "pnp_detr_photos": {
        "rate": 1.6e-3,
        "tokens": 0.33,
        "layers": ("GlobalEncoder", 2, 3),
        "queries": 100,
        "losses": [1.0, 5.0, 2.0, 1e-4],
    },
}


@pytest.mark.parametrize("name", HOSTED)
def test_a_model_beside_photos_is_the_one_that_was_measured(name: str) -> None:
    cfg = get_config(name)
    model, terms = cfg.model, (*cfg.model.criterion.matched, *cfg.model.criterion.unmatched)
    encoder = getattr(model.encoder._target_, "__name__", model.encoder._target_).split(".")[-1]
    assert {
        "rate": cfg.optimizer.lr,
        "tokens": model.selector.keep_ratio if model.get("selector") else None,
        "layers": (encoder, model.encoder.num_layers, model.decoder.num_layers),
        "queries": model.query_initializer.num_queries,
        "losses": [term.weight for term in terms],
    } == HOSTED[name]
    assert (model.embed_dim, model.encoder.feedforward_dim) == (64, 256)


@pytest.mark.parametrize("name", [*HOSTED, "faster_rcnn_photos"])
def test_a_model_beside_photos_sees_what_photos_sees(name: str) -> None:
    cfg, host = get_config(name), get_config("photos")
    assert cfg.train.output_dir == f"output/{name}"
    cfg.train.output_dir = host.train.output_dir
    for section in ("dataset", "dataloader", "train", "lr_multiplier"):
        assert cfg[section] == host[section], section
    assert [cfg.model.pixel_mean, cfg.model.pixel_std] == [[127.0] * 3, [128.0] * 3]
    backbone = cfg.model.backbone
    for key in ("name", "weights", "freeze_at"):
        assert backbone[key] == host.model.backbone[key]


def test_twelve_epochs_of_coco_in_the_iterations_of_guests() -> None:
    train = get_config("common/train_detectron2.py").train
    epoch = round(118_287 / 16)  # pictures of train2017, in batches of 16
    assert train.max_iter == 12 * epoch
    assert train.eval_period == train.checkpointer.period == epoch
