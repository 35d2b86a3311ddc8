"""Check a data set as training does, and report what a model will see of it.

    sparsedet check-data mine/data.yaml
    sparsedet check-data VOCdevkit/VOC2007
    sparsedet check-data train.json --images photos/
    sparsedet check-data photos dataset.path=mine/data.yaml
    sparsedet check-data train.json --images photos/ --json report.json --strict
    sparsedet check-data train.json --images photos/ --fix cleaned.json
    sparsedet check-data mine/data.yaml --suggest
    sparsedet check-data mine/data.yaml --preview 9

SOURCE is a value of `dataset.path` or `dataset.train_json`; all parts of the set are reported. The
input sizes come from the config `photos`, or from --config-file, with the key=value overrides.
Instead of SOURCE, give the arguments of `sparsedet train`: CONFIG key=value, with the data set.
CONFIG is a name that `sparsedet configs` lists, or a .py or .yaml file; write ./NAME for a folder.

The report lists all faults and what training does about each: it refuses the set, leaves out the
entry, changes it (for example, clips a box) or keeps it as it is. Every picture is decoded; a cache
stores the hashes of intact ones, so the next run need not decode them. --headers reads only the
headers, as training does before it starts.
--fix writes the usable part of a set as a COCO file, including fields that are not used here. It
takes one part of a set (--split) and never overwrites a file.
--suggest prints one line of overrides for `sparsedet train`, and the reasons to stderr.
Exit codes: 0 the set can be used, or --fix has written a usable copy; 1 with --strict, the set can
be used, but entries are left out or changed; 2 the set cannot be used, or an argument is wrong (one
sentence says which).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsedet import __version__
from sparsedet.cli.common import (
    add_reading,
    add_trust,
    answer,
    check_output,
    is_override,
    make_parser,
)
from sparsedet.config import ConfigError, packaged_configs, read_config
from sparsedet.files import expand_home

if TYPE_CHECKING:
    from sparsedet.data import AnnotatedDataset, Audit, PictureDecoder
    from sparsedet.survey import Survey

_NEEDS = ("dataset", "train", "dataloader.train.mapper", "dataloader.test.mapper")
_NAMES = {"train": "training", "val": "validation"}
_DEFAULT_CONFIG = "photos"
_DEFAULT_CACHE = "~/.cache/sparsedet/sound.sqlite"

_Sets = dict[str, "tuple[AnnotatedDataset, Any]"]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add = parser.add_argument
    add("words", nargs="*", metavar="SOURCE|CONFIG key=value", help="a data set, or a training run")
    add(
        "--config-file",
        metavar="F",
        help="the same as CONFIG; with a SOURCE, the config to use instead of photos",
    )
    add("--strict", action="store_true", help="exit code 1 if entries are left out or changed")
    add("--json", type=Path, metavar="F.json", help="write the report with all entries as JSON")
    add("--fix", type=Path, metavar="OUT.json", help="write the usable part as a COCO file")
    add("--headers", action="store_true", help="read only the headers of the pictures")
    add(
        "--cache",
        metavar="F",
        default=_DEFAULT_CACHE,
        help="cache of intact pictures (default: %(default)s)",
    )
    add("--no-cache", action="store_true", help="decode every picture again")
    add("--suggest", action="store_true", help="print overrides that fit the data, not the report")
    add("--preview", type=int, metavar="N", help="draw N augmented training samples on one sheet")
    add("--output", type=Path, metavar="F.png", help="file for the sheet (default: preview.png)")
    add_reading(parser)
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Read and check the data set, and print what was asked for.

    Raises:
        ConfigError: the argument is neither a config nor a data set.
        DatasetError: the set cannot be used.
    """
    from sparsedet.files import write_json

    _check_options(args)
    logging.basicConfig(format="%(message)s")
    cfg, source = _settings(args)
    report = {
        "version": __version__,
        "exit_code": 2,
        "error": None,
        "parts": [],
        "survey": [],
        "misfits": [],
    }
    try:
        report["exit_code"] = _check(args, cfg, source, report)
    except (ValueError, OSError) as error:
        report["error"] = str(error)
        raise
    finally:
        if args.json is not None:
            write_json(args.json, report)
    return report["exit_code"]


