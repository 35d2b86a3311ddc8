"""What the command lines of the procedural sets share."""

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

_logger = logging.getLogger("sparsedet.data.shapes")


def set_parser(name: str, description: str, *, train: int, val: int) -> argparse.ArgumentParser:
    """The command line of a set, with the options that all sets have but for the size.

    Args:
        name: of the set.
        description: what the command does.
        train: pictures for training, unless told otherwise.
        val: pictures for validation, unless told otherwise.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m sparsedet.data.{name}", description=description
    )
    parser.add_argument(
        "--output", default=f"datasets/{name}", help="folder (default: %(default)s)"
    )
    parser.add_argument("--train", type=int, default=train, help="pictures for training")
    parser.add_argument("--val", type=int, default=val, help="pictures for validation")
    parser.add_argument("--seed", type=int, default=0, help="of the training pictures")
    return parser


def write_as_told(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    options: Callable[[argparse.Namespace], Any],
    write: Callable[..., bool],
) -> int:
    """Writes the set that the arguments describe; returns the exit status.

    Args:
        parser: of `set_parser`, with `--size`.
        arguments: words of the command line; None = those of the process.
        options: what the pictures look like, from the parsed arguments.
        write: as `write_shapes`.
    """
    args = parser.parse_args(arguments)
    if len(args.size) > 2:
        parser.error(f"--size must be one or two numbers, got {len(args.size)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        written = write(
            args.output,
            num_train=args.train,
            num_val=args.val,
            seed=args.seed,
            options=options(args),
        )
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    done = "written" if written else "already there"
    _logger.info("%s: %d + %d pictures, %s", args.output, args.train, args.val, done)
    return 0
