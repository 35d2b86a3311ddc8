"""Write the report of a training run, or of several side by side: one HTML file.

    sparsedet report output/quickstart
    sparsedet report output/a output/b --output compared.html
    sparsedet report output/quickstart_grid        all runs in this folder

DIR is the train.output_dir of a run, which need not have ended, or a folder with runs in it.
The report needs no network and opens in a browser from disk. It goes to report.html in the folder
of the run, or in the folder that contains all runs. Its numbers come from the files that `train`,
`eval`, `analyze`, `sweep` and `check-data` have written; nothing is measured. The page names what
is missing, and the command that writes it.
Exit codes: 0 done; 2 an input is wrong (one sentence says which).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sparsedet.cli.common import add_trust, answer, check_output, make_parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    parser = make_parser(__doc__, prog)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder of a run, or of runs")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="F.html",
        help="the page (default: report.html in DIR, or in the folder that contains all DIRs)",
    )
    add_trust(parser)
    return answer(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        ValueError: a folder has no run in it, or the page cannot be written there.
    """
    if args.output is not None:
        check_output(args.output, ".html")
    from sparsedet.report.runs import write_report

    written = write_report(args.folders, args.output)
    runs = f"{written.runs} run{'' if written.runs == 1 else 's'}"
    print(f"{written.path}: {runs}, {written.num_bytes / 1e6:.2f} MB")
