"""The result of every format reader, and the names of parts of a data set."""

import os
from dataclasses import dataclass, field
from typing import Any

from sparsedet.data.errors import DatasetError
from sparsedet.data.roots import check_root, is_address

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")
_ALIASES = {"val": ("val", "valid", "validation"), "train": ("train", "training")}


@dataclass
class Source:
    """The unchecked content of a data set's files.

    Args:
        path: path that was read; messages start with it.
        format: name of the format.
        root: folder to which `file_name` is relative; None = do not open pictures.
        categories: dicts with `id` and `name`.
        images: dicts with `id`, `file_name` and, if known, `width` and `height`. With
            `follows_exif`, an unknown size becomes that of the picture after EXIF rotation.
        annotations: dicts as in COCO's instances files. A string `id` gives the place of the entry.
        in_fractions: whether `bbox` is in fractions of the picture instead of pixels.
        files: files and folders whose change makes it necessary to read the data set again.
    """

    path: str
    format: str
    root: str | None
    categories: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    in_fractions: bool = False
    files: list[str] = field(default_factory=list)


def names_of_split(split: str) -> tuple[str, ...]:
    """Names of a part in folders and keys: `val` may also be `valid`."""
    return _ALIASES.get(split, (split,))


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of a picture."""
    return name.lower().endswith(PICTURES)


def nearest_folder(path: str) -> str:
    """The nearest existing folder above a path, for a message."""
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return f"nearest existing folder: {folder!r}"


def check_image_folder(images: str) -> None:
    """Raises a DatasetError unless `images` is a folder, or a URL that can be opened."""
    if is_address(images):
        check_root(images)
        return
    if not os.path.isdir(images):
        kind = "is not a folder" if os.path.exists(images) else "does not exist"
        raise DatasetError(
            f"image folder {images!r} {kind} ({nearest_folder(images)}). "
            "Set dataset.train_images and dataset.val_images."
        )


def read_lines(path: str) -> list[str]:
    """The lines of a list, without byte order mark.

    Raises:
        DatasetError: it is not text.
    """
    with open(path, encoding="utf-8-sig") as file:
        try:
            return [line.strip() for line in file]
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"{path!r} must be a list of pictures in UTF-8, but is invalid at byte "
                f"{error.start}. Save it as UTF-8, or give a folder."
            ) from None


def missing_file(path: str, reason: str = "No such file or directory") -> DatasetError:
    """The error about an annotation file that cannot be opened."""
    if is_address(path):
        return DatasetError(
            f"annotation file {path!r} is a URL, but only pictures are read from URLs. Download "
            "it, and set dataset.train_json or dataset.val_json to the copy."
        )
    return DatasetError(
        f"annotation file {path!r}: {reason} ({nearest_folder(path)}). "
        "Set dataset.train_json and dataset.val_json, or dataset.path."
    )
