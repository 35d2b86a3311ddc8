"""What the subcommands share: their parser, the config and its changes, errors as one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsedet.allocator import use_allocator
from sparsedet.config import ConfigError, trusting
from sparsedet.files import require_writable

if TYPE_CHECKING:
    from sparsedet.data import AnnotatedDataset

_OVERRIDE = re.compile(r"\+{0,2}(?!-)[\w.\[\]-]+\s*=")


def make_parser(doc: str | None, prog: str | None) -> argparse.ArgumentParser:
    """A parser that shows the docstring of its module as it stands.

    Args:
        doc: the docstring.
        prog: how the command was called; None = by the name of the script.
    """
    return argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def make_list_parser(doc: str | None, prog: str | None) -> argparse.ArgumentParser:
    """A parser of a command that lists what has all of some words."""
    parser = make_parser(doc, prog)
    parser.add_argument("words", nargs="*", metavar="WORD", help="show lines with all of these")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def add_config(parser: argparse.ArgumentParser, *others: str) -> None:
    """Add the config and, at the end of the line, its changes.

    Args:
        parser: gets `--config-file` and `words`, see :func:`take_config`.
        others: what else `words` may be, such as "IMAGE".
    """
    parser.add_argument(
        "--config-file",
        metavar="F",
        help="the same as CONFIG: a name that `sparsedet configs` lists, or a .py or .yaml file",
    )
    metavar = "|".join([*others, "key=value"])
    parser.add_argument(
        "words", nargs="*", metavar=f"CONFIG {metavar}", help="the config, and changes of it"
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the permission that :func:`answer` gives to configs from files."""
    parser.add_argument(
        "--trust-config",
        action="store_true",
        help="let a .yaml config, or one in a checkpoint, call any code (a .py config always may)",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add a data set and how to read it: the arguments of `sparsedet.data.open_dataset`."""
    parser.add_argument("source", metavar="SOURCE", help="file or folder of annotations")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add how to read a data set."""
    add = parser.add_argument
    add("--images", metavar="DIR", help="folder of the pictures, where SOURCE does not say it")
    add("--split", metavar="NAME", help="which part of a set that has several: train, val, ...")
    add("--format", default="auto", metavar="F", help="coco, voc or yolo (default: by SOURCE)")
    add("--skip-broken", action="store_true", help="leave out pictures that cannot be read")


def open_source(args: argparse.Namespace) -> AnnotatedDataset:
    """The data set of :func:`add_source`, read and checked.

    Raises:
        DatasetError: it cannot be used.
    """
    from sparsedet.data import open_dataset

    logging.basicConfig(format="%(message)s")  # what is left out is said in warnings
    return open_dataset(
        args.source,
        args.images,
        split=args.split,
        format=args.format,
        skip_broken_images=args.skip_broken,
        pictures=None,
    )


def take_config(args: argparse.Namespace, *, others: bool = False) -> None:
    """Set `config_file`, `overrides` and, of what else was given, `words`.

    Args:
        args: as parsed; changed in place.
        others: whether words that are no changes of the config mean something.

    Raises:
        ConfigError: no config was given.
    """
    words = list(args.words)
    if args.config_file is None:
        if not words or is_override(words[0]):
            raise ConfigError(
                "No config is given. Name one that `sparsedet configs` lists, or a .py or .yaml "
                "file."
            )
        args.config_file = words.pop(0)
    args.words, args.overrides = split_overrides(words) if others else ([], words)


def is_override(word: str) -> bool:
    """Whether a word is a change of the config rather than a file."""
    return _OVERRIDE.match(word) is not None and not Path(word).exists()


def answer(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """The exit code of a command: 2, with one sentence, where an input is wrong.

    `--trust-config` holds for every config that the command reads. `--allocator` may start the
    command anew, before anything heavy is imported.
    """
    try:
        use_allocator(getattr(args, "allocator", "default"))
        with trusting(getattr(args, "trust_config", False)):
            return run(args) or 0
    except BrokenPipeError:  # who reads has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print_error(error)
        return 2


def answer_together(
    run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace
) -> int:
    """As `answer`; under torchrun the processes meet first, and what ends one of them ends all."""
    if "RANK" not in os.environ:
        return answer(run, args)
    if code := answer(lambda _: None, args):  # what starts anew does so before they meet
        return code
    from sparsedet.engine.faults import REFUSED
    from sparsedet.engine.launch import together
    from sparsedet.engine.peers import conclude

    def body() -> int:
        try:
            return run(args) or 0
        except (ValueError, OSError) as error:
            return conclude(error, print_error, otherwise=REFUSED)

    return together(body, print_error)


def check_output(path: Path, suffix: str, option: str = "--output") -> None:
    """Refuse a file that cannot be written, before any work.

    Args:
        path: of the file; folders that are missing can be made.
        suffix: that it must have, since that says the format.
        option: that names it.

    Raises:
        ConfigError: the path is a folder, has another suffix or lies where nothing can be written.
    """
    if path.is_dir() or path.suffix.lower() != suffix:
        kind = "a folder" if path.is_dir() else f"no {suffix} file"
        raise ConfigError(f"{option} {path} is {kind}. Name a file that ends in {suffix}.")
    try:
        require_writable(path)
    except OSError as error:
        raise ConfigError(f"{option} {error}") from error


def print_error(error: Exception | str) -> None:
    """One sentence to stderr."""
    print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Other words, and changes of the config, from an option that takes many."""
    return (
        [word for word in words if not is_override(word)],
        [word for word in words if is_override(word)],
    )


def read_ratio(word: str, option: str) -> float:
    """A share in (0, 1] of an option.

    Raises:
        ConfigError: the word is something else.
    """
    try:
        ratio = float(word)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise ConfigError(f"{option} must be numbers in (0, 1], got {word!r}.")
    return ratio


def names_with(rows: Mapping[str, Sequence[str]], words: Sequence[str]) -> list[str]:
    """Names of the rows of a table that have all of some words, in any case."""
    wanted = [word.lower() for word in words]
    return [name for name, row in rows.items() if all(w in " ".join(row).lower() for w in wanted)]
