"""The modes by name, and running one of them from words as on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsedet.allocator import add_allocator
from sparsedet.config import trusting

from . import dataloader, deploy, encoder, evaluation, gpu, large, model, op, swap, train_step
from .cases import positive
from .report import Record, Table, environment, print_facts


@dataclass(frozen=True)
class Mode:
    """One thing to measure.

    Attributes:
        add_arguments: adds its options to a parser.
        run: measures, prints and returns the figures.
        tables: the figures as tables.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    tables: Sequence[Callable[[dict[str, Any]], Table]]


MODES = {
    name: Mode(each.add_arguments, each.run, getattr(each, "TABLES", (each.table,)))
    for name, each in {
        "op": op,
        "encoder": encoder,
        "model": model,
        "large": large,
        "deploy": deploy,
        "train-step": train_step,
        "dataloader": dataloader,
        "eval": evaluation,
        "gpu-op": gpu,
        "swap": swap,
    }.items()
}


def parser(name: str) -> argparse.ArgumentParser:
    """The command line of a mode."""
    mode = MODES[name]
    made = argparse.ArgumentParser(
        prog=f"sparsedet benchmark {name}",
        description=sys.modules[mode.run.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode.add_arguments(made)
    add = made.add_argument
    add("--trust-config", action="store_true", help="let a .yaml config call any Python code")
    add("--threads", type=positive, metavar="N", help="of the CPU (default: torch's)")
    add("--seconds", type=float, default=10.0, help="for what is run in turns (%(default)s)")
    add("--rounds", type=int, default=5, metavar="N", help="at least (%(default)s)")
    add("--warm-up", type=int, default=1, metavar="N", help="rounds before (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write the figures here")
    add_allocator(made)
    return made


def run_mode(words: Sequence[str]) -> dict[str, Any]:
    """Run one mode; what it measured with what that depends on.

    Raises:
        ValueError: an input is wrong.
    """
    args = parser(words[0]).parse_intermixed_args(words[1:])
    if args.rounds < 1 or args.warm_up < 0 or not args.seconds >= 0:
        raise ValueError(
            "--rounds must be at least 1, --warm-up and --seconds at least 0, got "
            f"{args.rounds}, {args.warm_up} and {args.seconds:g}."
        )
    _check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    facts = environment(args.device)
    print_facts(facts)
    args.record = Record(
        args.json, {"mode": words[0], "command": list(words), "environment": facts}
    )
    with trusting(args.trust_config):
        return args.record.save(MODES[words[0]].run(args))


def failures(result: dict[str, Any]) -> bool:
    """Whether something that a mode was to measure failed."""
    return any("error" in row or "errors" in row for row in result["rows"])


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {device} cannot be used here: {reason}") from error
