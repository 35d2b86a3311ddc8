"""Train and evaluate a detector.

    sparsedet train quickstart
    sparsedet train CONFIG train.output_dir=DIR optimizer.lr=1e-4 ...
    sparsedet train DIR/config.yaml --resume       resumes from the last checkpoint in DIR
    sparsedet train CONFIG --resume=auto           the same, or a new run if there is none
    torchrun --nproc-per-node 8 -m sparsedet train CONFIG

CONFIG is a name that `sparsedet configs` lists, or a .py or .yaml file. The results are in
results.json and, as a page with curves and pictures, in report.html in train.output_dir.
Exit codes:
  0        done
  1        more than train.max_nonfinite_steps steps in a row had non-finite losses or gradients
  2        the command, the config or the data is wrong; the same command fails again
  3        something failed during the run (disk, memory, a worker process, your own component): fix
           it and add --resume
  128 + n  stopped by signal n (Ctrl-C 130, SIGTERM 143, SIGHUP 129, SIGUSR1 138) after a complete
           iteration, with a checkpoint to resume from; 130 also after a second Ctrl-C, which ends
           the run immediately and leaves the last checkpoint as it was
If a run ends early, one sentence here and in log.txt says why. log.txt also has the traceback.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparsedet.allocator import add_allocator
from sparsedet.cli.common import (
    add_config,
    answer_together,
    make_parser,
    print_error,
    take_config,
)
from sparsedet.config import ConfigError, packaged_configs, read_config
from sparsedet.tables import format_table

if TYPE_CHECKING:
    import torch

    from sparsedet.training import Job

_PATIENCE = 5.0  # seconds to wait for a killed worker
NEEDED_TO_EVALUATE = (
    "model._target_",
    "dataloader.test._target_",
    "dataloader.evaluator._target_",
    "train.output_dir",
)
_NEEDED_TO_TRAIN = (
    *NEEDED_TO_EVALUATE,
    "optimizer._target_",
    "lr_multiplier._target_",
    "dataloader.train._target_",
)


_AUTO = "--resume=auto"


@dataclass(frozen=True)
class Command:
    """The arguments of a run.

    Attributes:
        config: name or file of the config.
        overrides: overrides of the config.
        resume: resume from the last checkpoint; "auto" = only if there is one.
        eval_only: evaluate without training.
        num_gpus: processes to start on this machine.
        accept_changes: resume although settings or annotations have changed.
    """

    config: str
    overrides: tuple[str, ...] = ()
    resume: bool | Literal["auto"] = False
    eval_only: bool = False
    num_gpus: int = 1
    accept_changes: bool = False


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and train."""
    parser = make_parser(__doc__, prog)
    add_config(parser)
    add_running(parser)
    parser.add_argument("--eval-only", action="store_true", help="the same as `sparsedet eval`")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although settings or annotations have changed",
    )
    return answer_together(_train, parse(parser, argv))


