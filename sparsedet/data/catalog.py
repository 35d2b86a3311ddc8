"""Check the data sets of a configuration, and fill in their classes."""

import os
from collections.abc import Sequence
from typing import Any

from sparsedet.config import literal, texts
from sparsedet.config.rules import Rule, check_settings
from sparsedet.data.dataset import AnnotatedDataset, open_dataset
from sparsedet.data.errors import DatasetError
from sparsedet.data.reading import PictureSettings
from sparsedet.data.validate import warn_once

# Paths of the data sets of packaged configs, and how to get them.
_HOW_TO_GET = {
    "datasets/shapes": "Create it with: python -m sparsedet.data.shapes --output datasets/shapes",
    "datasets/haystack": "Create it with: python -m sparsedet.data.haystack",
    "datasets/coco": "Get it from https://cocodataset.org/#download",
}


_PLACE = Rule(str | None, place=True)
_RULES = {
    **dict.fromkeys(("path", "train_json", "train_images", "val_json", "val_images"), _PLACE),
    "format": Rule(str, empty=False),
    "num_classes": Rule(int | None, least=1),
    "value_range": Rule(list[float] | None),
    "cache_dir": Rule(str | None, place=True, here=True),
}


def resolve_dataset(cfg: Any, splits: Sequence[str] = ("train", "val")) -> None:
    """Reads the data sets in `cfg.dataset` and fills in their classes.

    `cfg.dataset.path`, a set with parts, replaces `<split>_json` and `<split>_images`. If
    `cfg.dataset.class_names` is None, it and `cfg.dataset.num_classes` are set from the first split
    (another `num_classes`, such as a config's 80 for COCO, is replaced with a warning). Classes of
    the splits are matched by name; the classes of a later split must be among those of the first.

    Args:
        cfg: configuration whose `dataset` has `path` and `format` (or neither), `<split>_json`,
            `<split>_images`, `num_classes` and `class_names`; changed in place.
        splits: the splits that will be used; ("val",) if nothing is trained.

    Raises:
        ConfigError: a setting has an invalid value.
        DatasetError: a path is not set or cannot be used, categories differ, or `class_names` do
            not fit the set or `num_classes`.
    """
    dataset = cfg.dataset
    _check(dataset)
    _place_parts(dataset)
    sets = {split: _open(dataset, split) for split in splits}
    if "train" in splits:
        _require_objects(sets)
    first = sets[splits[0]]
    if dataset.class_names is None:
        dataset.class_names = [literal(name) for name in first.class_names]
        _replace_num_classes(dataset, first.source)
    elif dataset.num_classes not in (None, len(dataset.class_names)):
        raise DatasetError(
            f"dataset.num_classes must be {len(dataset.class_names)}, the number of "
            f"dataset.class_names, got {dataset.num_classes}. Leave dataset.num_classes unset."
        )
    dataset.num_classes = len(dataset.class_names)
    for split in splits:
        sets[split].with_classes(texts(dataset.class_names))
    for split in splits[1:]:
        _compare_ids(first, sets[split])


def resolve_classes(cfg: Any) -> None:
    """Fills in only the classes, from the first part whose annotations exist, if there is one.

    For code that needs class names or their number, but no pictures.

    Args:
        cfg: as for `resolve_dataset`.

    Raises:
        ConfigError: a setting has an invalid value.
        DatasetError: the annotations cannot be read.
    """
    dataset = cfg.dataset
    _check(dataset)
    _place_parts(dataset)
    if dataset.class_names is None:
        for split in ("train", "val"):
            path, format = dataset.get(f"{split}_json"), dataset.get("format", "auto")
            named = "." in format  # a custom reader, whose data sets may have names
            if path is not None and (named or os.path.exists(path)):
                found = open_dataset(path, None, split=split, format=format)
                dataset.class_names = [literal(name) for name in found.class_names]
                _replace_num_classes(dataset, found.source)
                break
    if dataset.class_names is not None:
        dataset.num_classes = len(dataset.class_names)


