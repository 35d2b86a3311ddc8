"""The data sets of a configuration: do their files exist, which classes do they have."""

from collections.abc import Sequence
from typing import Any

from .coco import check_image_folder, match_classes, read_categories
from .errors import DatasetError
from .validate import warn_once

# Where the shipped configs expect their sets, and how to get them.
_HOW_TO_GET = {
    "datasets/shapes": "Make it with: python -m sparsedet.data.shapes --output datasets/shapes",
    "datasets/coco": "Get it from https://cocodataset.org/#download",
}


def resolve_dataset(cfg: Any, splits: Sequence[str] = ("train", "val")) -> None:
    """Checks the files named in `cfg.dataset` and fills what follows from them.

    Where `cfg.dataset.class_names` is None, it and `cfg.dataset.num_classes` are set from the
    first split's annotation file (another `num_classes`, such as a config's 80 for COCO, is
    replaced with a warning). Classes of the splits are matched by name; those of a later split
    must be among those of the first.

    Args:
        cfg: configuration whose `dataset` has `<split>_json`, `<split>_images`, `num_classes`
            and `class_names`; changed in place.
        splits: which splits will be used; ("val",) where nothing is trained.

    Raises:
        DatasetError: a path is not set or does not exist, categories do not agree, or
            `class_names` do not fit the file or `num_classes`.
    """
    dataset = cfg.dataset
    categories = {split: _read_split(dataset, split) for split in splits}
    if dataset.class_names is None:
        dataset.class_names = [name for _, name in categories[splits[0]]]
        _replace_num_classes(dataset, dataset[f"{splits[0]}_json"])
    elif dataset.num_classes not in (None, len(dataset.class_names)):
        raise DatasetError(
            f"dataset.num_classes must be {len(dataset.class_names)}, the number of "
            f"dataset.class_names, got {dataset.num_classes}. Leave dataset.num_classes unset."
        )
    dataset.num_classes = len(dataset.class_names)
    for split in splits:
        match_classes(categories[split], dataset.class_names, dataset[f"{split}_json"])
    if len(splits) > 1:
        _compare_ids(dataset, categories, splits)


def _replace_num_classes(dataset: Any, source: str) -> None:
    given, found = dataset.num_classes, len(dataset.class_names)
    if given not in (None, found):
        warn_once(
            f"dataset.num_classes={given} does not fit {source!r}, which has {found} categories; "
            f"{found} is used."
        )


def _read_split(dataset: Any, split: str) -> list[tuple[int, str]]:
    for key in (f"{split}_json", f"{split}_images"):
        if dataset.get(key) is None:
            raise DatasetError(f"dataset.{key} is not set. Add dataset.{key}=PATH.")
    annotations, images = dataset[f"{split}_json"], dataset[f"{split}_images"]
    try:
        categories = read_categories(annotations)
        check_image_folder(images)
    except DatasetError as error:
        raise DatasetError(f"{error}{_hint(annotations)}") from None
    return categories


def _hint(path: str) -> str:
    for folder, how in _HOW_TO_GET.items():
        if path.startswith(f"{folder}/"):
            return f" {how}"
    return ""


def _compare_ids(dataset: Any, categories: dict[str, list], splits: Sequence[str]) -> None:
    first = {name: identity for identity, name in categories[splits[0]]}
    for split in splits[1:]:
        other = {name: identity for identity, name in categories[split]}
        if any(first[name] != identity for name, identity in other.items() if name in first):
            warn_once(
                f"{dataset[f'{split}_json']}: its category ids differ from those of "
                f"{dataset[f'{splits[0]}_json']!r}; classes are matched by name."
            )
