r"""Train a config at every point of a grid of overrides, with several seeds, and tabulate results.

    sparsedet sweep-config CONFIG --grid model.selector.keep_ratio=0.1,0.3 \
        model.criterion.unmatched.0.weight=0.5,1.5 --seeds 3 --output DIR key=value
    sparsedet sweep-config ... --table                     only make the table of finished runs
    sparsedet sweep-config ... --script slurm > array.sh   a job for each run

The runs are trained one after the other, each in its own folder in DIR. The same command resumes
an interrupted sweep: it skips finished runs and resumes a stopped run from its last checkpoint. If
a run fails, the others still run.
`ablation.json` has the metrics of every run. The table, also in `ablation.md`, has a line for each
point: mean (lowest to highest) over the seeds, AP in percent. `report.html` shows the runs side by
side. Without --grid, the config is trained once with each seed.
Exit codes: 0 done; 1 a run failed; 2 an input is wrong (one sentence says which); 128 + n stopped
by signal n.
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sparsedet.cli.common import (
    add_config,
    answer,
    check_folder,
    make_parser,
    print_error,
    split_overrides,
    take_config,
)
from sparsedet.config import ConfigError, read_config
from sparsedet.tables import format_table

if TYPE_CHECKING:
    from sparsedet.ablation import Run

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add_config(parser)
    add = parser.add_argument
    add("--grid", nargs="+", default=[], metavar="KEY=A,B", help="keys, each with its values")
    add("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1 (%(default)s)")
    add("--output", type=Path, metavar="DIR", help="default: train.output_dir with '_grid' added")
    add("--num-gpus", type=int, default=1, metavar="N", help="processes for each run")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", type=int, metavar="I", help="only run I, counted from 0")
    what.add_argument("--table", action="store_true", help="only make the table; train nothing")
    what.add_argument(
        "--script", choices=("slurm", "torchrun"), help="print a script of all runs; train nothing"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Train the runs that are not finished; print and write the table.

    Raises:
        ValueError: an input is wrong; nothing has been trained then.
    """
    grid, more = _grid_and_overrides(args.grid)
    args.words = [*args.words, *more]
    take_config(args)
    from sparsedet import ablation

    with _each_line_once():
        output = args.output or Path(f"{_output_dir(args)}_grid")
        runs = ablation.plan(ablation.read_grid(grid), args.seeds, output, args.overrides)
        _check(args, runs, output)
    if args.script:
        print(_script(args, grid, runs, output), end="")
        return 0
    chosen = runs if args.only is None else [runs[args.only]]
    failed, stopped = {}, None
    if not args.table:
        report = partial(print, flush=True)
        train = partial(_train, args)
        failed, stopped = ablation.run_missing(args.config_file, chosen, train, report)
    if stopped is None and args.only is None:
        rows = ablation.collect(args.config_file, runs)
        ablation.write_table(output, args.config_file, rows)
        print(format_table(ablation.table(rows), left=range(len(rows[0]["point"]))))
        print(output / "ablation.json")
        _report(output, runs)
    return stopped or int(bool(failed))


def _report(output: Path, runs: Sequence[Run]) -> None:
    """Write the report of the runs that have begun; the table does not depend on it."""
    from sparsedet.report.runs import is_run, write_report

    begun = [run.folder for run in runs if is_run(run.folder)]
    if not begun:
        return
    try:
        print(write_report(begun, output / "report.html").path)
    except Exception as error:
        print_error(
            f"the report could not be written ({error}). Fix this, then run: sparsedet report "
            f"{output}"
        )


def _grid_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Axes of the grid, and overrides of all runs; a key with a single value is an override."""
    others, overrides = split_overrides(words)
    if others:
        raise ConfigError(f"--grid must be key=value,value,..., got {others[0]!r}.")
    from sparsedet.ablation import read_grid

    axes = [word for word in overrides if len(next(iter(read_grid([word]).values()))) > 1]
    return axes, [word for word in overrides if word not in axes]


def _output_dir(args: argparse.Namespace) -> str:
    return read_config(args.config_file, args.overrides).train.output_dir


@contextmanager
def _each_line_once() -> Iterator[None]:
    """Log what reading a config reports once, not for every run."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        return line not in said and not said.add(line)

    logger = logging.getLogger("sparsedet.config.overrides")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def _check(args: argparse.Namespace, runs: Sequence[Run], output: Path) -> None:
    """Check every run of the grid before the first one starts."""
    from sparsedet.ablation import finished

    if args.only is not None and not 0 <= args.only < len(runs):
        raise ConfigError(f"--only must be from 0 to {len(runs) - 1}, got {args.only}.")
    if args.num_gpus < 1:
        raise ConfigError(f"--num-gpus must be at least 1, got {args.num_gpus}.")
    if not args.script:
        check_folder(output)
    for each in runs:
        if each.seed == 0:
            read_config(args.config_file, each.overrides)
    done = [finished(each, args.config_file) is not None for each in runs]
    if args.table and not any(done):
        raise ConfigError(
            f"No run of this grid is finished in {output}, so there is no table. Name the --output "
            "of the sweep, or leave --table out to train the runs."
        )


def _script(
    args: argparse.Namespace, grid: Sequence[str], runs: Sequence[Run], output: Path
) -> str:
    from sparsedet.ablation import slurm_script, torchrun_script

    trust = ["--trust-config"] if args.trust_config else []
    if args.script == "torchrun":
        return torchrun_script([args.config_file, *trust], runs, args.num_gpus)
    command = ["sparsedet", "sweep-config", args.config_file, *(["--grid", *grid] if grid else ())]
    command += trust
    command += ["--seeds", str(args.seeds), "--output", str(output)]
    command += ["--num-gpus", str(args.num_gpus), *args.overrides]
    return slurm_script(command, runs, output, args.num_gpus)


def _train(args: argparse.Namespace, run: Run) -> int:
    """Run `sparsedet train` in a new process; return its exit code as a shell reports it."""
    command = [sys.executable, "-m", "sparsedet", "train", args.config_file, "--resume=auto"]
    command += ["--num-gpus", str(args.num_gpus)] if args.num_gpus != 1 else []
    command += ["--trust-config"] if args.trust_config else []
    with subprocess.Popen([*command, *run.overrides]) as child, _signals_to(child):
        code = child.wait()
    return 128 - code if code < 0 else code


@contextmanager
def _signals_to(child: subprocess.Popen) -> Iterator[None]:
    """Forward signals to the child; Ctrl-C reaches it directly."""

    def forward(number: int, _: object) -> None:
        if number != signal.SIGINT:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, *_FORWARDED)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
