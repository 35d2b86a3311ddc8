"""Command line: `python -m sparsedet.data.shapes --output datasets/shapes`."""

import argparse
import logging
import sys
from collections.abc import Sequence

from .files import write_shapes
from .scene import ShapesOptions

_logger = logging.getLogger("sparsedet.data.shapes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the set that the arguments describe; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsedet.data.shapes", description="Writes the procedural set of shapes."
    )
    defaults = ShapesOptions()
    parser.add_argument("--output", default="datasets/shapes", help="folder (default: %(default)s)")
    parser.add_argument("--train", type=int, default=800, help="pictures for training")
    parser.add_argument("--val", type=int, default=200, help="pictures for validation")
    parser.add_argument("--seed", type=int, default=0, help="of the training pictures")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[160], help="side, or height and width, in pixels"
    )
    parser.add_argument("--objects", type=float, default=defaults.objects, help="mean number")
    parser.add_argument("--scale", type=float, default=defaults.scale, help="factor on sizes")
    parser.add_argument("--clutter", type=float, default=defaults.clutter, help="0 to 1")
    parser.add_argument("--scene", default=defaults.scene, help="mixed, sparse or dense")
    parser.add_argument("--gray", action="store_true", help="without color")
    args = parser.parse_args(arguments)
    if len(args.size) > 2:
        parser.error(f"--size must be one or two numbers, got {len(args.size)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = ShapesOptions(
            size=(args.size[0], args.size[-1]),
            objects=args.objects,
            scale=args.scale,
            clutter=args.clutter,
            scene=args.scene,
            gray=args.gray,
        )
        written = write_shapes(
            args.output, num_train=args.train, num_val=args.val, seed=args.seed, options=options
        )
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    done = "written" if written else "already there"
    _logger.info("%s: %d + %d pictures, %s", args.output, args.train, args.val, done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
