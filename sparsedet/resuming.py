"""Where a run begins: at the start, from weights, or where the one in its folder stopped."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sparsedet import comm
from sparsedet.checkpoint import (
    CheckpointError,
    CheckpointStore,
    LoadReport,
    load_checkpoint,
    load_weights,
)
from sparsedet.config import ConfigError, LazyConfig, setting
from sparsedet.loading import trained_class_names

__all__ = ["find_checkpoint", "initialize", "load_for_evaluation", "save_config", "trained_classes"]

logger = logging.getLogger(__name__)


def trained_classes(settings: Any) -> list[str] | None:
    """Class names in the order of the weights that will be evaluated, where their file tells."""
    if not settings.init_checkpoint:
        last = CheckpointStore(settings.output_dir).load_last()
        checkpoint = last[0] if last else {}
    elif Path(settings.init_checkpoint).is_file():
        checkpoint = load_checkpoint(settings.init_checkpoint)
    else:
        checkpoint = {}  # said when the weights are loaded
    return trained_class_names(checkpoint)


def find_checkpoint(
    store: CheckpointStore, *, resume: bool, eval_only: bool
) -> tuple[dict[str, Any], Path] | None:
    """What the run begins from, read, and its path; None where it begins at the start.

    Args:
        store: of the output folder.
        resume: go on from the last checkpoint in it.
        eval_only: nothing will be trained, so that checkpoints of another run are not in the way.

    Raises:
        CheckpointError: the folder holds checkpoints that cannot be read, or is in use.
    """
    if resume:
        last = store.load_last()
        if last is None:
            logger.warning("no checkpoint in %s: beginning at the start", store.directory)
        return last
    if not eval_only and store.paths():
        raise CheckpointError(
            f"train.output_dir={store.directory} holds the checkpoints of another run. Add "
            "--resume to go on with it, or set another train.output_dir."
        )
    return None


def save_config(cfg: Any, store: CheckpointStore, *, resumed: bool) -> dict[str, str]:
    """Write `config.yaml` (on the main process); what checkpoints hold beside the weights.

    Args:
        cfg: the config of the run.
        store: of its output folder.
        resumed: whether the run goes on with the one whose config is there.

    Raises:
        ConfigError: the run to resume is another one.
    """
    if not comm.is_main_process():
        return {}
    store.clean()
    path = store.directory / "config.yaml"
    if resumed and path.is_file():
        _require_same_run(path, cfg)
    try:
        LazyConfig.save(cfg, path)
    except ConfigError as error:  # e.g. a function in a config of detrex
        logger.warning("%s is not written, and checkpoints lack it: %s", path.name, error)
        return {}
    return {"config": path.read_text(encoding="utf-8")}


def initialize(model: nn.Module, settings: Any, *, eval_only: bool) -> None:
    """Fill a model with the weights that the config names, and say which.

    Args:
        model: changed in place.
        settings: `cfg.train`, with an `init_checkpoint`.
        eval_only: the model will be evaluated as it is.

    Raises:
        CheckpointError: the file cannot be read or does not fit.
    """
    path = settings.init_checkpoint
    reinit = settings.reinit_class_heads and not eval_only
    report = load_weights(model, path, reinit_class_heads=reinit)
    if eval_only and report.module:
        raise CheckpointError(
            f"{path} holds the {report.module} alone, and --eval-only needs a whole model. "
            "Train it first, without --eval-only."
        )
    _log_report(report, path)


def load_for_evaluation(
    model: nn.Module, settings: Any, last: tuple[dict[str, Any], Path] | None
) -> None:
    """Fill a model with the weights of the last checkpoint, unless the config names others.

    Args:
        model: changed in place.
        settings: `cfg.train`.
        last: the checkpoint, where the run was to be resumed.

    Raises:
        ConfigError: there are no weights.
        CheckpointError: the file cannot be read or does not fit.
    """
    if last is not None:
        load_weights(model, last[1])
    elif not settings.init_checkpoint:
        raise ConfigError(
            "--eval-only needs weights: set train.init_checkpoint, or add --resume to evaluate "
            f"the last checkpoint in {settings.output_dir}."
        )


def _require_same_run(path: Path, cfg: Any) -> None:
    """Refuse to resume a run whose results would be told as those of other settings."""
    with tempfile.TemporaryDirectory() as folder:  # as both read when they come from a file
        LazyConfig.save(cfg, Path(folder) / path.name)
        new = LazyConfig.load(Path(folder) / path.name)
    old = LazyConfig.load(path)
    for key in ("model", "optimizer", "lr_multiplier", "train.seed", "dataset.class_names"):
        changed = _first_difference(setting(old, key), setting(new, key), key)
        if changed is not None:
            key, before, now = changed
            raise ConfigError(
                f"{key} is {before} in the run to resume ({path}) and {now} here. Set it as it "
                "was, or set another train.output_dir."
            )


def _first_difference(old: Any, new: Any, key: str) -> tuple[str, Any, Any] | None:
    if old == new:
        return None
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            changed = _first_difference(old.get(name), new.get(name), f"{key}.{name}")
            if changed is not None:
                return changed
    return key, old, new


def _log_report(report: LoadReport, path: str) -> None:
    part = f"model.{report.module}" if report.module else "the model"
    logger.info("%d tensors of %s are from %s", report.num_loaded, part, path)
    if report.reinitialized:
        logger.info("new class heads: %s", ", ".join(report.reinitialized))
    if report.unused:
        logger.info("left out: %s", ", ".join(report.unused))
    if report.uncalibrated:
        logger.info("not in it, to be calibrated: %s", ", ".join(report.uncalibrated))
