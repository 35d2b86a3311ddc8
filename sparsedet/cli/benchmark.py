"""Measure speed and memory; everything that is compared is measured in the same run.

    sparsedet benchmark op --threads 1 --scaling 2       implementations of deformable attention
    sparsedet benchmark encoder --keep-ratio dense 0.1 0.3 0.5             time and GFLOPs
    sparsedet benchmark model --config-file A B --image-size 640x640 1280x1280 --json FILE
    sparsedet benchmark large --image-size 2560x2560 --look-ratio 0.1      systems on large pictures
    sparsedet benchmark deploy --image-size 640x640 --files DIR            eager, compiled, exported
    sparsedet benchmark train-step | dataloader | eval | gpu-op ...
    sparsedet benchmark MODE --help                                        options of a mode
    sparsedet benchmark --suite cpu --json FILE --fill PAGE                the tables of a page
    sparsedet benchmark --suite gpu --quick                                only the main tables
    sparsedet benchmark --suite deploy --weights model_best.pth --files DIR --fill PAGE

docs/performance.md says how each mode measures. Weights are random, pictures are noise, and nothing
is downloaded. Exit codes: 0 done; 1 a measurement failed; 2 an input is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsedet.allocator import add_allocator, use_allocator
from sparsedet.cli.common import answer, make_parser
from sparsedet.config.naming import nearest

MODES = ("op", "encoder", "model", "large", "deploy", "train-step", "dataloader", "eval", "gpu-op")
SUITES = ("cpu", "gpu", "large", "deploy")


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a suite's command line."""
    made = make_parser(__doc__, prog)
    add = made.add_argument
    add("--suite", choices=SUITES, required=True, help="measure all sections of a suite")
    add("--quick", action="store_true", help="only the main sections, with few rounds")
    add("--only", nargs="+", default=[], metavar="SECTION", help="run only these sections")
    add("--device", help="run on this device instead of the suite's")
    add("--weights", metavar="FILE", help="deploy: a trained model instead of the photos config")
    add("--files", metavar="DIR", help="deploy: keep exported files here and reuse them")
    add("--json", type=Path, metavar="FILE", help="write the results here after every section")
    add(
        "--fill",
        type=Path,
        nargs="+",
        default=[],
        metavar="PAGE",
        help="put the tables into these pages",
    )
    return made


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run a mode or a suite; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        return answer(_mode, argparse.Namespace(words=words))
    return answer(_suite, parser(prog).parse_args(words))


def _mode(args: argparse.Namespace) -> int:
    name = args.words[0]
    if name not in MODES:
        raise ValueError(f"There is no mode {name!r}. {nearest(name, MODES)}")
    _allocate(args.words)
    from sparsedet.benchmark.modes import failures, run_mode

    return int(failures(run_mode(args.words)))


def _allocate(words: Sequence[str]) -> None:
    """Apply `--allocator` of a mode before anything heavy is imported."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_allocator(early)
    use_allocator(early.parse_known_args(words)[0].allocator)


def _suite(args: argparse.Namespace) -> int:
    from sparsedet.benchmark.suites import fill, run_suite

    suite = run_suite(args)
    for each in args.fill:
        fill(suite, each)
    return int(any(section["status"] == "failed" for section in suite["sections"]))
