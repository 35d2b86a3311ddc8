"""What every reader of a format hands to the checks, and how parts of a set are called."""

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
    """A set as its files have it, not yet checked.

    Args:
        path: where it was read, the beginning of messages.
        format: name of the format.
        root: folder that `file_name` is relative to; None opens no picture.
        categories: dicts with `id` and `name`.
        images: dicts with `id`, `file_name` and, where they are known, `width` and `height`.
            With `follows_exif` a size that is not given is that of the turned picture.
        annotations: dicts as in COCO's instances files. A text `id` says where the entry stands.
        in_fractions: whether `bbox` is in fractions of the picture instead of pixels.
        files: files and folders that a change of makes the set another one.
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
    """How folders and keys call a part of a set: `val` is `valid` elsewhere."""
    return _ALIASES.get(split, (split,))


def is_picture(name: str) -> bool:
    """Whether a file name ends as pictures do."""
    return name.lower().endswith(PICTURES)


def nearest_folder(path: str) -> str:
    """Where a path that does not exist leaves what does."""
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return f"nearest existing folder: {folder!r}"


def check_image_folder(images: str) -> None:
    """Raises a DatasetError unless `images` is a folder, or an address that can be opened."""
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
                f"{path!r} must be a list of pictures in UTF-8, and is not at byte {error.start}. "
                "Save it as UTF-8, or give a folder."
            ) from None


def missing_file(path: str, reason: str = "No such file or directory") -> DatasetError:
    """The error about an annotation file that cannot be opened."""
    if is_address(path):
        return DatasetError(
            f"annotation file {path!r} is a URL, and only pictures are read from URLs. Download "
            "it, and set dataset.train_json or dataset.val_json to the copy."
        )
    return DatasetError(
        f"annotation file {path!r}: {reason} ({nearest_folder(path)}). "
        "Set dataset.train_json and dataset.val_json, or dataset.path."
    )
