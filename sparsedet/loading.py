"""Detectors from a config and a checkpoint, as the tools need them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedet.checkpoint import CheckpointError, Differences, compare_weights, load_weights
from sparsedet.config import ConfigError, LazyConfig, instantiate, packaged_configs
from sparsedet.conversion import num_classes
from sparsedet.engine.launch import resolve_device
from sparsedet.modeling import TokenSparseDetector


def leave_out_pretrained(cfg: Any) -> list[str]:
    """Unset the weights that the backbone would fetch: a checkpoint takes their place.

    Args:
        cfg: configuration with a ``model``; changed in place.

    Returns:
        The keys of the backbone that were set.
    """
    backbone = cfg.model.get("backbone") or {}
    absent = {"weights": None, "pretrained": False}
    found = [key for key in absent if backbone.get(key)]
    for key in found:
        backbone[key] = absent[key]
    return found


def require_same_classes(cfg: Any) -> None:
    """Refuse a model whose classes are not those of the data: its class n would be another's.

    Args:
        cfg: configuration with a ``model``, and with the ``dataset`` as it was resolved.

    Raises:
        ConfigError: ``model.num_classes`` is not ``dataset.num_classes``.
    """
    classes, found = cfg.model.get("num_classes"), cfg.dataset.num_classes
    if classes in (None, found):
        return
    ids = (
        " Published weights of COCO's 91 category ids fit it once `sparsedet convert-weights "
        "--classes contiguous` has picked the 80 that there are."
    )
    raise ConfigError(
        f"model.num_classes is {classes}, and the data has {found} classes. Set "
        f"model.num_classes={found}.{ids if (classes, found) == (91, 80) else ''}"
    )


def load_detector(cfg: Any, weights: str | Path | None) -> TokenSparseDetector:
    """The model of a config, ready to detect.

    Args:
        cfg: configuration with a ``model``; its backbone fetches no weights (changed in place).
            ``train.device`` says where the model goes ("auto" without).
        weights: checkpoint of a whole detector; None = random weights.

    Raises:
        CheckpointError: the file cannot be read, does not fit, or holds a part of a detector alone.
        ValueError: the parts of the model do not go together.
    """
    device = resolve_device(cfg.get("train", {}).get("device", "auto"))
    leave_out_pretrained(cfg)
    model = instantiate(cfg.model)
    if weights is not None:
        report = load_weights(model, weights)
        if report.module:
            raise CheckpointError(
                f"checkpoint {weights} has weights of model.{report.module} alone. Give those of a "
                "whole detector."
            )
    return model.to(device).eval()


def trained_class_names(checkpoint: Mapping[str, Any]) -> list[str] | None:
    """Class names in the order of the weights; None where the checkpoint does not tell.

    Args:
        checkpoint: a loaded file; that of a training run holds its config.
    """
    if "config" not in checkpoint:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(checkpoint["config"], encoding="utf-8")
        return LazyConfig.load(path).get("dataset", {}).get("class_names")


def build_on_meta(cfg: Any) -> TokenSparseDetector:
    """The model of a config without memory for its weights.

    Args:
        cfg: configuration with a ``model``; its backbone fetches no weights (changed in place).
    """
    leave_out_pretrained(cfg)
    with torch.device("meta"):
        return instantiate(cfg.model)


def fitting_configs(weights: Mapping[str, Tensor], published: int) -> list[str]:
    """The released configs whose model has these tensors, with the override that makes it fit.

    Configs of as many classes as were published go first; those of another number count where
    none of these fits.

    Args:
        weights: converted ones.
        published: classes before some were picked.

    Raises:
        CheckpointError: no model has them; it names the nearest and what is different.
    """
    classes = num_classes(weights)
    others: list[tuple[str, Differences]] = []
    released = [path for name, path in packaged_configs().items() if name.startswith("released/")]
    configs = {path: LazyConfig.load(path) for path in released}
    first = [path for path, cfg in configs.items() if cfg.model.num_classes == published]
    for paths in (first, [path for path in configs if path not in first]):
        fits = []
        for path in paths:
            model = configs[path].model
            override = "" if model.num_classes == classes else f" model.num_classes={classes}"
            name = f"projects/{path.parents[2].name}/configs/released/{path.name}{override}"
            model.num_classes = classes
            differences = compare_weights(build_on_meta(configs[path]).state_dict(), weights)
            if differences:
                others.append((name, differences))
            else:
                fits.append(name)
        if fits:
            return fits
    name, differences = min(others, key=lambda other: len(other[1]))
    raise CheckpointError(
        f"the file fits no released config. The nearest is {name}: tensors {differences}. "
        "If the file is whole, name the config of its model with --config-file."
    )
