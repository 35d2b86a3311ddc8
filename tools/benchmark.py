"""Measure speed and memory, always side by side in the same run.

    tools/benchmark.py op --threads 1 2          deformable attention against other forms of it
    tools/benchmark.py encoder --keep-ratio dense 0.1 0.3 0.5      time beside GFLOPs
    tools/benchmark.py model --config-file A B --image-size 640x640 1280x1280 --json FILE

docs/performance.md says how each mode measures. Weights are random, pictures are noise, nothing is
fetched. Exit codes: 0 done; 1 a section of a suite failed; 2 something given is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks import dataloader, encoder, evaluation, model, op, train_step
from benchmarks.report import Table, environment, print_facts, write_json


@dataclass(frozen=True)
class Mode:
    """One thing to measure.

    Attributes:
        add_arguments: adds its options to a parser.
        run: measures, prints and returns the figures.
        table: the figures as a table.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    table: Callable[[dict[str, Any]], Table]


MODES = {
    name: Mode(each.add_arguments, each.run, each.table)
    for name, each in {
        "op": op,
        "encoder": encoder,
        "model": model,
        "train-step": train_step,
        "dataloader": dataloader,
        "eval": evaluation,
    }.items()
}


def parser(name: str) -> argparse.ArgumentParser:
    """The command line of a mode."""
    mode = MODES[name]
    made = argparse.ArgumentParser(
        prog=f"benchmark.py {name}",
        description=sys.modules[mode.run.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode.add_arguments(made)
    add = made.add_argument
    add("--threads", type=int, metavar="N", help="of the CPU (default: torch's)")
    add("--seconds", type=float, default=10.0, help="for what is run in turns (%(default)s)")
    add("--rounds", type=int, default=5, metavar="N", help="at least (%(default)s)")
    add("--warm-up", type=int, default=1, metavar="N", help="rounds before (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write the figures here")
    return made


def run_mode(words: Sequence[str]) -> dict[str, Any]:
    """Run one mode; what it measured with what that depends on.

    Raises:
        ValueError: something given is wrong.
    """
    args = parser(words[0]).parse_intermixed_args(words[1:])
    if args.threads:
        torch.set_num_threads(args.threads)
    facts = environment(args.device)
    print_facts(facts)
    figures = MODES[words[0]].run(args)
    result = {"mode": words[0], "command": list(words), "environment": facts, **figures}
    if args.json:
        write_json(args.json, result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run one mode; return the exit code."""
    try:
        run_mode(sys.argv[1:] if argv is None else argv)
    except (ValueError, OSError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
