"""Train and evaluate a detector from a config file.

    tools/train_net.py --config-file configs/quickstart.py
    tools/train_net.py --config-file FILE train.output_dir=DIR optimizer.lr=1e-4 ...
    tools/train_net.py --config-file DIR/config.yaml --resume
    tools/train_net.py --config-file FILE --eval-only train.init_checkpoint=DIR/model_best.pth
    torchrun --nproc-per-node 8 tools/train_net.py --config-file FILE

Exit codes: 0 done; 1 the loss was not finite; 2 something given is wrong (one sentence says what);
128 + n stopped by signal n with a checkpoint to go on from.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.contrib.logging import logging_redirect_tqdm

import sparsedet
from sparsedet import comm
from sparsedet.checkpoint import (
    CheckpointError,
    CheckpointStore,
    LoadReport,
    atomic_write,
    load_checkpoint,
    load_weights,
)
from sparsedet.config import ConfigError, LazyConfig, check_keys, get_config, instantiate
from sparsedet.data.catalog import resolve_dataset
from sparsedet.engine import (
    CheckpointHook,
    EvalHook,
    Hook,
    LogHook,
    ModelEma,
    NonFiniteError,
    StopHook,
    Trainer,
    launch,
)
from sparsedet.engine.hooks import flatten_metrics
from sparsedet.engine.launch import check_processes, is_first_process, resolve_device
from sparsedet.engine.random_state import seed_everything
from sparsedet.evaluation.loop import evaluate
from sparsedet.events import ConsoleWriter, JsonWriter, Writer, service_writers
from sparsedet.loading import leave_out_pretrained, require_same_classes, trained_class_names
from sparsedet.structures import Boxes, Instances

logger = logging.getLogger("sparsedet.tools.train_net")

_SHOWN_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "keep_ratio")
_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    args = _parser().parse_intermixed_args(argv)
    try:
        cfg = load_config(args.config_file, args.overrides, evaluates=args.eval_only)
        device_type = resolve_device(cfg.train.device)
        check_processes(args.num_gpus, device_type)
        Path(cfg.train.output_dir).mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        if is_first_process():
            _print_error(error)
        return 2
    try:
        return launch(run, (cfg, args), num_processes=args.num_gpus, device_type=device_type)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F", help=".py or .yaml config")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the output folder"
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate train.init_checkpoint, or with --resume the last checkpoint",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes to start on this machine"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config")
    return parser


_NEEDED = (
    "model._target_",
    "model.backbone",
    "optimizer._target_",
    "lr_multiplier._target_",
    "dataloader.train",
    "dataloader.test",
    "dataloader.evaluator",
    "dataset",
    "train.output_dir",
    "train.amp",
    "train.clip_grad",
)


def load_config(path: str, overrides: Sequence[str], *, evaluates: bool = False) -> Any:
    """The config with overrides and the facts of its data set, checked."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(path), overrides)
    absent = [key for key in _NEEDED if not _at(cfg, key)]
    if absent:
        raise ConfigError(f"{path} does not set {', '.join(absent)}, which a run needs.")
    check_keys(cfg.train, get_config("common/train.py").train, "train")
    if cfg.train.amp.dtype not in _AMP_DTYPES:
        raise ConfigError(
            f"train.amp.dtype must be one of {', '.join(_AMP_DTYPES)}, got {cfg.train.amp.dtype!r}."
        )
    if evaluates and cfg.dataset.get("class_names") is None:
        cfg.dataset.class_names = _trained_classes(cfg.train)
    resolve_dataset(cfg, ("val",) if evaluates else ("train", "val"))
    require_same_classes(cfg)
    return cfg


def _trained_classes(settings: Any) -> list[str] | None:
    """Class names in the order of the weights that will be evaluated, where their file tells."""
    if not settings.init_checkpoint:
        last = CheckpointStore(settings.output_dir).load_last()
        checkpoint = last[0] if last else {}
    elif Path(settings.init_checkpoint).is_file():
        checkpoint = load_checkpoint(settings.init_checkpoint)
    else:
        checkpoint = {}  # said when the weights are loaded
    return trained_class_names(checkpoint)


