"""Train and evaluate what a config describes, from its data set to `results.json`."""

from __future__ import annotations

import logging
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.contrib.logging import logging_redirect_tqdm

from sparsedet import comm
from sparsedet.agreement import require_same_start
from sparsedet.analysis.calibration import calibrated_for_a_while
from sparsedet.changes import changes, run_facts, schedule_change, tell
from sparsedet.checkpoint import CheckpointStore, leave_out_pretrained
from sparsedet.config import ConfigError, instantiate, setting
from sparsedet.config.calls import is_out_of_memory
from sparsedet.data import AnnotatedDataset
from sparsedet.data.catalog import resolve_dataset
from sparsedet.engine import (
    CheckpointHook,
    EvalHook,
    Hook,
    LogHook,
    ModelEma,
    PaceHook,
    PictureHook,
    StopHook,
    Trainer,
)
from sparsedet.engine.batches import batches_from, epoch_length
from sparsedet.engine.hooks import plain_metrics
from sparsedet.engine.memory import within_memory
from sparsedet.engine.nonfinite import NonFiniteSteps
from sparsedet.engine.pace import describe_device
from sparsedet.engine.random_state import seed_everything
from sparsedet.engine.signals import StopTraining
from sparsedet.evaluation.loop import EvaluationStopped, evaluate, main_metrics
from sparsedet.events import ConsoleWriter, JsonWriter, Writer, picture_writers, service_writers
from sparsedet.files import write_json
from sparsedet.loading import require_same_classes
from sparsedet.modeling import TokenSparseDetector, TorchvisionDetector
from sparsedet.report.record import describe_run, finish_run, start_run
from sparsedet.resuming import (
    Found,
    Resume,
    config_text,
    earlier_seed,
    find_checkpoint,
    initialize,
    load_for_evaluation,
    save_config,
    take_up,
    trained_classes,
)
from sparsedet.run_settings import run_settings
from sparsedet.structures import Boxes, Instances
from sparsedet.survey import Survey
from sparsedet.visualization import WatchedPictures

logger = logging.getLogger(__name__)

_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_run(cfg: Any, *, evaluates: bool = False) -> None:
    """Check the settings of a run and fill in the facts of its data set.

    Args:
        cfg: the config; changed in place.
        evaluates: nothing will be trained, so the classes are those of the weights if their file
            has them, and the training split may be missing.

    Raises:
        ConfigError: a setting is wrong.
        DatasetError: the data set cannot be used.
    """
    cfg.train = run_settings(cfg.train)
    _require_evaluations(cfg.train)
    if "dataset" not in cfg:
        return  # the loaders of detectron2 and detrex have their own data sets
    if evaluates and cfg.dataset.get("class_names") is None:
        cfg.dataset.class_names = trained_classes(cfg.train)
    resolve_dataset(cfg, ("val",) if evaluates else ("train", "val"))
    require_same_classes(cfg)