def picture_settings(dataset: Any) -> PictureSettings:
    """The settings for reading the pictures of a configuration's `dataset`.

    Args:
        dataset: `cfg.dataset`; missing keys have their defaults.

    Raises:
        ValueError: a value is invalid.
    """
    keys = {
        "value_range": "value_range",
        "max_pixels": "max_image_pixels",
        "cache_dir": "cache_dir",
        "cache_gigabytes": "cache_gigabytes",
    }
    given = {name: dataset[key] for name, key in keys.items() if key in dataset}
    if given.get("value_range") is not None:
        given["value_range"] = list(given["value_range"])
    return PictureSettings(**given)


def _check(dataset: Any) -> None:
    """Refuses invalid values; missing keys about classes are set to None."""
    for key in ("class_names", "num_classes"):
        if key not in dataset:
            dataset[key] = None
    check_settings(dataset, _RULES, path="dataset")
    _check_class_names(dataset)


def _check_class_names(dataset: Any) -> None:
    names = dataset.class_names
    if names is None:
        return
    several = isinstance(names, Sequence) and not isinstance(names, str)
    names = texts(names) if several else names
    if not several or not names or not all(isinstance(n, str) for n in names):
        raise DatasetError(
            f"dataset.class_names must be a list of strings, got {names!r}. Write "
            "'dataset.class_names=[cat,dog]', or null for the classes of the annotations."
        )
    if len(set(names)) < len(names):
        raise DatasetError(
            f"dataset.class_names must be distinct, got {list(names)}. Remove duplicates."
        )


def _place_parts(dataset: Any) -> None:
    if dataset.get("path") is not None:
        for split in ("train", "val"):
            dataset[f"{split}_json"], dataset[f"{split}_images"] = dataset.path, None


def part_arguments(cfg: Any, split: str) -> dict[str, Any]:
    """The arguments of `open_dataset` with which packaged configs open a part of their set.

    Args:
        cfg: as for `resolve_dataset`.
        split: `train` or `val`.

    Raises:
        DatasetError: the config does not define the part.
    """
    _place_parts(cfg.dataset)
    return _arguments(cfg.dataset, split)


def how_to_get(path: str) -> str:
    """A sentence, after a space, on how to get a data set of packaged configs; else empty."""
    for folder, how in _HOW_TO_GET.items():
        if str(path).startswith(f"{folder}/"):
            return f" {how}"
    return ""


def _arguments(dataset: Any, split: str) -> dict[str, Any]:
    path = dataset.get(f"{split}_json")
    if path is None:
        raise DatasetError(
            f"dataset.{split}_json is not set. Add dataset.{split}_json=PATH, or dataset.path=PATH "
            "of a set with parts."
        )
    return {
        "annotations": path,
        "images": dataset.get(f"{split}_images"),
        "split": split,
        "format": dataset.get("format", "auto"),
        "skip_broken_images": split == "train",
        "pictures": picture_settings(dataset),
    }


def _open(dataset: Any, split: str) -> AnnotatedDataset:
    """The data set, opened with the arguments of the loaders, so that it is read only once."""
    arguments = _arguments(dataset, split)
    path = arguments["annotations"]
    try:
        found = open_dataset(**arguments)
    except DatasetError as error:
        raise DatasetError(f"{error}{how_to_get(path)}") from None
    if found.images is None:
        raise DatasetError(
            f"dataset.{split}_images is not set, and {path} does not say where its pictures are. "
            f"Add dataset.{split}_images=PATH."
        )
    return found


def _replace_num_classes(dataset: Any, source: str) -> None:
    given, found = dataset.num_classes, len(dataset.class_names)
    if given not in (None, found):
        warn_once(
            f"dataset.num_classes={given} does not fit {source!r}, which has {found} categories; "
            f"{found} is used."
        )


def _require_objects(sets: dict[str, AnnotatedDataset]) -> None:
    for split, found in sets.items():
        if not found.has_targets():
            raise DatasetError(
                f"{found.source}: there is not a single usable box ('annotations' is missing or "
                "empty, or has only ignore regions or unusable boxes), so there is nothing to "
                f"learn and AP is undefined. Add annotations, or set another dataset.{split}_json."
            )


def _compare_ids(first: AnnotatedDataset, other: AnnotatedDataset) -> None:
    known = dict(zip(first.class_names, first.category_ids, strict=True))
    pairs = zip(other.class_names, other.category_ids, strict=True)
    if first.format == "coco" and any(known.get(name, i) != i for name, i in pairs):
        warn_once(
            f"{other.source}: its category ids differ from those of {first.source!r}; classes are "
            "matched by name."
        )
