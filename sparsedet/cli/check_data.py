"""Check a data set as training does, and report what a model will see of it.

    sparsedet check-data mine/data.yaml
    sparsedet check-data VOCdevkit/VOC2007
    sparsedet check-data train.json --images photos/
    sparsedet check-data photos dataset.path=mine/data.yaml
    sparsedet check-data mine/data.yaml --suggest
    sparsedet check-data mine/data.yaml --preview 9

SOURCE is a value of `dataset.path` or `dataset.train_json`; all parts of a set are reported. Sizes
at the model's input are those of the config `photos`, or of the one that --config-file names, with
the key=value that follow. CONFIG key=value is a run as `sparsedet train` takes it, with its data
set. CONFIG is a name that `sparsedet configs` lists, or a .py or .yaml file; ./NAME is a folder.

Every picture file is opened. Warnings name objects that training would leave out, and settings that
do not fit the data; errors that would stop training end the command.
--suggest prints one line of overrides for `sparsedet train`, and the reasons to stderr.
Exit codes: 0 it can be used; 2 it cannot, or something given is wrong (one sentence says what).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsedet.cli.common import add_reading, answer, check_output, is_override, make_parser
from sparsedet.config import ConfigError, packaged_configs, read_config

if TYPE_CHECKING:
    from sparsedet.data import AnnotatedDataset
    from sparsedet.survey import Survey

_NEEDS = ("dataset", "train", "dataloader.train.mapper", "dataloader.test.mapper")
_NAMES = {"train": "training", "val": "validation"}
_DEFAULT_CONFIG = "photos"

_Sets = dict[str, "tuple[AnnotatedDataset, Any]"]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add = parser.add_argument
    add("words", nargs="*", metavar="SOURCE|CONFIG key=value", help="a data set, or a run with one")
    add("--config-file", metavar="F", help="CONFIG; with a SOURCE, the config in place of photos")
    add("--suggest", action="store_true", help="print overrides that fit the data, and no report")
    add("--preview", type=int, metavar="N", help="write a sheet of N training samples as augmented")
    add("--output", type=Path, metavar="F.png", help="file of the sheet (default: preview.png)")
    add_reading(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, check, and print what was asked for.

    Raises:
        ConfigError: what is given is no config and no data set.
        DatasetError: the set cannot be used.
    """
    from sparsedet.survey import Survey

    if args.preview is not None and args.preview < 1:
        raise ConfigError(f"--preview must be at least 1, got {args.preview}. Give a number.")
    if args.output is not None and args.preview is None:
        raise ConfigError("--output is where the sheet of --preview goes. Add --preview=9.")
    sheet = args.output or Path("preview.png")
    if args.preview is not None:
        check_output(sheet, ".png")
    logging.basicConfig(format="%(message)s")  # what is left out is said in warnings
    cfg, source = _settings(args)
    sets = _sets_of_run(args, cfg) if source is None else _sets_of_source(args, cfg, source)
    survey = Survey.of(sets, cfg)
    if args.suggest:
        _print_suggestion(survey)
    else:
        for dataset, _ in sets.values():
            opened = "opened" if dataset.images is not None else "not opened, add --images"
            print(f"{dataset.source}: {dataset.format}, {len(dataset.records)} images ({opened})")
        print(f"\n{survey.report()}")
        for text in survey.misfits():
            print(f"\nwarning: {text}")
    if args.preview is not None:
        _preview(args.preview, sheet, cfg, next(iter(sets.values())))


def _settings(args: argparse.Namespace) -> tuple[Any, str | None]:
    """The config, and the data set where it is not the config's own."""
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
            "No data set is given. Name a file or folder of annotations, or a config and what it "
            "is trained on, such as: photos dataset.path=mine/data.yaml"
        )
    strange = [word for word in words if not is_override(word)]
    if strange:
        raise ConfigError(
            f"'{strange[0]}' is one word too many: a data set or a config comes first, and "
            "key=value after it."
        )
    return read_config(name, words, needs=_NEEDS), source


def _is_config(word: str) -> bool:
    """Whether a word is a config rather than a data set, which may be a .yaml file, too."""
    if word in packaged_configs() or word.endswith(".py"):
        return True
    if not word.endswith((".yaml", ".yml")) or not Path(word).is_file():
        return False
    from sparsedet.config.files import read_yaml

    try:
        return "dataloader" in read_yaml(Path(word))
    except ConfigError:
        return False  # read as a data set, whose messages fit


def _sets_of_run(args: argparse.Namespace, cfg: Any) -> _Sets:
    """Both parts, checked as `sparsedet train` does it."""
    from sparsedet.config import instantiate
    from sparsedet.data import resolve_dataset

    for option in ("images", "split"):
        if getattr(args, option) is not None:
            raise ConfigError(
                f"--{option} goes with a SOURCE; a config has dataset.train_json, "
                "dataset.train_images, dataset.val_json, dataset.val_images and dataset.path."
            )
    resolve_dataset(cfg)
    loaders = {"training": cfg.dataloader.train, "validation": cfg.dataloader.test}
    return {
        name: (instantiate(loader.dataset), instantiate(loader.mapper))
        for name, loader in loaders.items()
    }


def _sets_of_source(args: argparse.Namespace, cfg: Any, source: str) -> _Sets:
    """All parts of a set, or the one that was asked for."""
    from sparsedet.config import instantiate
    from sparsedet.data import list_parts, open_dataset, picture_settings

    train, test = instantiate(cfg.dataloader.train.mapper), instantiate(cfg.dataloader.test.mapper)
    splits: list[str | None] = [args.split]
    if args.split is None and args.images is None:
        splits = [*list_parts(source, format=args.format)] or [None]
    sets: _Sets = {}
    names = None
    for split in splits:
        dataset = open_dataset(
            source,
            args.images,
            split=split,
            format=args.format,
            class_names=names,
            skip_broken_images=args.skip_broken,
            pictures=picture_settings(cfg.dataset),
        )
        names = names or dataset.class_names
        name = "" if split is None else _NAMES.get(split, split)
        sets[name] = (dataset, train if split == "train" else test)
    return sets


def _print_suggestion(survey: Survey) -> None:
    """The line to stdout, so that it can be taken on; why to stderr."""
    if not len(survey.parts[0].boxes):
        print(survey.misfits()[0], file=sys.stderr)
        return
    for override in survey.suggestion.overrides:
        print(f"{override.key}: {override.reason}", file=sys.stderr)
    if survey.suggestion.overrides:
        print(survey.suggestion)
    else:
        print("the settings fit as they are", file=sys.stderr)


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
    print(f"{what} of {dataset.source} as augmented are in {path}", file=sys.stderr)
