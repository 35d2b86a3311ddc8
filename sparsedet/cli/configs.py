"""List the configs that come with the package.

    sparsedet configs
    sparsedet configs focus r50          only lines with both words
    sparsedet configs --json

keep: share of tokens that the encoder keeps, averaged over its layers (for adaptive models, the
upper limit). AP: on COCO val2017, as published (not measured here). params: trainable parameters
in millions. A name with released/ is the model of published weights, without a training recipe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from sparsedet.cli.common import answer, make_list_parser, names_with
from sparsedet.config import ConfigError
from sparsedet.config.packaged import config_index
from sparsedet.tables import format_table

_HEAD = ["method", "config", "backbone", "keep", "epochs", "AP", "params M"]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and list."""
    return answer(run, make_list_parser(__doc__, prog).parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ConfigError: no config has all of the words.
    """
    index = config_index()
    rows = {name: _row(name, entry) for name, entry in index.items()}
    found = names_with(rows, args.words)
    if not found:
        raise ConfigError(f"No config has {' and '.join(args.words)} in its line. Use fewer words.")
    if args.json:
        print(json.dumps({name: index[name] for name in found}, indent=2))
    else:
        print(format_table([_HEAD, *(rows[name] for name in found)], left=(0, 1, 2)))


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    keep, parameters = entry["keep_ratio"], entry["parameters"]
    return [
        entry["method"],
        name,
        entry["backbone"],
        "-" if keep is None else "all" if keep == 1 else f"{keep:.2g}",
        str(entry["epochs"] or "-"),
        str(entry["published_ap"] or "-"),
        f"{parameters / 1e6:.1f}",
    ]