def run(device: torch.device, cfg: Any, args: argparse.Namespace) -> int:
    """Train or evaluate, in one of the processes; returns the exit code."""
    try:
        with _logging(Path(cfg.train.output_dir)):
            job = _build_everywhere(cfg, args, device)
            if job is None:
                return 2
            return job.evaluate_only() if args.eval_only else job.train()
    except NonFiniteError as error:
        _print_error(error)
        return 1


def _build_everywhere(cfg: Any, args: argparse.Namespace, device: torch.device) -> Job | None:
    """The job of this process; None, and one message in all, if it fails in any of them."""
    job, failure = None, None
    try:
        job = Job(cfg, args, device)
    except (ValueError, OSError) as error:
        failure = _sentence(error)
    failures = [text for text in comm.all_gather(failure) if text is not None]
    if not failures:
        return job
    if comm.is_main_process():
        _print_error(failures[0])
    return None


class Job:
    """Everything that a config describes, built and wired; nothing has run yet.

    Args:
        cfg: The resolved config.
        args: The command line.
        device: Where this process computes.
    """

    def __init__(self, cfg: Any, args: argparse.Namespace, device: torch.device) -> None:
        self._cfg = cfg
        self._args = args
        self._device = device
        self._output_dir = Path(cfg.train.output_dir)
        self._store = CheckpointStore(
            self._output_dir, max_to_keep=cfg.train.checkpointer.max_to_keep
        )
        last = self._find_checkpoint()
        if cfg.train.seed is None:
            cfg.train.seed = comm.all_gather(random.randrange(2**31))[0]
        self._extra = self._save_config(resumed=last is not None)
        seed_everything(cfg.train.seed)
        self._model = self._build_model(replaced=last is not None)
        self._test_loader = instantiate(cfg.dataloader.test)
        self._evaluator = instantiate(cfg.dataloader.evaluator)
        if args.eval_only:
            self._load_for_evaluation(last)
            return
        self._train_loader = instantiate(cfg.dataloader.train)
        self._trainer = self._build_trainer()
        if last is not None:
            self._trainer.load_state_dict(*last)
            done, length = self._trainer.iteration, self._trainer.max_iter
            if done < length:
                logger.info("resuming at iteration %d from %s", done, last[1])
            else:
                logger.info("the run is finished (%d of %d), only evaluating", done, length)
        self._trainer.hooks = self._build_hooks()

    def train(self) -> int:
        """Run to the end, or until a signal; write `results.json`."""
        trainer = self._trainer
        with logging_redirect_tqdm([logging.getLogger("sparsedet")]):
            trainer.train()
        if trainer.stop_requested:
            logger.warning(
                "stopped at iteration %d of %d; add --resume to go on",
                trainer.iteration,
                trainer.max_iter,
            )
            return 128 + (trainer.stop_signal or 15)
        if comm.is_main_process():
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
        return 0

    def evaluate_only(self) -> int:
        """Evaluate once; write `eval_results.json`."""
        results = self._evaluate(self._model.eval())
        if comm.is_main_process():
            self._write_results("eval_results.json", results)
        return 0

    # --- building -------------------------------------------------------------------------------

    def _find_checkpoint(self) -> tuple[dict[str, Any], Path] | None:
        if self._args.resume:
            last = self._store.load_last()
            if last is None:
                logger.warning("no checkpoint in %s: beginning at the start", self._output_dir)
            return last
        if not self._args.eval_only and self._store.paths():
            raise CheckpointError(
                f"train.output_dir={self._output_dir} holds the checkpoints of another run. Add "
                "--resume to go on with it, or set another train.output_dir."
            )
        return None

    def _save_config(self, resumed: bool) -> dict[str, str]:
        """Write `config.yaml`; what checkpoints hold beside the weights."""
        if self._args.eval_only or not comm.is_main_process():
            return {}
        self._store.clean()
        path = self._output_dir / "config.yaml"
        if resumed and path.is_file():
            _require_same_run(path, self._cfg)
        LazyConfig.save(self._cfg, path)
        return {"config": path.read_text(encoding="utf-8")}

    def _build_model(self, replaced: bool) -> nn.Module:
        settings = self._cfg.train
        if replaced or settings.init_checkpoint:
            for key in leave_out_pretrained(self._cfg):
                logger.info("model.backbone.%s: not fetched, a checkpoint takes their place", key)
        model = instantiate(self._cfg.model)
        _check_parts_fit(model)
        if settings.init_checkpoint and not replaced:
            reinit = settings.reinit_class_heads and not self._args.eval_only
            path = settings.init_checkpoint
            report = load_weights(model, path, reinit_class_heads=reinit)
            if self._args.eval_only and report.module:
                raise CheckpointError(
                    f"{path} holds the {report.module} alone, and --eval-only needs a whole model. "
                    "Train it first, without --eval-only."
                )
            _log_report(report, path)
        return model.to(self._device)

    def _load_for_evaluation(self, last: tuple[dict[str, Any], Path] | None) -> None:
        if last is not None:
            load_weights(self._model, last[1])
        elif not self._cfg.train.init_checkpoint:
            raise ConfigError(
                "--eval-only needs weights: set train.init_checkpoint, or add --resume to evaluate "
                f"the last checkpoint in {self._output_dir}."
            )

    def _build_trainer(self) -> Trainer:
        cfg, settings = self._cfg, self._cfg.train
        model = self._model
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        settings.max_iter = self._iterations(settings.max_iter, settings.epochs)
        lr_multiplier = instantiate(cfg.lr_multiplier)
        ema = (
            ModelEma(model, decay=settings.model_ema.decay) if settings.model_ema.enabled else None
        )
        if comm.get_world_size() > 1:
            ids = None if self._device.type == "cpu" else [self._device]
            model = DistributedDataParallel(model, device_ids=ids, **settings.ddp)
        seed_everything(settings.seed + comm.get_rank())
        clip = settings.clip_grad
        return Trainer(
            model,
            self._train_loader.iter_from,
            optimizer=optimizer,
            lr_multiplier=lr_multiplier,
            max_iter=settings.max_iter,
            amp_dtype=_AMP_DTYPES[settings.amp.dtype] if settings.amp.enabled else None,
            clip_grad=clip.params if clip.enabled else None,
            accumulation_steps=settings.accumulation_steps,
            ema=ema,
            seed=settings.seed,
        )

    def _build_hooks(self) -> list[Hook]:
        settings, trainer, start = self._cfg.train, self._trainer, self._trainer.iteration
        writers: list[Writer] = []
        console = None
        if comm.is_main_process():
            writers.append(JsonWriter(self._output_dir / "metrics.json", start_iteration=start))
            writers += service_writers(
                self._output_dir,
                resumed=start > 0,
                tensorboard=settings.tensorboard,
                wandb=settings.wandb,
                mlflow=settings.mlflow,
            )
            console = ConsoleWriter(
                trainer.max_iter, start_iteration=start, show_bar=sys.stderr.isatty()
            )
        checkpointer = settings.checkpointer
        return [
            StopHook(),
            LogHook(
                settings.log_period,
                writers,
                console=console,
                iterations_per_epoch=self._iterations_per_epoch,
            ),
            EvalHook(
                self._iterations(settings.eval_period, settings.eval_epochs),
                self._evaluate,
                writers=writers,
                store=self._store,
                best_metric=settings.best_metric,
                patience=settings.early_stopping.patience,
                extra=self._extra,
            ),
            CheckpointHook(
                self._store,
                self._iterations(checkpointer.period, checkpointer.epochs),
                extra=self._extra,
            ),
        ]

    @property
    def _iterations_per_epoch(self) -> float:
        return len(self._train_loader) / self._cfg.train.accumulation_steps

    def _iterations(self, iterations: int | None, epochs: float) -> int:
        """A length in iterations: as given, or from one in epochs (at least 1 unless 0)."""
        if iterations is not None:
            return iterations
        return math.ceil(epochs * self._iterations_per_epoch)

    # --- results --------------------------------------------------------------------------------

    def _evaluate(self, model: nn.Module) -> dict[str, Any]:
        results = evaluate(model, self._test_loader, self._evaluator)
        if comm.is_main_process():
            numbers = {**flatten_metrics(results.get("bbox", {})), **flatten_metrics(results)}
            shown = [f"{name} {numbers[name]:.4g}" for name in _SHOWN_METRICS if name in numbers]
            logger.info("evaluation: %s", "  ".join(shown))
        return results

    def _write_results(self, name: str, metrics: dict[str, Any], **facts: Any) -> None:
        content = {
            "metrics": metrics,
            "keep_ratio": metrics.get("keep_ratio"),
            **facts,
            "config": str(self._args.config_file),
            "overrides": list(self._args.overrides),
            "seed": self._cfg.train.seed,
            "device": self._device.type,
            "num_processes": comm.get_world_size(),
            "versions": {
                "sparsedet": sparsedet.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "numpy": np.__version__,
            },
        }
        path = self._output_dir / name
        with atomic_write(path) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())
        logger.info("results are in %s", path)
        print(_table(metrics))


