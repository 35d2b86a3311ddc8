"""Train and evaluate a detector.

    sparsedet train quickstart
    sparsedet train CONFIG train.output_dir=DIR optimizer.lr=1e-4 ...
    sparsedet train DIR/config.yaml --resume
    torchrun --nproc-per-node 8 -m sparsedet train CONFIG

CONFIG is a name that `sparsedet configs` lists, or a .py or .yaml file.
Exit codes: 0 done; 1 the loss was not finite; 2 something given is wrong (one sentence says what);
128 + n stopped by signal n with a checkpoint to go on from.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsedet.cli.common import (
    add_config,
    answer,
    make_parser,
    print_error,
    take_config,
)
from sparsedet.config import read_config
from sparsedet.tables import format_table

if TYPE_CHECKING:
    import torch

_NEEDS = (
    "model._target_",
    "optimizer._target_",
    "lr_multiplier._target_",
    "dataloader.train",
    "dataloader.test",
    "dataloader.evaluator",
    "train.output_dir",
)


@dataclass(frozen=True)
class Command:
    """What was asked for, beside the config itself.

    Attributes:
        config: name or file of the config.
        overrides: changes of it.
        resume: go on from the last checkpoint.
        eval_only: do not train.
        num_gpus: processes to start on this machine.
    """

    config: str
    overrides: tuple[str, ...] = ()
    resume: bool = False
    eval_only: bool = False
    num_gpus: int = 1


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and train."""
    parser = make_parser(__doc__, prog)
    add_config(parser)
    add_running(parser)
    parser.add_argument("--eval-only", action="store_true", help="the same as `sparsedet eval`")
    return answer(_train, parser.parse_intermixed_args(argv))


def _train(args: argparse.Namespace) -> int:
    take_config(args)
    return start(
        Command(args.config_file, tuple(args.overrides), args.resume, args.eval_only, args.num_gpus)
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and evaluation share."""
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the output folder"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes to start on this machine"
    )


def start(command: Command, config_file: str | None = None) -> int:
    """Run in as many processes as asked for; return the exit code.

    Args:
        command: what was asked for.
        config_file: where its config is, if not under its own name.

    Raises:
        ValueError: something given is wrong, and nothing has run.
    """
    from sparsedet.engine.launch import together

    return together(lambda: _start(command, config_file), print_error)


def _start(command: Command, config_file: str | None) -> int:
    from sparsedet.engine.faults import REFUSED
    from sparsedet.engine.launch import check_processes, is_launched, launch, resolve_device
    from sparsedet.engine.peers import conclude
    from sparsedet.training import resolve_run

    try:
        cfg = read_config(config_file or command.config, command.overrides, needs=_NEEDS)
        resolve_run(cfg, evaluates=command.eval_only)
        device_type = resolve_device(cfg.train.device)
        check_processes(command.num_gpus, device_type)
        Path(cfg.train.output_dir).mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        if is_launched():
            return conclude(error, print_error, otherwise=REFUSED)
        raise
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


def run(device: torch.device, cfg: Any, command: Command) -> int:
    """Train or evaluate, in one of the processes; returns the exit code."""
    from sparsedet import comm
    from sparsedet.engine.faults import BROKEN_OFF, REFUSED
    from sparsedet.engine.peers import conclude
    from sparsedet.training import Job

    origin = {"config": command.config, "overrides": list(command.overrides)}
    code = REFUSED
    with _logging(Path(cfg.train.output_dir)):
        try:
            job = Job(
                cfg, device, resume=command.resume, eval_only=command.eval_only, origin=origin
            )
            code = BROKEN_OFF
            found = job.evaluate_only() if command.eval_only else job.train()
            if isinstance(found, int):
                return 128 + found
            if comm.is_main_process():
                print(_tables(found))
            return 0
        except Exception as error:
            return conclude(error, print_error, otherwise=code)


def _tables(results: Mapping[str, Any]) -> str:
    """The main numbers under their names, and a row for each class."""
    from sparsedet.evaluation import class_table
    from sparsedet.evaluation.loop import main_metrics

    shown = main_metrics(results)
    tables = [format_table([list(shown), list(shown.values())], left=())]
    rows = results.get("details", {}).get("per_class", [])
    if any(row["boxes"] for row in rows):
        tables.append(class_table(rows))
    return "\n\n".join(tables)


@contextmanager
def _logging(output_dir: Path) -> Iterator[None]:
    """Log lines to stderr and `log.txt`, of the main process alone."""
    from sparsedet import comm

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