def _check_options(args: argparse.Namespace) -> None:
    if args.preview is not None and args.preview < 1:
        raise ConfigError(f"--preview must be at least 1, got {args.preview}. Give a number.")
    if args.output is not None and args.preview is None:
        raise ConfigError("--output names the sheet of --preview. Add --preview=9.")
    if args.preview is not None:
        args.output = args.output or Path("preview.png")
        check_output(args.output, ".png")
    if args.json is not None:
        check_output(args.json, ".json", "--json")
    if args.fix is not None:
        check_output(args.fix, ".json", "--fix")
        if args.fix.exists():
            raise ConfigError(
                f"--fix {args.fix} already exists. Name another file, or delete this one."
            )


def _check(args: argparse.Namespace, cfg: Any, source: str | None, report: dict[str, Any]) -> int:
    """Do what was asked for; return the exit code."""
    from sparsedet.survey import Survey

    parts = _parts_of_run(args, cfg) if source is None else _parts_of_source(args, cfg, source)
    if args.fix is not None and (source is None or len(parts) > 1):
        raise ConfigError(
            "--fix writes one part of a set. Give its SOURCE, and --split if it has several parts."
        )
    audits = _audit(args, parts, report)
    if args.fix is not None:
        _fix(args.fix, next(iter(audits.values())))
    for name, audit in audits.items():
        if audit.dataset is None and args.fix is not None:
            return 0
        _refuse(audit, parts[name])
    sets = _sets_of_run(cfg) if source is None else _sets_of_source(cfg, parts)
    survey = Survey.of(sets, cfg)
    report.update(survey.facts())
    if args.suggest:
        _print_suggestion(survey)
    else:
        print(survey.report())
        for text in survey.misfits():
            print(f"\nwarning: {text}")
    if args.preview is not None:
        _preview(args.preview, args.output, cfg, next(iter(sets.values())))
    clean = args.fix is not None or all(audit.is_clean for audit in audits.values())
    return 1 if args.strict and not clean else 0


def _settings(args: argparse.Namespace) -> tuple[Any, str | None]:
    """The config, and the SOURCE; None if the data set is the config's own."""
    words = list(args.words)
    source = None
    if words and not is_override(words[0]) and not _is_config(words[0]):
        source = words.pop(0)
        name = args.config_file or _DEFAULT_CONFIG
    elif args.config_file is not None:
        name = args.config_file
    elif words and not is_override(words[0]):
        name = words.pop(0)
    else:
        raise ConfigError(
            "No data set is given. Name a file or folder of annotations, or a config with its data "
            "set, such as: photos dataset.path=mine/data.yaml"
        )
    strange = [word for word in words if not is_override(word)]
    if strange:
        raise ConfigError(
            f"'{strange[0]}' is unexpected. Give one data set or config, followed only by "
            "key=value overrides."
        )
    return read_config(name, words, needs=_NEEDS), source


def _is_config(word: str) -> bool:
    """Whether a word is a config rather than a data set, which may also be a .yaml file."""
    if word in packaged_configs() or word.endswith(".py"):
        return True
    if not word.endswith((".yaml", ".yml")) or not Path(word).is_file():
        return False
    from sparsedet.config.files import read_yaml

    try:
        return "dataloader" in read_yaml(Path(word))
    except ConfigError:
        return False  # reading it as a data set gives the better message


def _parts_of_run(args: argparse.Namespace, cfg: Any) -> dict[str, dict[str, Any]]:
    """The arguments with which `sparsedet train` opens each part, by the part's name."""
    from sparsedet.data import part_arguments

    for option in ("images", "split"):
        if getattr(args, option) is not None:
            raise ConfigError(
                f"--{option} needs a SOURCE. For a config, set dataset.path, or "
                "dataset.train_json, dataset.train_images, dataset.val_json and dataset.val_images."
            )
    return {name: part_arguments(cfg, split) for split, name in _NAMES.items()}


def _parts_of_source(args: argparse.Namespace, cfg: Any, source: str) -> dict[str, dict[str, Any]]:
    """The arguments that open each part of a set, or the part of `--split`, by its name."""
    from sparsedet.data import list_parts, picture_settings

    splits: list[str | None] = [args.split]
    if args.split is None and args.images is None:
        splits = [*list_parts(source, format=args.format)] or [None]
    return {
        "" if split is None else _NAMES.get(split, split): {
            "annotations": source,
            "images": args.images,
            "split": split,
            "format": args.format,
            "skip_broken_images": args.skip_broken,
            "pictures": picture_settings(cfg.dataset),
        }
        for split in splits
    }


