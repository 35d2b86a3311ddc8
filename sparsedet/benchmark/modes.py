"""The modes by name, and running one of them from words as on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from sparsedet.allocator import add_allocator
from sparsedet.benchmark import (
    dataloader,
    deploy,
    encoder,
    evaluation,
    gpu_op,
    large,
    model,
    op,
    train_step,
)
from sparsedet.benchmark.cases import positive
from sparsedet.benchmark.report import Record, Row, environment
from sparsedet.config import trusting

MODES = {
    "op": op,
    "encoder": encoder,
    "model": model,
    "large": large,
    "deploy": deploy,
    "train-step": train_step,
    "dataloader": dataloader,
    "eval": evaluation,
    "gpu-op": gpu_op,
}
"""Modules with ``add_arguments(parser)``, ``run(args)`` and ``table(result)``."""


def parser(name: str) -> argparse.ArgumentParser:
    """The command line of a mode."""
    mode = MODES[name]
    made = argparse.ArgumentParser(
        prog=f"sparsedet benchmark {name}",
        description=mode.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode.add_arguments(made)
    add = made.add_argument
    add("--trust-config", action="store_true", help="let a .yaml config call any Python code")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's)")
    add("--seconds", type=float, default=10.0, help="shortest duration of the rounds (%(default)s)")
    add(
        "--rounds", type=int, default=5, metavar="N", help="smallest number of rounds (%(default)s)"
    )
    add(
        "--warm-up",
        type=int,
        default=1,
        metavar="N",
        help="rounds before the timed ones (%(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="also write the figures here")
    add_allocator(made)
    return made


def run_mode(words: Sequence[str]) -> Row:
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
    print(" ".join(f"{key}={value}" for key, value in facts.items()), flush=True)
    head = {"mode": words[0], "command": list(words), "environment": facts}
    args.record = Record(args.json, head)
    with trusting(args.trust_config):
        return args.record.save(MODES[words[0]].run(args))


def failures(result: Row) -> bool:
    """Whether something that a mode was to measure failed."""
    return any("error" in row for row in result["rows"])


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {device} cannot be used here: {reason}") from error
