"""Command line: `python -m sparsedet.data.haystack --output datasets/haystack`."""

import argparse
import sys
from collections.abc import Sequence

from sparsedet.data.haystack.scene import HaystackOptions
from sparsedet.data.haystack.write import write_haystack
from sparsedet.data.shapes.command import set_parser, write_as_told


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the set that the arguments describe; returns the exit status."""
    parser = set_parser("haystack", "Write large pictures with small objects.", train=200, val=50)
    defaults = HaystackOptions()
    parser.add_argument(
        "--size", type=int, nargs="+", default=[1024], help="side, or height and width, in pixels"
    )
    parser.add_argument(
        "--objects", type=int, default=defaults.objects, help="number of objects (%(default)s)"
    )
    parser.add_argument(
        "--diameters",
        type=int,
        nargs=2,
        default=list(defaults.diameters),
        metavar=("LEAST", "MOST"),
        help="diameters of the objects in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--clutter",
        type=float,
        default=defaults.clutter,
        help="unlabeled look-alikes per object (default: %(default)s)",
    )
    parser.add_argument(
        "--area-share",
        type=float,
        default=defaults.area_share,
        help="share of the picture where objects may be (default: %(default)s)",
    )
    parser.add_argument(
        "--grain",
        type=int,
        default=defaults.grain,
        help="width of the lines that define the class, in pixels (default: %(default)s)",
    )
    return write_as_told(parser, arguments, _options, write_haystack)


def _options(args: argparse.Namespace) -> HaystackOptions:
    return HaystackOptions(
        size=(args.size[0], args.size[-1]),
        objects=args.objects,
        diameters=tuple(args.diameters),
        clutter=args.clutter,
        area_share=args.area_share,
        grain=args.grain,
    )


if __name__ == "__main__":
    sys.exit(main())