def _check_parts_fit(model: nn.Module) -> None:
    """Evaluate the model on a small empty image: parts that do not fit are found before training.

    Raises:
        ConfigError: naming what failed.
    """
    nothing = Instances((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.long)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    try:
        with torch.no_grad():
            model.eval()([{"image": image, "instances": nothing}])
    except (ValueError, TypeError, AttributeError, RuntimeError, LookupError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ConfigError(f"the parts of model do not fit together: {_sentence(error)}") from error
    model.train()


def _require_same_run(path: Path, cfg: Any) -> None:
    """Refuse to resume a run whose results would be told as those of other settings."""
    with tempfile.TemporaryDirectory() as folder:  # as both read when they come from a file
        LazyConfig.save(cfg, Path(folder) / path.name)
        new = LazyConfig.load(Path(folder) / path.name)
    old = LazyConfig.load(path)
    for key in ("model", "optimizer", "lr_multiplier", "train.seed", "dataset.class_names"):
        changed = _first_difference(_at(old, key), _at(new, key), key)
        if changed is not None:
            key, before, now = changed
            raise ConfigError(
                f"{key} is {before} in the run to resume ({path}) and {now} here. Set it as it "
                "was, or set another train.output_dir."
            )


def _at(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(cfg, Mapping) or part not in cfg:
            return None
        cfg = cfg[part]
    return cfg


def _first_difference(old: Any, new: Any, key: str) -> tuple[str, Any, Any] | None:
    if old == new:
        return None
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            changed = _first_difference(old.get(name), new.get(name), f"{key}.{name}")
            if changed is not None:
                return changed
    return key, old, new


def _table(metrics: Mapping[str, Any]) -> str:
    """The main numbers under their names, in two lines."""
    named = {**metrics.get("bbox", {}), "keep_ratio": metrics.get("keep_ratio")}
    shown = [name for name in _SHOWN_METRICS if name in named]
    cells = ["-" if named[name] is None else f"{named[name]:.3f}" for name in shown]
    widths = [max(len(name), len(cell)) for name, cell in zip(shown, cells, strict=True)]
    lines = (
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in (shown, cells)
    )
    return "\n".join(lines)


def _log_report(report: LoadReport, path: str) -> None:
    part = f"model.{report.module}" if report.module else "the model"
    logger.info("%d tensors of %s are from %s", report.num_loaded, part, path)
    if report.reinitialized:
        logger.info("new class heads: %s", ", ".join(report.reinitialized))
    if report.unused:
        logger.info("left out: %s", ", ".join(report.unused))


@contextmanager
def _logging(output_dir: Path) -> Iterator[None]:
    """Log lines to stderr and `log.txt`, of the main process alone."""
    root = logging.getLogger("sparsedet")
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if comm.is_main_process():
        handlers.append(logging.FileHandler(output_dir / "log.txt", encoding="utf-8"))
    before = root.level, root.propagate
    root.setLevel(logging.INFO if comm.is_main_process() else logging.ERROR)
    root.propagate = False
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    try:
        yield
    finally:
        root.level, root.propagate = before
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _sentence(error: Exception) -> str:
    return str(error) or type(error).__name__


def _print_error(error: Exception | str) -> None:
    text = error if isinstance(error, str) else _sentence(error)
    print(f"error: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
