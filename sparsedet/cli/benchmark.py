"""Measure speed and memory; everything that is compared is measured in the same run.

    sparsedet benchmark op --threads 1 --scaling 2       implementations of deformable attention
    sparsedet benchmark encoder --keep-ratio dense 0.1 0.3 0.5             time and GFLOPs
    sparsedet benchmark model --config-file A B --image-size 640x640 1280x1280 --json FILE
    sparsedet benchmark large --image-size 2560x2560 --look-ratio 0.1      systems on large pictures
    sparsedet benchmark deploy --image-size 640x640 --files DIR            eager, compiled, exported
    sparsedet benchmark train-step | dataloader | eval | gpu-op | swap ...
    sparsedet benchmark MODE --help                                        options of a mode
    sparsedet benchmark --suite cpu --json FILE --markdown PAGE --plot PICTURE
    sparsedet benchmark --suite gpu --quick                                only the main tables
    sparsedet benchmark --suite large --json FILE --fill PAGE --plot PICTURE
    sparsedet benchmark --suite deploy --weights model_best.pth --files DIR --json FILE
    sparsedet benchmark --render FILE --markdown PAGE --plot PICTURE       from a suite's JSON

docs/performance.md says how each mode measures. Weights are random, pictures are noise, and nothing
is downloaded. Exit codes: 0 done; 1 a measurement failed; 2 an input is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsedet.allocator import add_allocator, use_allocator
from sparsedet.cli.common import answer, make_parser
from sparsedet.config.naming import nearest

MODES = ("op", "encoder", "model", "large", "deploy", "train-step", "dataloader", "eval", "gpu-op")
MODES += ("swap",)
SUITES = ("cpu", "gpu", "large", "deploy")


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a suite's command line."""
    made = make_parser(__doc__, prog)
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", choices=SUITES, help="measure all sections of a suite")
    what.add_argument("--render", type=Path, metavar="JSON", help="show the results of a suite")
    add = made.add_argument
    add("--quick", action="store_true", help="only the main sections, with few rounds")
    add("--only", nargs="+", default=[], metavar="SECTION", help="run only these sections")
    add("--budget-s", type=float, metavar="N", help="start no section after N seconds")
    add("--device", help="run on this device instead of the suite's")
    add("--naive-library", metavar="FILE", help="for the section that measures the op on a GPU")
    add("--weights", metavar="FILE", help="deploy: a trained model instead of the photos config")
    add("--files", metavar="DIR", help="deploy: keep exported files here and reuse them")
    add("--dry-run", action="store_true", help="only try everything: tiny images, one round")
    add("--json", type=Path, metavar="FILE", help="write the results here after every section")
    add("--resume", action="store_true", help="keep the results that are already in --json")
    add("--markdown", type=Path, metavar="FILE", help="write the tables here as Markdown")
    add(
        "--fill",
        type=Path,
        nargs="+",
        default=[],
        metavar="PAGE",
        help="put the tables into these pages",
    )
    add("--plot", type=Path, metavar="FILE", help="plot time and memory here (needs matplotlib)")
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
    from sparsedet.benchmark.modes import run_mode
    from sparsedet.benchmark.pages import draw, fill, page
    from sparsedet.benchmark.suites import run_suite

    suite = _read_suite(args.render) if args.render else run_suite(args, run_mode)
    if args.markdown:
        args.markdown.write_text(page(suite), encoding="utf-8")
    for each in args.fill:
        fill(suite, each)
    if args.plot:
        draw(suite, args.plot)
    return int(any(section["status"] == "failed" for section in suite["sections"]))


def _read_suite(path: Path) -> dict[str, Any]:
    from sparsedet.benchmark.report import read_json

    suite = read_json(path)
    if not isinstance(suite, dict) or "sections" not in suite:
        raise ValueError(
            f"--render {path} is not the result of a suite. Name a file that --suite --json wrote."
        )
    return suite
