"""Check the picture files of a data set: existence, readability and size."""

import errno
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from itertools import compress

from sparsedet.data.depth import Depth, Use
from sparsedet.data.images import (
    OTHER_SIZE,
    ImageHeader,
    inspect_image,
    mark_said,
    range_fault,
    values_used,
)
from sparsedet.data.reading import DEFAULT_SETTINGS, PictureSettings, storage_error
from sparsedet.data.roots import is_address, join, list_files
from sparsedet.data.spelling import FileIndex, Meant
from sparsedet.data.validate import Effect, Findings
from sparsedet.data.validate.entries import name_of
from sparsedet.data.validate.fields import quoted

Inspector = Callable[[Sequence[str], PictureSettings], Iterable[ImageHeader | str]]

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_LOOKED_AT = 8  # pictures of more than 8 bits whose values are checked
_GUESSES = 3  # missing names for which a similar name is searched
_FETCHED = 32  # pictures of a remote data set that are checked in advance


def inspect_headers(paths: Sequence[str], settings: PictureSettings) -> Iterator[ImageHeader | str]:
    """`inspect_image` of each file, in parallel."""
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(partial(inspect_image, settings=settings), paths)


def check_names(images: Iterable[dict], root: str | None, findings: Findings) -> set:
    """Refuses file names that leave the image folder; such files must not be opened.

    Args:
        images: entries that `check_images` has checked.
        root: image folder; None if no picture will be opened.
        findings: collects faults.

    Returns:
        Ids of the images whose file must not be opened.
    """
    leaving = [image for image in images if _leaves(image["file_name"])]
    local = root is not None and not is_address(root)
    index = FileIndex.below(root) if leaving and root and local else FileIndex([])
    for image in leaving:
        name = image["file_name"]
        meant = index.find(name, guess=False)
        there = f", probably {meant}" if meant is not None else ""
        fault = "'file_name' leaves the image folder. Write paths relative to that folder."
        if is_address(name):
            fault = "'file_name' is a URL. Write the path below the image folder."
        elif name.startswith("data:"):
            fault = "'file_name' holds a picture, not a name. Save it, and write its path."
        findings.error(f"image {name_of(image['id'])} ({quoted(name)}{there})", fault)
    return {image["id"] for image in leaving}


