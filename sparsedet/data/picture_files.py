"""The picture files of a set: are they there, can they be read, do their sizes fit."""

import errno
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce

from .depth import Depth, Use
from .images import ImageHeader, inspect_image, mark_said, range_fault, size_mismatch, values_used
from .reading import PictureSettings, storage_error
from .spelling import FileIndex, is_address
from .validate import Findings

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_LOOKED_AT = 8  # pictures of more than 8 bits whose values are looked at
_GUESSES = 3  # names for which a similar one is looked for


def check_names(images: Iterable[dict], root: str | None, findings: Findings) -> None:
    """Refuses file names that leave the image folder; such files must not be opened.

    Args:
        images: entries that `check_images` has passed.
        root: image folder; None where no picture will be opened.
        findings: where faults are noted.
    """
    leaving = [image for image in images if _leaves(image["file_name"])]
    index = FileIndex.below(root) if leaving and root is not None else FileIndex([])
    for image in leaving:
        name = image["file_name"]
        meant = index.find(name, guess=False)
        there = f", meant is {meant}" if meant is not None else ""
        fault = "'file_name' leaves the image folder. Write paths relative to that folder."
        if is_address(name):
            fault = "'file_name' is an address. Write the path below the image folder."
        findings.error(f"image {image['id']} ({name!r}{there})", fault)


def _leaves(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return os.path.isabs(name) or parts[0] == "" or parts[0].endswith(":") or ".." in parts


def check_files(
    images: Iterable[dict],
    root: str,
    findings: Findings,
    skip_broken: bool,
    settings: PictureSettings,
) -> set:
    """Opens the header of every image file and compares its size with the entry.

    Entries without a size get that of the file.

    Args:
        images: entries that `check_images` and `check_names` have passed.
        root: image folder.
        findings: where faults are noted.
        skip_broken: whether an unreadable file is left out with a warning instead of an error.
        settings: how the files will be read.

    Returns:
        Ids of the images to leave out.

    Raises:
        StorageError: a file cannot be reached; it may be whole.
    """
    images = list(images)
    paths = [os.path.join(root, image["file_name"]) for image in images]
    missing = [image for image, path in zip(images, paths, strict=True) if not _is_there(path)]
    if missing:
        _report_missing([image["file_name"] for image in missing], len(images), root, findings)
        return set()
    skipped = set()
    deep: list[tuple[str, Depth]] = []
    inspect = partial(inspect_image, settings=settings)
    with ThreadPoolExecutor(8) as pool:
        for image, path, header in zip(images, paths, pool.map(inspect, paths), strict=True):
            if isinstance(header, ImageHeader):
                _compare_with_header(image, path, header, findings)
                if header.depth is not None:
                    deep.append((path, header.depth))
                continue
            label = f"file {image['file_name']!r} ({header})"
            if skip_broken:
                findings.warn(label, "cannot be read; the image is left out.")
                skipped.add(image["id"])
            else:
                findings.error(label, "cannot be read. Fetch it again or delete its entry.")
    _check_depths(deep, findings, settings)
    return skipped


def _is_there(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise storage_error(error, path) from error
        return False
    except ValueError:  # a null character
        return False
    return True


def _check_depths(
    deep: Sequence[tuple[str, Depth]], findings: Findings, settings: PictureSettings
) -> None:
    """Says what will become of pictures of more than 8 bits: once for a set, not for each."""
    usable = []
    for path, depth in deep:
        fault = range_fault(depth, settings)
        if fault is None:
            usable.append(path)
        else:
            findings.error(f"file {os.path.basename(path)!r}", f"its {fault}.")
    if not usable:
        return
    if settings.value_range is None:
        declared = {depth.declared for _, depth in deep if depth.declared is not None}
        if len(declared) > 1:
            ranges = ", ".join(f"{low:g}..{high:g}" for low, high in sorted(declared))
            findings.warn(
                f"{len(usable)} pictures of more than 8 bits",
                f"their files declare different ranges ({ranges}), so equal values are not equally "
                "bright. Set dataset.value_range=[LOW,HIGH] if one sensor took them.",
            )
    step = -(-len(usable) // _LOOKED_AT)
    uses: dict[tuple, list[Use]] = {}
    for path in usable[::step]:
        use = values_used(path, settings)
        if use is not None:
            uses.setdefault((use.kind, use.scale), []).append(use)
    for group in uses.values():
        use = reduce(Use.joined, group)
        fault = use.fault()
        mark_said(use)  # pictures that are read later do not say it again
        if fault is not None:
            looked = f"{len(group)} of them were looked at"
            findings.warn(f"{len(usable)} pictures of {use.kind} ({looked})", fault)


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
    index = FileIndex.below(root)
    found = [index.find(name, guess=place < _GUESSES) for place, name in enumerate(names)]
    if len(names) == total and not any(found):
        there = index.names
        sample = f"; the folder holds {len(there)} files such as {there[0]!r}" if there else ""
        findings.error(
            f"image folder {root!r}",
            f"none of the {total} listed image files is there (first: {names[0]!r}{sample}). "
            "Give the folder that 'file_name' is relative to.",
        )
        return
    for name, meant in zip(names, found, strict=True):
        fault = f"not found in image folder {root!r}. Restore it or delete its entry."
        if meant is None:
            findings.error(f"file {name!r}", fault)
            continue
        mend = "Write 'file_name' as the file is called below that folder."
        findings.error(
            f"file {name!r} (meant is {meant})",
            f"not found in image folder {root!r}: {meant.why}. {mend}",
        )
