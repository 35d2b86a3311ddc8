"""The picture files of a set: are they there, can they be read, do their sizes fit."""

import os
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from .images import ImageHeader, inspect_image, size_mismatch
from .validate import Findings


def check_files(images: Iterable[dict], root: str, findings: Findings, skip_broken: bool) -> set:
    """Opens the header of every image file and compares its size with the entry.

    Entries without a size get that of the file.

    Args:
        images: entries that `check_images` has passed.
        root: image folder.
        findings: where faults are noted.
        skip_broken: whether an unreadable file is left out with a warning instead of an error.

    Returns:
        Ids of the images to leave out.
    """
    images = list(images)
    paths = [os.path.join(root, image["file_name"]) for image in images]
    missing = [i for i, path in enumerate(paths) if not os.path.exists(path)]
    if missing:
        _report_missing([images[i]["file_name"] for i in missing], len(images), root, findings)
        return set()
    skipped = set()
    with ThreadPoolExecutor(8) as pool:
        for image, path, header in zip(images, paths, pool.map(inspect_image, paths), strict=True):
            if isinstance(header, ImageHeader):
                _compare_with_header(image, path, header, findings)
                continue
            label = f"file {image['file_name']!r} ({header})"
            if skip_broken:
                findings.warn(label, "cannot be read; the image is left out.")
                skipped.add(image["id"])
            else:
                findings.error(label, "cannot be read. Fetch it again or delete its entry.")
    return skipped


def _compare_with_header(image: dict, path: str, header: ImageHeader, findings: Findings) -> None:
    name = f"file {image['file_name']!r}"
    if image.get("width") is None:
        follows = image.get("follows_exif", False)
        image["width"], image["height"] = header.shown_size if follows else header.size
    size = (image["width"], image["height"])
    if not header.shows(*size):
        findings.error(f"image {image['id']}", size_mismatch(path, header.size, size))
    if header.animated:
        findings.warn(name, "it is an animation; only its first frame is used.")
    if header.is_ambiguous:
        findings.warn(
            name, "its EXIF orientation is not followed, since the size fits without turning."
        )


def _report_missing(names: list[str], total: int, root: str, findings: Findings) -> None:
    if len(names) == total:
        found = sorted(os.listdir(root))
        sample = f"; the folder holds {len(found)} entries such as {found[0]!r}" if found else ""
        findings.error(
            f"image folder {root!r}",
            f"none of the {total} listed image files is there (first: {names[0]!r}{sample}). "
            "Give the folder that 'file_name' is relative to.",
        )
        return
    for name in names:
        findings.error(
            f"file {name!r}",
            f"not found in image folder {root!r}.{_other_spelling(name, root)} "
            "Restore it or delete its entry.",
        )


def _other_spelling(name: str, root: str) -> str:
    for form in ("NFC", "NFD"):
        spelled = unicodedata.normalize(form, name)
        if spelled != name and os.path.exists(os.path.join(root, spelled)):
            return f" The folder has it in Unicode form {form}; rename one of the two."
    slashed = name.replace("\\", "/")
    if slashed != name and os.path.exists(os.path.join(root, slashed)):
        return f" Write it as {slashed!r}."
    return ""