def _leaves(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    outside = os.path.isabs(name) or parts[0] == "" or parts[0].endswith(":") or ".." in parts
    return outside or name.startswith("data:")


def check_files(
    images: Iterable[dict],
    root: str,
    findings: Findings,
    skip_broken: bool,
    settings: PictureSettings | None,
    inspect: Inspector = inspect_headers,
) -> set:
    """Inspects every image file and compares its size with the entry.

    Entries without a size get the size of the file. If the root is a URL, names are compared with
    its list of files, and only entries without a size and a sample of the others are opened; the
    rest is checked when it is read.

    Args:
        images: entries that `check_images` and `check_names` have checked.
        root: image folder, or its URL.
        findings: collects faults.
        skip_broken: whether an unreadable file is left out with a warning instead of an error.
        settings: how the files will be read; None = they will not be read, so only their headers
            are checked.
        inspect: returns for each path its header, or the reason why it cannot be read.

    Returns:
        Ids of the images that cannot be used.

    Raises:
        StorageError: a file cannot be reached; it may be intact.
    """
    images = list(images)
    listed = list_files(root) if is_address(root) else None
    there = [_is_there(root, image, listed) for image in images]
    unusable = {image["id"] for image, found in zip(images, there, strict=True) if not found}
    if unusable:
        index = FileIndex.below(root) if listed is None else FileIndex(listed)
        missing = [i["file_name"] for i, found in zip(images, there, strict=True) if not found]
        taken = {i["file_name"] for i, found in zip(images, there, strict=True) if found}
        _report_missing(_without_links(missing, root, findings), taken, root, index, findings)
    images = list(compress(images, there))
    opened = _sample(images) if is_address(root) else images
    paths = [join(root, image["file_name"]) for image in opened]
    deep: list[tuple[str, Depth]] = []
    chosen = settings or DEFAULT_SETTINGS
    for image, path, header in zip(opened, paths, inspect(paths, chosen), strict=True):
        if isinstance(header, ImageHeader):
            fits = _compare_with_header(image, header, findings)
            if header.depth is not None:
                deep.append((path, header.depth))
        else:
            fits = False
            _report_broken(f"file {quoted(image['file_name'])} ({header})", findings, skip_broken)
        if not fits:
            unusable.add(image["id"])
    if settings is not None and images:
        _check_depths(deep, findings, settings, all_known=not unusable)
    return unusable


def _report_broken(label: str, findings: Findings, skip_broken: bool) -> None:
    if skip_broken:
        fault = "cannot be read; the image is left out."
        findings.warn(label, fault, Effect.LEFT_OUT)
    else:
        findings.error(label, "cannot be read. Restore the file or delete its entry.")


def _sample(images: Sequence[dict]) -> list[dict]:
    step = -(-len(images) // _FETCHED)
    return [e for i, e in enumerate(images) if i % step == 0 or e.get("width") is None]


def _is_there(root: str, image: dict, listed: Mapping[str, int] | None) -> bool:
    if is_address(root):
        return listed is None or posixpath.normpath(image["file_name"]) in listed
    path = os.path.join(root, image["file_name"])
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
    deep: Sequence[tuple[str, Depth]],
    findings: Findings,
    settings: PictureSettings,
    *,
    all_known: bool,
) -> None:
    """Reports how pictures of more than 8 bits will be read: once per data set, not per picture."""
    if settings.value_range is not None and not deep and all_known:
        findings.warn("dataset.value_range", "not used: no picture has more than 8 bits.")
    usable = []
    for path, depth in deep:
        fault = range_fault(depth, settings)
        if fault is None:
            usable.append(path)
        else:
            findings.error(f"file {os.path.basename(path)!r}", f"its {fault}.", whole=True)
    if settings.value_range is None:
        _compare_ranges([depth for _, depth in deep], findings)
    _look_at_values(usable, findings, settings)


def _compare_ranges(depths: Sequence[Depth], findings: Findings) -> None:
    declared = {depth.declared for depth in depths if depth.declared is not None}
    if len(declared) > 1:
        ranges = ", ".join(f"{low:g}..{high:g}" for low, high in sorted(declared))
        findings.warn(
            f"{len(depths)} pictures of more than 8 bits",
            f"their files declare different ranges ({ranges}), so equal values are not equally "
            "bright. Set dataset.value_range=[LOW,HIGH] if one sensor took them.",
        )


def _look_at_values(paths: Sequence[str], findings: Findings, settings: PictureSettings) -> None:
    step = max(1, -(-len(paths) // _LOOKED_AT))
    uses: dict[tuple, list[Use]] = {}
    for path in paths[::step]:
        use = values_used(path, settings)
        if use is not None:
            uses.setdefault((use.kind, use.scale), []).append(use)
    for group in uses.values():
        use = reduce(Use.joined, group)
        dark = [each for each in group if each.is_dark()]
        mark_said(use)  # pictures that are read later do not say it again
        if fault := use.fault():
            looked = f"{len(group)} of them were looked at"
            findings.warn(f"{len(paths)} pictures of {use.kind} ({looked})", fault)
        elif 2 * len(dark) >= len(group):
            looked = f"{len(dark)} of {len(group)} pictures of {use.kind} that were looked at"
            findings.warn(looked, str(reduce(Use.joined, dark).fault()))


def _compare_with_header(image: dict, header: ImageHeader, findings: Findings) -> bool:
    name = f"file {quoted(image['file_name'])}"
    if image.get("width") is None:
        follows = image.get("follows_exif", False)
        image["width"], image["height"] = header.shown_size if follows else header.size
    width, height = image["width"], image["height"]
    fits = header.shows(width, height)
    if not fits:
        found = "x".join(map(str, header.size))
        findings.error(
            f"image {name_of(image['id'])} ({name} is {found} pixels, but the annotation file says "
            f"{width}x{height})",
            OTHER_SIZE,
        )
    if header.animated:
        findings.warn(name, "it has several frames or pages; only the first is used.")
    if header.is_ambiguous:
        findings.warn(name, "its EXIF orientation is ignored, because its size fits without it.")
    return fits


def _folder_before(name: str, meant: Meant | None) -> str | None:
    """The folders that are missing in front of a name; None if the name differs otherwise."""
    only = meant.names[0] if meant is not None and len(meant.names) == 1 else ""
    return only.removesuffix(f"/{name}") if only.endswith(f"/{name}") else None


def _without_links(names: Sequence[str], root: str, findings: Findings) -> list[str]:
    """The names without broken links, which are reported."""
    left = []
    for name in names:
        path = os.path.join(root, name)
        if is_address(root) or "\0" in name or not os.path.islink(path):
            left.append(name)
            continue
        fault = "it is a broken link. Restore its target, or delete the entry."
        findings.error(f"file {quoted(name)} (links to {quoted(os.readlink(path))})", fault)
    return left


def _report_missing(
    names: Sequence[str], taken: set[str], root: str, index: FileIndex, findings: Findings
) -> None:
    """Reports each missing name, with the file that is probably meant.

    Args:
        names: names of missing files.
        taken: names of existing files, which no other entry means.
        root: image folder.
        index: index of all files below it.
        findings: collects faults.
    """
    if not names:
        return
    guesses = enumerate(names)
    found = [index.find(name, guess=place < _GUESSES, taken=taken) for place, name in guesses]
    if not taken and not any(found):
        there = index.names
        sample = f"; the folder holds {len(there)} files such as {there[0]!r}" if there else ""
        findings.error(
            f"image folder {root!r}",
            f"none of the {len(names)} listed image files exists (first: {quoted(names[0])}"
            f"{sample}). "
            "Give the folder that 'file_name' is relative to.",
            whole=True,
        )
        return
    mend = "Write 'file_name' exactly as the file is named in that folder."
    parent = os.path.dirname(os.path.abspath(root))
    if not is_address(root) and all(os.path.exists(os.path.join(parent, name)) for name in names):
        mend = f"All are below {parent!r}: give that as the image folder."
    inner = {_folder_before(name, each) for name, each in zip(names, found, strict=True)}
    if not taken and len(inner) == 1 and (folder := inner.pop()):
        mend = f"All are below {join(root, folder)!r}: give that as the image folder."
    for name, meant in zip(names, found, strict=True):
        fault = f"not found in image folder {root!r}. Restore it or delete its entry."
        if meant is None:
            findings.error(f"file {quoted(name)}", fault)
            continue
        findings.error(
            f"file {quoted(name)} (probably {meant})",
            f"not found in image folder {root!r}: {meant.why}. {mend}",
        )
