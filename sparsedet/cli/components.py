"""List the components that a config can use, by family.

    sparsedet components
    sparsedet components scorer

To swap a component, override its name: model.scorer._target_=RandomScorer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sparsedet.cli.common import answer, make_parser
from sparsedet.config.naming import ConfigError, nearest
from sparsedet.tables import format_table


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and list."""
    parser = make_parser(__doc__, prog)
    parser.add_argument("family", nargs="?", help="list only this family")
    return answer(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ConfigError: there is no such family.
    """
    from sparsedet.registry import FAMILIES, find_component, list_components

    if args.family not in (None, *FAMILIES):
        raise ConfigError(f"There is no family '{args.family}'. {nearest(args.family, FAMILIES)}")
    rows = [
        [family, name, _what_it_is(name, find_component(name))]
        for family, names in list_components().items()
        if args.family in (None, family)
        for name in names
    ]
    print(format_table([["family", "component", "what it is"], *rows], left=(0, 1, 2)))


def _what_it_is(name: str, component: type) -> str:
    if name != component.__name__:
        return f"another name of {component.__name__}"
    return (component.__doc__ or "").strip().partition("\n")[0]
