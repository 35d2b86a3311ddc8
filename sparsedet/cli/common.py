"""What the subcommands share: the parser, the config and its overrides, one-sentence errors."""

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

_OVERLAP = 0.2  # share of a tile's side
_OVERRIDE = re.compile(r"\+{0,2}(?!-)[\w.\[\]-]+\s*=")


def make_parser(doc: str | None, prog: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the docstring of its module unchanged.

    Args:
        doc: the docstring.
        prog: the command as shown in the usage line; None = the name of the script.
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
    """Add the config and its overrides.

    Args:
        parser: gets `--config-file` and `words`, see :func:`take_config`.
        others: what else `words` may contain, such as "IMAGE".
    """
    parser.add_argument(
        "--config-file",
        metavar="F",
        help="the same as CONFIG: a name that `sparsedet configs` lists, or a .py or .yaml file",
    )
    follow = [*others, "key=value"]
    parser.add_argument(
        "words",
        nargs="*",
        metavar=f"CONFIG {'|'.join(follow)}",
        help=f"the config, then {' and '.join(follow)} as often as needed",
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-config`, which :func:`answer` applies to every config that is read."""
    parser.add_argument(
        "--trust-config",
        action="store_true",
        help="let a .yaml config, or one in a checkpoint, call any code (a .py config always may)",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparsedet.data.open_dataset`: a data set and how to read it."""
    parser.add_argument("source", metavar="SOURCE", help="file or folder of annotations")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to read a data set."""
    add = parser.add_argument
    add("--images", metavar="DIR", help="folder of the pictures, if SOURCE does not name it")
    add("--split", metavar="NAME", help="part of the data set: train, val, ...")
    add("--format", default="auto", metavar="F", help="coco, voc or yolo (default: from SOURCE)")
    add("--skip-broken", action="store_true", help="leave out pictures that cannot be read")


def add_tiles(parser: argparse.ArgumentParser) -> None:
    """Add the options for large pictures, see :func:`take_tiles`."""
    parser.add_argument("--tiles", type=int, metavar="N", help="process tiles of N x N pixels")
    parser.add_argument(
        "--overlap", type=float, metavar="SHARE", help=f"overlap of the tiles ({_OVERLAP})"
    )


def take_tiles(args: argparse.Namespace) -> None:
    """Fill in the default of `overlap`.

    Args:
        args: as parsed; changed in place.

    Raises:
        ConfigError: `--overlap` is given without `--tiles`.
    """
    if args.overlap is None:
        args.overlap = _OVERLAP
    elif args.tiles is None:
        raise ConfigError("--overlap needs --tiles. Add --tiles N, or leave --overlap out.")


def open_source(args: argparse.Namespace) -> AnnotatedDataset:
    """Read and check the data set of :func:`add_source`.

    Raises:
        DatasetError: the data set cannot be used.
    """
    from sparsedet.data import open_dataset

    logging.basicConfig(format="%(message)s")  # warnings name the entries that are left out
    return open_dataset(
        args.source,
        args.images,
        split=args.split,
        format=args.format,
        skip_broken_images=args.skip_broken,
        pictures=None,
    )


def take_config(args: argparse.Namespace, *, others: bool = False) -> None:
    """Split `words` into `config_file`, `overrides` and the remaining `words`.

    Args:
        args: as parsed; changed in place.
        others: whether words that are not overrides are allowed, such as image files.

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
    """Whether a word is an override of the config rather than a file."""
    return _OVERRIDE.match(word) is not None and not Path(word).exists()


def answer(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run a command and return its exit code: 2, with one sentence, if an input is wrong.

    Ctrl-C gives 130, as a shell reports it.

    `--trust-config` applies to every config that the command reads. `--allocator` may restart the
    process, before anything heavy is imported.
    """
    try:
        use_allocator(getattr(args, "allocator", "default"))
        with trusting(getattr(args, "trust_config", False)):
            return run(args) or 0
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print_error("interrupted.")
        return 130


def answer_together(
    run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace
) -> int:
    """As `answer`; under torchrun all processes connect first, and a fault in one ends all."""
    if "RANK" not in os.environ:
        return answer(run, args)
    if code := answer(lambda _: None, args):  # a restart must come before the processes connect
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
    """Check that an output file can be written, before any work starts.

    Args:
        path: the file; missing folders are created later.
        suffix: the suffix that the file must have.
        option: the option that names the file, for the message.

    Raises:
        ConfigError: the path is a folder, has another suffix or cannot be written.
    """
    if path.is_dir() or path.suffix.lower() != suffix:
        kind = "a folder" if path.is_dir() else f"not a {suffix} file"
        raise ConfigError(f"{option} {path} is {kind}. Name a file that ends in {suffix}.")
    try:
        require_writable(path)
    except OSError as error:
        raise ConfigError(f"{option} {error}") from error


def check_folder(path: Path, option: str = "--output") -> None:
    """Check that files can be written in a folder, before any work starts.

    Args:
        path: the folder; missing ones are created later.
        option: the option that names the folder, for the message.

    Raises:
        ConfigError: the path or a part of it is a file, or nothing can be written there.
    """
    known = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not known.is_dir():
        which = f"{path} is" if known == path else f"{path} is in {known}, which is"
        raise ConfigError(f"{option} {which} a file. Name a folder.")
    try:
        require_writable(path / "a")
    except OSError as error:
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
        raise ConfigError(
            f"{option} {path} cannot be written to: {reason}. Name another folder."
        ) from error


def print_error(error: Exception | str) -> None:
    """Print one sentence to stderr."""
    print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into those that are not overrides and those that are."""
    return (
        [word for word in words if not is_override(word)],
        [word for word in words if is_override(word)],
    )


def read_ratio(word: str, option: str) -> float:
    """Parse a ratio in (0, 1].

    Args:
        word: the text.
        option: the option that has it, for the message.

    Raises:
        ConfigError: the word is not a number in that range.
    """
    try:
        ratio = float(word)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise ConfigError(f"{option} must be numbers in (0, 1], got {word!r}.")
    return ratio


def names_with(rows: Mapping[str, Sequence[str]], words: Sequence[str]) -> list[str]:
    """Names of the rows that contain all of the words, ignoring case."""
    wanted = [word.lower() for word in words]
    return [name for name, row in rows.items() if all(w in " ".join(row).lower() for w in wanted)]
