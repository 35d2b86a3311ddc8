"""How a run starts: anew, from given weights, or from the last checkpoint in its folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sparsedet import comm
from sparsedet.checkpoint import (
    CheckpointError,
    CheckpointStore,
    LoadReport,
    describe,
    load_weights,
    non_finite,
    require_file,
)
from sparsedet.config import ConfigError
from sparsedet.config.files import dump_yaml
from sparsedet.engine import Trainer
from sparsedet.files import atomic_write
from sparsedet.loading import class_names_of, stored_setting
from sparsedet.weights import find_published
from sparsedet.weights.cache import weights_file
from sparsedet.weights.folders import find_folder

__all__ = [
    "Found",
    "Resume",
    "config_text",
    "earlier_seed",
    "find_checkpoint",
    "initialize",
    "load_for_evaluation",
    "require_weights",
    "save_config",
    "take_up",
    "trained_classes",
]

logger = logging.getLogger(__name__)

Found = tuple[dict[str, Any], Path]
"""A checkpoint and its path."""
Resume = bool | Literal["auto"]
"""Whether to resume from the last checkpoint; "auto" = if there is one."""


def trained_classes(settings: Any) -> list[str] | None:
    """Class names in the order of the weights to evaluate; None if their file has none."""
    weights = settings.init_checkpoint
    if weights:
        found = find_published(weights) or find_folder(weights)
        known = found is not None or Path(weights).is_file()
        return class_names_of(weights) if known else None  # an error comes when they are loaded
    found = CheckpointStore(settings.output_dir).load_last()
    return None if found is None else stored_setting(*found, "dataset.class_names")


def require_weights(settings: Any, *, resume: Resume) -> None:
    """Check that the weights of `train.init_checkpoint` exist, before a run makes its folder.

    Published weights are downloaded. A run that resumes from its own checkpoint needs no others.

    Args:
        settings: `cfg.train`.
        resume: as in :func:`find_checkpoint`.

    Raises:
        CheckpointError: there is no such file, or it cannot be downloaded.
        ConfigError: there are no published weights of that name.
    """
    resumes = resume and CheckpointStore(settings.output_dir).paths()
    if settings.init_checkpoint and not resumes:
        require_file(weights_file(settings.init_checkpoint))


def find_checkpoint(store: CheckpointStore, *, resume: Resume, eval_only: bool) -> Found | None:
    """Read the checkpoint that the run resumes from; None for a new run.

    Args:
        store: the checkpoints of the output folder.
        resume: resume from the last checkpoint in it; "auto" = if there is one.
        eval_only: nothing will be trained, so checkpoints of another run are allowed.

    Raises:
        CheckpointError: there is nothing to resume, no checkpoint can be read, or the folder holds
            checkpoints of another run.
    """
    if not resume:
        if not eval_only and store.paths():
            raise CheckpointError(
                f"train.output_dir={store.directory} holds the checkpoints of another run. Add "
                "--resume to continue it, or set another train.output_dir."
            )
        return None
    last = store.load_last()
    if last is None and resume != "auto":
        raise CheckpointError(
            f"there is no checkpoint to resume in {store.directory}. Check train.output_dir, or "
            "use --resume=auto, which then starts a new run."
        )
    if last is None:
        logger.info("no checkpoint in %s: starting a new run", store.directory)
    return last


def earlier_seed(last: Found | None) -> int | None:
    """The seed of the run to resume, used if the config sets none; None if it is not known."""
    return None if last is None else stored_setting(*last, "train.seed")


def config_text(cfg: Any) -> str | None:
    """The text of `config.yaml`; None, with a warning, if the config cannot be written."""
    try:
        return dump_yaml(cfg)
    except ConfigError as error:  # e.g. a function in a config of detrex
        logger.warning("config.yaml and the config in checkpoints cannot be written: %s", error)
        return None


def save_config(text: str | None, store: CheckpointStore) -> None:
    """Write `config.yaml` beside the checkpoints, if there is a text, in the main process.

    Incomplete files that a killed process left there are deleted.
    """
    if not comm.is_main_process():
        return
    store.clean()
    if text is not None:
        with atomic_write(store.directory / "config.yaml") as file:
            file.write(text.encode())


def initialize(model: nn.Module, settings: Any, *, eval_only: bool) -> None:
    """Load the weights that the config names into a model, and log which tensors were loaded.

    Args:
        model: changed in place.
        settings: `cfg.train`, with an `init_checkpoint`: as for `sparsedet.load`.
        eval_only: the model will be evaluated without training.

    Raises:
        CheckpointError: the file cannot be read or fetched, or does not fit.
        ConfigError: there are no published weights of that name.
    """
    path = weights_file(settings.init_checkpoint)
    reinit = settings.reinit_class_heads and not eval_only
    report = load_weights(model, path, reinit_class_heads=reinit)
    if eval_only and report.module:
        raise CheckpointError(
            f"{path} holds only the {report.module}, and --eval-only needs a whole model. "
            "Train it first, without --eval-only."
        )
    _log_report(report, path)


def load_for_evaluation(model: nn.Module, settings: Any, last: Found | None) -> None:
    """Load the weights of the last checkpoint into a model, unless the config names others.

    Args:
        model: changed in place.
        settings: `cfg.train`.
        last: the last checkpoint, if `--resume` was given.

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


def take_up(trainer: Trainer, last: Found) -> None:
    """Restore the state of the run to resume.

    Args:
        trainer: changed in place.
        last: the checkpoint.

    Raises:
        CheckpointError: it is not a full checkpoint, does not fit, or is not finite.
    """
    checkpoint, path = last
    try:
        trainer.load_state_dict(checkpoint, path)
        finished = trainer.iteration >= trainer.max_iter
        found = non_finite({name: checkpoint.get(name) for name in ("ema", "optimizer")})
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"checkpoint {path} cannot be resumed: its content is not that of a training run "
            f"({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}). Delete it to "
            "resume from the one before, or use it as train.init_checkpoint."
        ) from e
    if found:
        raise CheckpointError(
            f"checkpoint {path} cannot be resumed: the run diverged, {describe(found)} are NaN or "
            "infinite. Delete it to resume from the one before."
        )
    if finished:
        logger.info(
            "the run is finished (%d of %d): only evaluating", trainer.iteration, trainer.max_iter
        )
    else:
        logger.info("resuming at iteration %d from %s", trainer.iteration, path)


def _log_report(report: LoadReport, path: str | Path) -> None:
    part = f"model.{report.module}" if report.module else "the model"
    logger.info("%d tensors of %s are from %s", report.num_loaded, part, path)
    if report.reinitialized:
        logger.info("new class heads: %s", ", ".join(report.reinitialized))
    if report.unused:
        logger.info("left out: %s", ", ".join(report.unused))
    if report.uncalibrated:
        logger.info("missing, and needing calibration: %s", ", ".join(report.uncalibrated))
    if report.converted:
        types = [f"{count} of {name}" for name, count in report.converted.items()]
        logger.info("converted to the types of the model: %s", ", ".join(types))
