"""Command line: `python -m sparsedet.data.shapes --output datasets/shapes`."""

import argparse
import sys
from collections.abc import Sequence

from sparsedet.data.shapes.command import set_parser, write_as_told
from sparsedet.data.shapes.files import write_shapes
from sparsedet.data.shapes.scene import ShapesOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the set that the arguments describe; returns the exit status."""
    parser = set_parser("shapes", "Write the procedural set of shapes.", train=800, val=200)
    defaults = ShapesOptions()
    parser.add_argument(
        "--size", type=int, nargs="+", default=[160], help="side, or height and width, in pixels"
    )
    parser.add_argument(
        "--objects", type=float, default=defaults.objects, help="mean number of objects"
    )
    parser.add_argument("--scale", type=float, default=defaults.scale, help="factor on the sizes")
    parser.add_argument(
        "--clutter", type=float, default=defaults.clutter, help="share of clutter, 0 to 1"
    )
    parser.add_argument(
        "--scene", default=defaults.scene, help="kind of pictures: mixed, sparse or dense"
    )
    parser.add_argument("--gray", action="store_true", help="draw without color")
    return write_as_told(parser, arguments, _options, write_shapes)


def _options(args: argparse.Namespace) -> ShapesOptions:
    return ShapesOptions(
        size=(args.size[0], args.size[-1]),
        objects=args.objects,
        scale=args.scale,
        clutter=args.clutter,
        scene=args.scene,
        gray=args.gray,
    )


if __name__ == "__main__":
    sys.exit(main())
