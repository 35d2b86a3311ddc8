"""The command lines of the procedural sets."""

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

_logger = logging.getLogger("sparsedet.data.shapes")


def set_parser(name: str, description: str, *, train: int, val: int) -> argparse.ArgumentParser:
    """The command line of a set, with the options that all sets have; `--size` is not one of them.

    Args:
        name: name of the set.
        description: what the command does.
        train: default number of pictures for training.
        val: default number of pictures for validation.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m sparsedet.data.{name}", description=description
    )
    parser.add_argument(
        "--output", default=f"datasets/{name}", help="folder (default: %(default)s)"
    )
    parser.add_argument("--train", type=int, default=train, help="number of training pictures")
    parser.add_argument("--val", type=int, default=val, help="number of validation pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training pictures")
    return parser


def write_as_told(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    options: Callable[[argparse.Namespace], Any],
    write: Callable[..., bool],
) -> int:
    """Writes the set that the arguments describe; returns the exit status.

    Args:
        parser: the result of `set_parser`, with `--size` added.
        arguments: words of the command line; None = the arguments of the process.
        options: makes the options of the pictures from the parsed arguments.
        write: writes the set, with the arguments of `write_shapes`.
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
