"""List the published weights that can be used by name.

    sparsedet weights
    sparsedet weights focus r50          only lines with both words
    sparsedet weights --json             with URLs, and where to put a file downloaded by hand

AP: on COCO val2017, as published (not measured here). classes: in the published file (of 91, COCO's
80 are kept). MB: size of the download, or on disk once it is here. here: "yes" if the weights are
in the cache, which is the folder SPARSEDET_HOME or, if that is not set, ~/.cache/sparsedet. from:
the host of the file; "by hand" means that only a browser can download it, and drive.google.com
needs `pip install gdown`.
A name without its epochs means the longest training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from sparsedet.cli.common import answer, make_list_parser, names_with
from sparsedet.config import ConfigError
from sparsedet.tables import format_table
from sparsedet.weights import Published, published_weights
from sparsedet.weights.places import Place

_HEAD = ["name", "AP", "classes", "MB", "licence", "here", "from"]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and list."""
    return answer(run, make_list_parser(__doc__, prog).parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ConfigError: no weights have all of the words.
    """
    table = published_weights()
    rows = {name: _row(entry) for name, entry in table.items()}
    found = names_with(rows, args.words)
    if not found:
        raise ConfigError(f"No line has {' and '.join(args.words)}. Use fewer words.")
    if args.json:
        print(json.dumps([_facts(table[name]) for name in found], indent=2))
    else:
        print(format_table([_HEAD, *(rows[name] for name in found)], left=(0, 4, 5, 6)))


def _row(entry: Published) -> list[str]:
    here = Place(entry).converted
    size = here.stat().st_size / 1e6 if here.is_file() else entry.megabytes
    return [
        entry.name,
        "-" if entry.ap is None else f"{entry.ap:.1f}",
        str(entry.classes),
        "-" if size is None else f"{size:.0f}",
        entry.licence,
        "yes" if here.is_file() else "no",
        "by hand" if entry.by_hand else entry.host,
    ]


def _facts(entry: Published) -> dict[str, object]:
    place = Place(entry)
    here = str(place.converted) if place.converted.is_file() else None
    return {**asdict(entry), "address": entry.where, "put_at": str(place.by_hand), "here": here}
