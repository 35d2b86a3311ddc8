"""Detectors from a config and a checkpoint, as the tools need them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedet.checkpoint import (
    CheckpointError,
    Differences,
    compare_weights,
    leave_out_pretrained,
    load_checkpoint,
    load_weights,
)
from sparsedet.config import ConfigError, LazyConfig, instantiate, packaged_configs
from sparsedet.config.calls import raw_value
from sparsedet.config.lazy import setting
from sparsedet.config.trust import require_trusted
from sparsedet.conversion import num_classes
from sparsedet.data import resolve_classes
from sparsedet.engine.launch import resolve_device
from sparsedet.engine.memory import within_memory
from sparsedet.modeling import TokenSparseDetector
from sparsedet.weights import find_published, published_config
from sparsedet.weights.cache import weights_file
from sparsedet.weights.folders import find_folder, telling_versions
from sparsedet.weights.table import CONFIG


def require_same_classes(cfg: Any) -> None:
    """Refuse a model whose number of classes differs from that of the data.

    Args:
        cfg: configuration with a ``model`` and a resolved ``dataset``.

    Raises:
        ConfigError: ``model.num_classes`` is not ``dataset.num_classes``.
    """
    classes, found = cfg.model.get("num_classes"), cfg.dataset.num_classes
    if classes in (None, found):
        return
    ids = (
        " To use published weights of COCO's 91 category ids, reduce them to the 80 classes with "
        "`sparsedet convert-weights --classes contiguous`."
    )
    raise ConfigError(
        f"model.num_classes is {classes}, and the data has {found} classes. Set "
        f"model.num_classes={found}.{ids if (classes, found) == (91, 80) else ''}"
    )


def load_detector(
    cfg: Any, weights: str | os.PathLike[str] | None, device: torch.device | None = None
) -> torch.nn.Module:
    """The model of a config, ready to detect.

    Args:
        cfg: configuration with a ``model``; its backbone fetches no weights (changed in place).
            ``train.device`` is the device of the model (default "auto").
        weights: checkpoint of a whole detector, or the name of published weights; None = random
            weights.
        device: replaces ``train.device``.

    Raises:
        CheckpointError: the file cannot be read or fetched, does not fit, or holds only a part of
            a detector.
        ValueError: the parts of the model do not fit together.
    """
    place = device or resolve_device(cfg.get("train", {}).get("device", "auto"))
    leave_out_pretrained(cfg)
    with telling_versions(weights):
        with within_memory():
            model = instantiate(cfg.model)
        _require_module(model)
        report = None if weights is None else load_weights(model, weights_file(weights))
        if report is not None and report.module:
            raise CheckpointError(
                f"checkpoint {weights} holds only the weights of model.{report.module}. Give a "
                "checkpoint of a whole detector."
            )
    return model.to(place).eval()


def load(weights: str | os.PathLike[str], device: str | torch.device = "auto") -> torch.nn.Module:
    """A detector with its weights, ready to detect.

    >>> model = load("focus_detr_r50_36ep")  # doctest: +SKIP

    Args:
        weights: the name of published weights, which are fetched the first time (`sparsedet
            weights` lists them); a checkpoint of a training run; a folder that `sparsedet publish`
            wrote, or a model that it pushed to Hugging Face, such as ``owner/model``.
        device: "auto" (the accelerator if there is one), or a name such as "cpu" or "cuda:1".

    Raises:
        CheckpointError: the file cannot be read or fetched, does not fit, or has no config.
        ConfigError: it looks like a name, and there are no published weights of that name.
        ValueError: this machine has no such device.
    """
    place = find_device(device, "load: device")
    return load_detector(trained_config(weights, "model"), weights, place)


def find_device(device: str | torch.device, name: str) -> torch.device:
    """Find the device that a user names.

    Args:
        device: "auto" (the accelerator if there is one), or a name such as "cpu" or "cuda:1".
        name: the name of the argument, for the message.

    Raises:
        ValueError: this machine has no such device.
    """
    if device == "auto":
        return torch.device(resolve_device("auto"))
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} must be auto or a device of this machine, got {str(device)!r} ({reason})."
        ) from None
    return place


def require_tokens(model: torch.nn.Module) -> TokenSparseDetector:
    """Refuse a detector without tokens, for commands that look at tokens.

    Raises:
        ConfigError: the model is not a ``TokenSparseDetector``.
    """
    if not isinstance(model, TokenSparseDetector):
        raise ConfigError(
            f"{type(model).__name__} has no tokens to look at; only a TokenSparseDetector has. "
            "`sparsedet predict` and `sparsedet eval` work with every model."
        )
    return model


def _require_module(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"model must be a component that builds a detector, got {type(model).__name__}. Set "
            "model._target_."
        )


def stored_setting(checkpoint: Mapping[str, Any], weights: str | os.PathLike[str], key: str) -> Any:
    """A setting of the config that a training run left in its checkpoint.

    Args:
        checkpoint: the loaded file.
        weights: its path, for messages.
        key: the key of the setting, such as ``dataset.class_names``, the class names in the order
            of the weights.

    Returns:
        The value; None if the checkpoint does not have it.

    Raises:
        CheckpointError: the config cannot be read, or running code is needed to get the setting.
    """
    if not isinstance(checkpoint.get("config"), str):
        return None
    return _setting(stored_config(checkpoint["config"], f"checkpoint {weights}"), weights, key)


def _setting(cfg: Any, weights: str | os.PathLike[str], key: str) -> Any:
    _leave_out_others(cfg, (key,))
    _require_trusted(cfg, weights)
    return setting(cfg, key)


def class_names_of(weights: str | os.PathLike[str]) -> Any:
    """Class names in the order of the weights; None if they are not recorded.

    Args:
        weights: as for :func:`load`.

    Raises:
        CheckpointError: the file cannot be read, or its config cannot.
        ConfigError: it looks like a name, and there are no published weights of that name.
    """
    if (published := find_published(weights)) is not None:
        return published.class_names
    with telling_versions(weights):
        cfg = _config_of(weights)
        return None if cfg is None else _setting(cfg, weights, "dataset.class_names")


def trained_config(weights: str | os.PathLike[str], *keys: str) -> Any:
    """The config that a training run left in its checkpoint, or that of published weights.

    A checkpoint may come from anywhere, so what its config would call is checked first, see
    :func:`sparsedet.config.trust.require_trusted`. Parts that are not asked for are left out.

    Args:
        weights: as for :func:`load`; no weights are fetched.
        keys: which parts of the config will be built, such as ``dataloader.test``.

    Raises:
        CheckpointError: the file cannot be read, holds no config, or the config has no such part
            or would call code that is not trusted.
        ConfigError: it looks like a name, and there are no published weights of that name.
    """
    published = find_published(weights)
    with telling_versions(weights):
        cfg = _config_in(weights) if published is None else published_config(published)
        _leave_out_others(cfg, (*keys, "train", "dataset"))
        _require_trusted(cfg, weights)
    for key in keys:
        if setting(cfg, key) is None:
            raise CheckpointError(
                f"the config in checkpoint {weights} has no {key}. Give a checkpoint that has it."
            )
    return cfg


def _config_in(weights: str | os.PathLike[str]) -> Any:
    cfg = _config_of(weights)
    if cfg is None:
        raise CheckpointError(
            f"checkpoint {weights} holds no config of its model. Give the config, too: "
            "`sparsedet eval CONFIG --weights FILE`, `sparsedet predict FILE --config-file CONFIG`."
        )
    return cfg


def _config_of(weights: str | os.PathLike[str]) -> Any:
    """The config in a checkpoint or in a folder beside the weights; None if there is none."""
    source = f"checkpoint {weights}"
    if (folder := find_folder(weights)) is not None:
        return _load_stored(folder.file(CONFIG), source)
    text = load_checkpoint(weights).get("config")
    return stored_config(text, source) if isinstance(text, str) else None


def _require_trusted(cfg: Any, weights: str | os.PathLike[str]) -> None:
    try:
        require_trusted(cfg, f"the config in checkpoint {weights}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _leave_out_others(cfg: Any, keys: Sequence[str]) -> None:
    """Remove, in place, the parts that contain none of the keys; no reference is followed."""
    for name in list(cfg):
        below = {key.partition(".")[2] for key in keys if key.partition(".")[0] == name}
        if not below:
            del cfg[name]
        elif "" not in below and isinstance(raw_value(cfg, name), Mapping):
            _leave_out_others(cfg[name], [part.partition(".")[0] for part in below])


def name_classes(cfg: Any, source: str | os.PathLike[str]) -> None:
    """Set ``dataset.class_names`` and ``dataset.num_classes``, as training resolves them.

    If the config has no names, they are taken from the annotations of the training set or of the
    validation set. If neither file exists, the number of classes may be known.

    Args:
        cfg: configuration with a ``model`` and a ``dataset``; changed in place.
        source: where the configuration was read from, for messages.

    Raises:
        ConfigError: the classes are not known, or the model has another number of classes.
        DatasetError: the annotation file cannot be read.
    """
    dataset = cfg.dataset
    resolve_classes(cfg)
    if dataset.num_classes is None:
        files = [dataset[key] for key in ("train_json", "val_json") if dataset[key] is not None]
        raise ConfigError(
            f"{source} does not name the classes, and {' and '.join(files)} do not exist. Use the "
            "config.yaml of the training run, or set dataset.val_json."
        )
    if dataset.class_names is not None:
        require_same_classes(cfg)


def stored_config(text: str, source: str) -> Any:
    """Read the config that a checkpoint holds as text; nothing in it is called.

    Args:
        text: YAML.
        source: where it was read from, for messages.

    Raises:
        CheckpointError: the text is not a config.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return _load_stored(path, source)


def _load_stored(path: Path, source: str) -> Any:
    try:
        return LazyConfig.load(path)
    except ConfigError as error:
        reason = str(error).replace(str(path), f"the config in {source}")
        raise CheckpointError(f"{reason} Give its config as a file.") from None


def build_on_meta(cfg: Any) -> TokenSparseDetector:
    """Build the model of a config without allocating its weights.

    Args:
        cfg: configuration with a ``model``; its backbone fetches no weights (changed in place).
    """
    leave_out_pretrained(cfg)
    with torch.device("meta"):
        return instantiate(cfg.model)


def fitting_configs(weights: Mapping[str, Tensor], published: int) -> list[str]:
    """The released configs whose model has these tensors, with the override that makes it fit.

    Configs with the published number of classes are tried first, and the others only if none of
    them fits.

    Args:
        weights: converted weights.
        published: number of classes in the published file, before some were picked.

    Raises:
        CheckpointError: no model fits; the message names the nearest one and the differences.
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
        "If the file is complete, name the config of its model with --config-file."
    )