def _train(args: argparse.Namespace) -> int:
    take_config(args)
    return start(
        Command(
            args.config_file,
            tuple(args.overrides),
            resume=args.resume,
            eval_only=args.eval_only,
            num_gpus=args.num_gpus,
            accept_changes=args.accept_changes,
        )
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and evaluation share."""
    parser.add_argument(
        "--resume", action="store_true", help="resume from the last checkpoint in the output folder"
    )
    parser.add_argument(  # a separate option, so that the word after --resume stays a config
        _AUTO,
        dest="resume",
        action="store_const",
        const="auto",
        help="the same, or start a new run if there is none",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes to start on this machine"
    )
    add_allocator(parser)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; give a clear error if `--resume` is followed by a folder."""
    words = sys.argv[1:] if argv is None else list(argv)
    for word, following in pairwise([*words, ""]):
        if word.startswith("--resume=") and word != _AUTO:
            named = word.removeprefix("--resume=")
        elif word in ("--resume", _AUTO) and _is_folder(following):
            named = following
        else:
            continue
        parser.error(
            f"--resume takes no value except auto, got {named!r}. Name the folder as "
            "train.output_dir=DIR, or give its config: DIR/config.yaml --resume."
        )
    return parser.parse_intermixed_args(words)


def _is_folder(word: str) -> bool:
    return bool(word) and Path(word).is_dir() and word not in packaged_configs()


def start(command: Command, config_file: str | None = None) -> int:
    """Run in `command.num_gpus` processes; return the exit code.

    Args:
        command: the arguments of the run.
        config_file: file to read the config from instead of `command.config`.

    Raises:
        ValueError: an input is wrong; nothing has run then.
    """
    needs = NEEDED_TO_EVALUATE if command.eval_only else _NEEDED_TO_TRAIN
    cfg = read_config(config_file or command.config, command.overrides, needs=needs)
    from sparsedet.engine.launch import check_processes, launch, resolve_device
    from sparsedet.resuming import require_weights
    from sparsedet.training import resolve_run

    with _log_to(_terminal()):
        resolve_run(cfg, evaluates=command.eval_only)
        require_weights(cfg.train, resume=command.resume)
    device_type = resolve_device(cfg.train.device)
    check_processes(command.num_gpus, device_type)
    make_folder(cfg.train.output_dir)
    try:
        return launch(
            run,
            (cfg, command),
            num_processes=command.num_gpus,
            device_type=device_type,
            say=print_error,
        )
    except KeyboardInterrupt:
        return 130


def make_folder(folder: str) -> None:
    """Create an output folder.

    Raises:
        ConfigError: the folder cannot be created.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"train.output_dir={folder} cannot be created ({str(error.strerror).lower()}: "
            f"{error.filename}). Set another folder."
        ) from error


def run(device: torch.device, cfg: Any, command: Command) -> int:
    """Train or evaluate in one of the processes; return the exit code."""
    from sparsedet import comm
    from sparsedet.agreement import require_agreement
    from sparsedet.engine.faults import BROKEN_OFF, REFUSED, allow_open_files
    from sparsedet.engine.launch import has_several_machines
    from sparsedet.engine.lock import locked
    from sparsedet.training import Job

    folder = Path(cfg.train.output_dir)
    origin = {"config": command.config, "overrides": list(command.overrides)}
    job, code = None, REFUSED
    allow_open_files()
    with ExitStack() as stack:
        try:
            stack.enter_context(_log_to(_terminal()))
            if comm.is_main_process():
                if not command.eval_only:
                    stack.enter_context(locked(folder))
                stack.enter_context(_log_to(_LogFile(folder / "log.txt", encoding="utf-8")))
            if has_several_machines():
                require_agreement(cfg)
            job = Job(
                cfg,
                device,
                resume=command.resume,
                eval_only=command.eval_only,
                accept_changes=command.accept_changes,
                origin=origin,
            )
            code = BROKEN_OFF
            found = job.evaluate_only() if command.eval_only else job.train()
        except BaseException as error:
            return _ended(error, job, otherwise=code)
        if isinstance(found, int):
            return 128 + found
        if comm.is_main_process():
            print(tables(found))
        return 0


def _ended(error: BaseException, job: Job | None, *, otherwise: int) -> int:
    """Report why the run ended; return the exit code."""
    from sparsedet import comm
    from sparsedet.child_signals import undisturbed
    from sparsedet.engine.peers import conclude

    with undisturbed(forget=True):
        _end_workers()
        kept = job.standing() if job is not None else ""
        if isinstance(error, Exception):
            return conclude(error, print_error, otherwise=otherwise, kept=kept)
        if isinstance(error, KeyboardInterrupt) and job is not None and comm.is_main_process():
            print_error(f"interrupted by a second Ctrl-C. {kept}".strip())
    raise error


def _end_workers() -> None:
    """Kill worker processes, even if they hang: otherwise the exit would wait for them."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join(_PATIENCE)


def tables(results: Mapping[str, Any]) -> str:
    """The main metrics with their names, and a row for each class."""
    from sparsedet.evaluation import class_table
    from sparsedet.evaluation.loop import main_metrics

    shown = main_metrics(results)
    tables = [format_table([list(shown), list(shown.values())], left=())]
    rows = results.get("details", {}).get("per_class", [])
    if any(row["boxes"] for row in rows):
        tables.append(class_table(rows))
    return "\n\n".join(tables)


@contextmanager
def _log_to(handler: logging.Handler) -> Iterator[None]:
    """Send the package's log lines to a handler; processes other than the main send only errors."""
    from sparsedet import comm

    root = logging.getLogger("sparsedet")
    before = root.level, root.propagate
    root.setLevel(logging.INFO if comm.is_main_process() else logging.ERROR)
    root.propagate = False
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.level, root.propagate = before
        root.removeHandler(handler)
        handler.close()


def _terminal() -> logging.Handler:
    """A handler for stderr; records with a traceback are left out and printed as `error: ...`."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not record.exc_info)
    return handler


class _LogFile(logging.FileHandler):
    """A log file; if it cannot be written, one message says so and the run continues."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            print_error(
                f"{self.baseFilename} cannot be written ({sys.exc_info()[1]}); training continues"
            )

    def close(self) -> None:
        with suppress(OSError):  # the buffer may still hold lines that could not be written
            super().close()