def _audit(
    args: argparse.Namespace, parts: dict[str, dict[str, Any]], report: dict[str, Any]
) -> dict[str, Audit]:
    """Check all parts, print what was found, and add it to the report."""
    from sparsedet.data import PictureCache, PictureDecoder, audit_dataset

    audits = {}
    decoder = None
    if not args.headers:
        cache = None if args.no_cache else PictureCache(expand_home(args.cache, "--cache"))
        decoder = PictureDecoder(cache)
    out = sys.stderr if args.suggest else sys.stdout
    for name, arguments in parts.items():
        audits[name] = audit = audit_dataset(**arguments, inspect=decoder)
        report["parts"].append({"name": name, **audit.report()})
        print(f"{_title(audit)}\n{audit.table()}\n", file=out)
    if decoder is not None and decoder.num_decoded + decoder.num_known:
        print(f"{_looked_at(decoder)}\n", file=out)
    return audits


def _title(audit: Audit) -> str:
    if audit.checked is None:
        return f"{audit.source}: cannot be read"
    source = audit.checked.source
    opened = "pictures read" if source.root is not None else "pictures not read, add --images"
    number, total = len(audit.checked.images), audit.checked.num_images
    count = f"{number} images" if audit.dataset is not None else f"{number} of {total} images"
    usable = "" if audit.dataset is not None else " could be used"
    return f"{audit.source}: {source.format}, {count} ({opened}){usable}"


def _looked_at(decoder: PictureDecoder) -> str:
    known = f", {decoder.num_known} known from an earlier run" if decoder.num_known else ""
    return f"pictures: {decoder.num_decoded} decoded{known}"


def _refuse(audit: Audit, arguments: dict[str, Any]) -> None:
    """Raise the error that training would raise, and say how to get a known data set."""
    from sparsedet.data import DatasetError, how_to_get

    try:
        audit.refuse()
    except DatasetError as error:
        raise DatasetError(f"{error}{how_to_get(arguments['annotations'])}") from None


def _fix(path: Path, audit: Audit) -> None:
    from sparsedet.data import write_mended

    mended = write_mended(audit, path)
    print(f"{path}: {mended}")
    if mended.dataset.images is not None:
        print(f"dataset.train_json={path} dataset.train_images={mended.dataset.images}")
    print()


def _sets_of_run(cfg: Any) -> _Sets:
    """Both parts, checked as in `sparsedet train`."""
    from sparsedet.config import instantiate
    from sparsedet.data import resolve_dataset

    resolve_dataset(cfg)
    loaders = {"training": cfg.dataloader.train, "validation": cfg.dataloader.test}
    return {
        name: (instantiate(loader.dataset), instantiate(loader.mapper))
        for name, loader in loaders.items()
    }


def _sets_of_source(cfg: Any, parts: dict[str, dict[str, Any]]) -> _Sets:
    """All parts, opened with the classes of the first one."""
    from sparsedet.config import instantiate
    from sparsedet.data import open_dataset

    train, test = instantiate(cfg.dataloader.train.mapper), instantiate(cfg.dataloader.test.mapper)
    sets: _Sets = {}
    names = None
    for name, arguments in parts.items():
        dataset = open_dataset(**arguments, class_names=names)
        names = names or dataset.class_names
        sets[name] = (dataset, train if arguments["split"] == "train" else test)
    return sets


def _print_suggestion(survey: Survey) -> None:
    """Print the overrides to stdout, so that a shell can use them, and the reasons to stderr."""
    if not len(survey.parts[0].boxes):
        print(survey.misfits()[0], file=sys.stderr)
        return
    for override in survey.suggestion.overrides:
        print(f"{override.key}: {override.reason}", file=sys.stderr)
    if survey.suggestion.overrides:
        print(survey.suggestion)
    else:
        print("the settings already fit the data", file=sys.stderr)


def _preview(count: int, path: Path, cfg: Any, first: tuple[AnnotatedDataset, Any]) -> None:
    from sparsedet.config import instantiate
    from sparsedet.files import atomic_write
    from sparsedet.survey import preview_sheet

    dataset = first[0]
    if dataset.images is None:
        raise ConfigError("--preview needs the pictures. Add --images=FOLDER.")
    mapper = instantiate(cfg.dataloader.train.mapper)
    sheet = preview_sheet(dataset, mapper, count=count, seed=cfg.train.seed or 0)
    with atomic_write(path) as file:
        sheet.save(file, format="PNG")
    what = "1 sample" if count == 1 else f"{count} samples"
    print(f"{what} of {dataset.source}, augmented as in training: {path}", file=sys.stderr)