class Job:
    """A training or evaluation job: everything that a config describes, built but not run yet.

    Args:
        cfg: The config after `resolve_run`.
        device: The device of this process.
        resume: Resume from the last checkpoint in `train.output_dir`; "auto" = if there is one.
        eval_only: Build only what evaluation needs. The weights are those of
            `train.init_checkpoint`, or with `resume` those of the last checkpoint.
        accept_changes: Resume even if settings have changed that affect the results.
        origin: Entries of `results.json` on the origin of the config.

    Raises:
        ConfigError: The parts of the config do not fit together, or settings that affect the
            results differ from the run to resume.
        CheckpointError: A checkpoint cannot be read, does not fit, belongs to another run, or there
            is none to resume.
    """

    def __init__(
        self,
        cfg: Any,
        device: torch.device,
        *,
        resume: Resume = False,
        eval_only: bool = False,
        accept_changes: bool = False,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self._cfg = cfg
        self._device = device
        self._eval_only = eval_only
        self._origin = dict(origin or {})
        self._output_dir = Path(cfg.train.output_dir)
        self._store = CheckpointStore(
            self._output_dir, max_to_keep=cfg.train.checkpointer.max_to_keep
        )
        last = find_checkpoint(self._store, resume=resume, eval_only=eval_only)
        require_same_start(last[1] if last is not None else None, self._output_dir)
        if cfg.train.seed is None:
            cfg.train.seed = earlier_seed(last)
        if cfg.train.seed is None:
            cfg.train.seed = comm.all_gather(random.randrange(2**31))[0]
        text = None if eval_only else config_text(cfg)  # before lengths are counted
        seed_everything(cfg.train.seed)
        self._model = self._build_model(replaced=last is not None)
        self._test_loader = instantiate(cfg.dataloader.test)
        self._evaluator = instantiate(cfg.dataloader.evaluator)
        if eval_only:
            load_for_evaluation(self._model, cfg.train, last)
            self._facts = run_facts(device, {"validation": self._test_loader})
            return
        self._train_loader = instantiate(cfg.dataloader.train)
        self._trainer = self._build_trainer()
        survey = self._log_survey()
        loaders = {"training": self._train_loader, "validation": self._test_loader}
        self._facts = run_facts(device, loaders)
        if last is not None:
            self._compare(last, text, accept_changes)
            take_up(self._trainer, last)
        save_config(text, self._store)
        start_run(self._output_dir, self._about(), self._trainer, survey)
        self._extra = {"run": self._facts} | ({} if text is None else {"config": text})
        self._trainer.hooks = self._build_hooks()

    def train(self) -> dict[str, Any] | int:
        """Train to the end and write `results.json`.

        Returns:
            The results of the last evaluation (an empty dict in all processes but the main one), or
            the number of the signal that stopped the run.
        """
        trainer = self._trainer
        with logging_redirect_tqdm([logging.getLogger("sparsedet")]):
            trainer.train()
        if trainer.stop_requested:
            logger.warning(
                "stopped at iteration %d of %d; add --resume to continue",
                trainer.iteration,
                trainer.max_iter,
            )
            return trainer.stop_signal or 15
        if not comm.is_main_process():
            return {}
        evaluation = trainer.hook_state["eval"]
        self._write_results(
            "results.json",
            evaluation["results"],
            best=evaluation["best"],
            ended=trainer.end_reason or "all iterations are done",
            iterations=trainer.iteration,
            seconds_training=trainer.train_seconds,
            seconds_per_iteration=trainer.train_seconds / trainer.iteration,
        )
        finish_run(self._output_dir, self._model, self._test_loader)
        return evaluation["results"]

    def standing(self) -> str:
        """A sentence that says from where a run that ended early can be resumed."""
        if self._eval_only or self._trainer.iteration == 0:
            return ""
        if not comm.is_main_process():  # the main process may be writing one right now
            return "Add --resume to continue from the last checkpoint, if one was written."
        done = self._trainer.iteration
        paths = {int(path.stem.rpartition("_")[2]): path for path in self._store.paths()}
        kept = max((number for number in paths if number <= done), default=None)
        if kept is None:
            return f"No checkpoint was written, so its {done} iterations are lost."
        if kept < done:
            where = f"The last checkpoint, {paths[kept]}, has iteration {kept} of the {done} done."
        else:
            where = f"Iteration {done} is saved in {paths[kept]}."
        return f"{where} Add --resume to continue."

    def evaluate_only(self) -> dict[str, Any]:
        """Evaluate once, write the results to `eval_results.json` and return them."""
        results = plain_metrics(self._evaluate(self._model.eval()))
        if comm.is_main_process():
            self._write_results("eval_results.json", results)
        return results

    # --- building -------------------------------------------------------------------------------

    def _log_survey(self) -> Survey | None:
        """Log the data, how the model will see it, and settings that do not fit it."""
        if not comm.is_main_process():
            return None
        loaders = {"training": self._train_loader, "validation": self._test_loader}
        sets = {
            name: (loader.source, loader.mapper)
            for name, loader in loaders.items()
            if isinstance(getattr(loader, "source", None), AnnotatedDataset)  # others have no facts
        }
        for name, (source, _) in sets.items():
            logger.info("%s: %s", name, source)
        survey = Survey.of(sets, self._cfg) if "training" in sets else None
        for line in survey.report().splitlines() if survey is not None else ():
            logger.info("%s", line)
        counts = [(p.numel(), p.requires_grad) for p in self._model.parameters()]
        logger.info(
            "%s, %.2f million parameters, %.2f million trainable",
            describe_device(self._device),
            sum(number for number, _ in counts) / 1e6,
            sum(number for number, learns in counts if learns) / 1e6,
        )
        for text in survey.misfits() if survey is not None else ():
            logger.warning("%s", text)
        return survey

    def _compare(self, last: Found, text: str | None, accept: bool) -> None:
        """Log what differs from the run to resume."""
        if not comm.is_main_process():
            return
        checkpoint, path = last
        found = changes(checkpoint, f"checkpoint {path}", config=text, facts=self._facts)
        length = schedule_change(self._cfg, checkpoint.get("max_iter"), self._trainer.max_iter)
        tell([*found, *([] if length is None else [length])], path, accept=accept)

    def _build_model(self, replaced: bool) -> nn.Module:
        settings = self._cfg.train
        if replaced or settings.init_checkpoint:
            for key in leave_out_pretrained(self._cfg):
                logger.info("model.%s: not fetched, a checkpoint replaces them", key)
        with within_memory():
            model = instantiate(self._cfg.model)
            if isinstance(model, (TokenSparseDetector, TorchvisionDetector)):
                _check_parts_fit(model)
        if settings.init_checkpoint and not replaced:
            initialize(model, settings, eval_only=self._eval_only)
        return model.to(self._device)

    def _build_trainer(self) -> Trainer:
        cfg, settings = self._cfg, self._cfg.train
        model = self._model
        if setting(cfg, "optimizer.params._target_") is None:
            raise ConfigError(
                "optimizer.params must be a component that takes the model and returns groups of "
                "its parameters. Set optimizer.params._target_."
            )
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        self._require_lengths()
        settings.max_iter = self._iterations(settings.max_iter, settings.epochs)
        lr_multiplier = instantiate(cfg.lr_multiplier)
        _check_schedule(lr_multiplier)
        ema = (
            ModelEma(model, decay=settings.model_ema.decay) if settings.model_ema.enabled else None
        )
        if comm.get_world_size() > 1:
            ids = None if self._device.type == "cpu" else [self._device]
            model = DistributedDataParallel(model, device_ids=ids, **settings.ddp)
        clip = settings.clip_grad
        return Trainer(
            model,
            batches_from(self._train_loader),
            optimizer=optimizer,
            lr_multiplier=lr_multiplier,
            max_iter=settings.max_iter,
            amp_dtype=_AMP_DTYPES[settings.amp.dtype] if settings.amp.enabled else None,
            clip_grad=clip.params if clip.enabled else None,
            accumulation_steps=settings.accumulation_steps,
            ema=ema,
            nonfinite=NonFiniteSteps(self._output_dir, max_in_row=settings.max_nonfinite_steps),
            seed=settings.seed,
        )

    def _build_hooks(self) -> list[Hook]:
        writers = self._open_writers()
        try:
            return self._hooks(writers)
        except BaseException:
            for writer in writers:
                writer.close()
            raise

    def _open_writers(self) -> list[Writer]:
        if not comm.is_main_process():
            return []
        settings, start = self._cfg.train, self._trainer.iteration
        evaluated = self._trainer.hook_state.get("eval", {}).get("iteration") == start
        path = self._output_dir / "metrics.json"
        return [
            JsonWriter(path, start_iteration=start, evaluated=evaluated),
            *service_writers(
                self._output_dir,
                resumed=start > 0,
                tensorboard=settings.tensorboard,
                wandb=settings.wandb,
                mlflow=settings.mlflow,
            ),
        ]

    def _hooks(self, writers: Sequence[Writer]) -> list[Hook]:
        settings, trainer, checkpointer = (
            self._cfg.train,
            self._trainer,
            self._cfg.train.checkpointer,
        )
        console = None
        if comm.is_main_process():
            console = ConsoleWriter(
                trainer.max_iter, start_iteration=trainer.iteration, show_bar=sys.stderr.isatty()
            )
        checkpoint = CheckpointHook(
            self._store,
            self._iterations(checkpointer.period, checkpointer.epochs),
            extra=self._extra,
        )
        return [
            StopHook(),
            PaceHook(),
            LogHook(
                settings.log_period,
                writers,
                console=console,
                iterations_per_epoch=self._iterations_per_epoch,
            ),
            checkpoint,
            EvalHook(
                self._iterations(settings.eval_period, settings.eval_epochs),
                self._evaluate,
                writers=writers,
                store=self._store,
                checkpoint=checkpoint,
                best_metric=settings.best_metric,
                patience=settings.early_stopping.patience,
                extra=self._extra,
            ),
            PictureHook(WatchedPictures(self._test_loader), picture_writers(writers)),
        ]

    @property
    def _iterations_per_epoch(self) -> float | None:
        length = epoch_length(self._train_loader)
        return None if length is None else length / self._cfg.train.accumulation_steps

    def _require_lengths(self) -> None:
        """Refuse lengths in epochs if the length of an epoch is not known."""
        settings = self._cfg.train
        lengths = {
            "train.max_iter": (settings.max_iter, settings.epochs),
            "train.eval_period": (settings.eval_period, settings.eval_epochs),
            "train.checkpointer.period": (
                settings.checkpointer.period,
                settings.checkpointer.epochs,
            ),
        }
        unknown = [key for key, (given, epochs) in lengths.items() if given is None and epochs]
        if unknown and self._iterations_per_epoch is None:
            raise ConfigError(
                f"dataloader.train ({type(self._train_loader).__name__}) has no length, so epochs "
                f"cannot be counted. Set {', '.join(unknown)} in iterations."
            )

    def _iterations(self, iterations: int | None, epochs: float) -> int:
        """A length in iterations: as given, or converted from epochs (at least 1 unless 0)."""
        if iterations is not None:
            return iterations
        return math.ceil(epochs * (self._iterations_per_epoch or 0))

    # --- results --------------------------------------------------------------------------------

    def _evaluate(self, model: nn.Module) -> dict[str, Any]:
        try:
            results = evaluate(
                model, self._test_loader, self._evaluator, is_stopped=self._is_stopped
            )
        except EvaluationStopped:
            raise StopTraining from None
        if comm.is_main_process():
            shown = [f"{name} {text}" for name, text in main_metrics(results).items()]
            logger.info("evaluation: %s", "  ".join(shown))
        return results

    def _is_stopped(self) -> bool:
        return not self._eval_only and self._trainer.stop_signal is not None

    def _about(self) -> dict[str, Any]:
        seed = self._cfg.train.seed
        return describe_run(self._origin, self._device, seed=seed, facts=self._facts)

    def _write_results(self, name: str, metrics: dict[str, Any], **facts: Any) -> None:
        content = {
            "metrics": metrics,
            "keep_ratio": metrics.get("keep_ratio"),
            **facts,
            **self._about(),
        }
        write_json(self._output_dir / name, content)
        logger.info("results are in %s", self._output_dir / name)


def _require_evaluations(settings: Any) -> None:
    """Refuse early stopping without evaluations before the end."""
    patience, period = settings.early_stopping.patience, settings.eval_period
    if patience is not None and not (settings.eval_epochs if period is None else period):
        raise ConfigError(
            f"train.early_stopping.patience={patience} needs evaluations before the end, got "
            f"train.eval_period={period} and train.eval_epochs={settings.eval_epochs}. Set "
            "train.eval_period, or train.early_stopping.patience=null."
        )


def _check_parts_fit(model: nn.Module) -> None:
    """Evaluate the model on a small blank image, to find parts that do not fit before training.

    Raises:
        ConfigError: with the reason of the failure.
    """
    nothing = Instances((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.long)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    try:
        with torch.no_grad(), calibrated_for_a_while(model):
            (found,) = model.eval()([{"image": image, "instances": nothing}])
    except Exception as error:
        if not is_out_of_memory(error):
            reason = _sentence(error)
            raise ConfigError(f"the parts of model do not fit together: {reason}") from error
        found = None
    if found is None:
        raise ConfigError(
            "model needs more memory than is available for an image of 64 x 64 pixels. Lower its "
            "number of queries, or the sizes of its layers."
        )
    if not torch.isfinite(found["instances"].scores).all():
        raise ConfigError(
            "model gives scores that are not finite before training. Look for a number in model "
            "that is far too large or small, such as in model.pixel_std."
        )
    model.train()


def _check_schedule(lr_multiplier: Any) -> None:
    """Check a schedule before training.

    Raises:
        ConfigError: its values are not valid factors of learning rates.
    """
    for where in (0.0, 0.25, 0.5, 0.75, 1 - 1e-6):
        try:
            factor = lr_multiplier(where)
            fine = 0 <= factor < math.inf
        except Exception as error:
            raise ConfigError(f"lr_multiplier cannot be used: {_sentence(error)}") from error
        if not fine:
            raise ConfigError(
                f"lr_multiplier must give factors of at least 0, got {factor!r} at {where:.0%} of "
                "the run. Set its values."
            )


def _sentence(error: Exception) -> str:
    return str(error) or type(error).__name__
