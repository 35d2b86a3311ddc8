"""The models of all configs, as small as they can be, and each kind of model once."""

from __future__ import annotations

import json
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparsedet.analysis import calibrate_selector
from sparsedet.config import LazyConfig, find_config, instantiate
from sparsedet.config.packaged import config_index
from sparsedet.modeling import InterleavedDecoder, LevelScheduleSelector, TorchvisionDetector
from sparsedet.modeling.parts import CalibratedSelector
from tests.modeling import small
from tests.projects.test_configs import shrink


def configured() -> dict[str, Callable[[], nn.Module]]:
    """Named by the method and the first config that has such a model."""
    found, seen = {}, set()
    for name, entry in config_index().items():
        cfg = LazyConfig.load(find_config(name))
        _shrink(cfg)
        kind = json.dumps(_kind(cfg.model), sort_keys=True, default=str)
        if kind not in seen:
            found[f"{entry['method']}: {name}"] = lambda cfg=cfg: _built(cfg)
        seen.add(kind)
    return found


def _shrink(cfg: DictConfig) -> None:
    """Few layers of small sizes, and the same share of tokens for all."""
    if "dataset" not in cfg:
        cfg.dataset = {}
    model = cfg.model
    if model._target_ is TorchvisionDetector:
        model.update(backbone=None, in_channels=None, weights=None, num_classes=small.NUM_CLASSES)
        return
    shrink(cfg)
    model.num_classes = small.NUM_CLASSES
    if model.decoder._target_ is InterleavedDecoder:
        model.decoder.num_layers = 3  # the third one adds something
    selector = model.get("selector") or {}
    if "keep_ratio" in selector:
        selector.keep_ratio = 0.3
    if selector.get("_target_") is LevelScheduleSelector:
        selector.levels = [[1, 2, 3], [0, 1, 2, 3]]
    if model.encoder.num_layers > 2:
        model.encoder.num_layers = 2
        if selector.get("layer_ratios"):
            selector.layer_ratios = [selector.layer_ratios[0], selector.layer_ratios[-1]]


def _kind(model: DictConfig) -> dict:
    """What the program of a model depends on."""
    kind = OmegaConf.to_container(model)
    terms = (kind.pop("criterion", None) or {}).get("matched", ())
    kind["softmax"] = any("CrossEntropy" in str(term["_target_"]) for term in terms)
    for name in ("denoising", "pixel_mean", "pixel_std", "name"):
        kind.pop(name, None)
    return kind


def _built(cfg: DictConfig) -> nn.Module:
    model = small.randomize(instantiate(cfg.model))
    if isinstance(getattr(model, "selector", None), CalibratedSelector):
        calibrate_selector(model, [small.samples(((64, 96), (96, 70)), (2, 1))])
    return model
