"""Read image files: their headers, and their pixels as 8-bit RGB."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsedet.data.depth import Depth, Use, declared_depth, to_8_bits
from sparsedet.data.errors import DatasetError
from sparsedet.data.pillow_limit import LARGE_PIXELS
from sparsedet.data.reading import (
    DEFAULT_SETTINGS,
    BrokenPictureError,
    PictureSettings,
    load,
    open_picture,
)

_logger = logging.getLogger(__name__)

_ORIENTATION_TAG = 274
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 256
_STRIP = 1 << 24  # pixels that are copied at a time
_LARGEST_SHRINK = 8  # of a JPEG's decoder

Shrink = Callable[[int, int], int]
"""The factor 1, 2, 4 or 8 by which a picture of this (height, width) is read smaller."""

_said: set[tuple] = set()  # kinds of unusual values that this process has warned about


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file, read without decoding it.

    Args:
        size: stored (width, height).
        orientation: EXIF orientation, 1 = upright.
        animated: whether there are more frames or pages.
        depth: range of its values if they have more than 8 bits.
    """

    size: tuple[int, int]
    orientation: int
    animated: bool
    depth: Depth | None

    def shows(self, width: int, height: int) -> bool:
        """Whether the picture, as stored or as turned by EXIF, has this size."""
        return self.size == (width, height) or self.needs_turning(width, height)

    def needs_turning(self, width: int, height: int) -> bool:
        """Whether only the turned picture has this size, so that EXIF must be applied."""
        stored = self.size
        return (
            self.orientation in _TURNED and stored != (width, height) and stored == (height, width)
        )

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) of the picture as turned by EXIF."""
        width, height = self.size
        return (height, width) if self.orientation in _TURNED else (width, height)

    @property
    def is_ambiguous(self) -> bool:
        """Whether the stored and the turned picture differ although their sizes are equal."""
        square = self.size[0] == self.size[1]
        return self.orientation in (2, 3, 4) or (self.orientation in _TURNED and square)


def inspect_image(
    path: str, settings: PictureSettings = DEFAULT_SETTINGS, *, decode: bool = False
) -> ImageHeader | str:
    """Reads the header of an image file and checks that the file is not truncated.

    Only a file with an unexpected end is decoded, so this is fast enough for large data sets.

    Args:
        path: a file in any format that Pillow reads.
        settings: how it will be read.
        decode: decode every file, which finds all faults.

    Returns:
        The header, or the reason why the file cannot be read.

    Raises:
        StorageError: the file cannot be reached; it may be intact.
    """
    try:
        with open_picture(path, settings) as image:
            header = _header_of(image)
            mark = _END_MARKS.get(image.format or "")
            if decode or (mark is not None and not _ends_with(image, mark)):
                large = image.width * image.height > LARGE_PIXELS
                _load(image, _LARGEST_SHRINK if large else 1)
    except BrokenPictureError as error:
        return str(error)
    return header


def read_image(
    path: str,
    size: tuple[int, int] | None = None,
    settings: PictureSettings = DEFAULT_SETTINGS,
    shrink: Shrink | None = None,
) -> Tensor:
    """Decodes an image file to 8-bit RGB.

    Gray pictures become three equal channels, more than 8 bits are scaled to 8 by the rules of
    `sparsedet.data.depth`, palettes are converted to colors, transparency is dropped, and only the
    first frame of an animation is read. EXIF orientation is applied only if `size` is the size of
    the turned picture.

    Args:
        path: a file in any format that Pillow reads.
        size: expected (width, height), from the annotation file; None = as stored.
        settings: how it is read.
        shrink: the factor by which it is read smaller, to save memory; None = full size.

    Returns:
        uint8 tensor (3, h, w) in channels-last memory. Read smaller by s, it has ceil(h / s) rows
        and ceil(w / s) columns, each pixel the mean of s x s pixels.

    Raises:
        DatasetError: the file cannot be decoded, or it has another size.
        StorageError: the file cannot be reached; it may be intact.
    """
    try:
        with open_picture(path, settings) as image:
            header = _header_of(image)
            if size is not None and not header.shows(*size):
                raise DatasetError(size_mismatch(path, header.size, size))
            return _pixels(image, header, size or header.size, settings, shrink)
    except BrokenPictureError as error:
        raise DatasetError(
            f"image file {path!r} cannot be read ({error}). Restore the file or delete its entry."
        ) from None


def upright_pixels(
    image: Image.Image | str,
    settings: PictureSettings = DEFAULT_SETTINGS,
    shrink: Shrink | None = None,
) -> tuple[Tensor, tuple[int, int]]:
    """Reads a picture without annotations, with its EXIF orientation applied.

    Args:
        image: a picture, or the path of a file.
        settings: how it is read.
        shrink: the factor by which it is read smaller; None = full size.

    Returns:
        The pixels, and (height, width) of the whole picture.

    Raises:
        DatasetError: it cannot be decoded.
        StorageError: the file cannot be reached; it may be intact.
    """
    name = f"image file {image!r}" if isinstance(image, str) else "the picture"
    try:
        with open_picture(image, settings) as opened:
            header = _header_of(opened)
            width, height = header.shown_size
            return _pixels(opened, header, (width, height), settings, shrink), (height, width)
    except BrokenPictureError as error:
        raise DatasetError(f"{name} cannot be read ({error}).") from None


def values_used(path: str, settings: PictureSettings = DEFAULT_SETTINGS) -> Use | None:
    """How the values of a picture use their range; None for 8 bits and broken files."""
    try:
        with open_picture(path, settings) as image:
            depth = _header_of(image).depth
            if depth is None or range_fault(depth, settings) is not None:
                return None
            return to_8_bits(image, depth, settings.value_range)[1]
    except BrokenPictureError:
        return None


OTHER_SIZE = (
    "its boxes may belong to another resolution; correct width, height and boxes, or restore the "
    "original file."
)


def size_mismatch(path: str, found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Sentence about a file whose size differs from the annotation file."""
    return (
        f"image file {path!r} is {found[0]}x{found[1]} pixels, but the annotation file says "
        f"{expected[0]}x{expected[1]}; {OTHER_SIZE}"
    )


def range_fault(depth: Depth, settings: PictureSettings) -> str | None:
    """Why the values of a picture cannot be read, and the remedy; None if they can."""
    if depth.only_shown and settings.value_range not in (None, depth.shown):
        low, high = depth.shown
        return (
            f"{depth.kind} in this layout can only be read with {low:g}..{high:g} as black and "
            "white, but dataset.value_range differs. Save it as PNG or TIFF, gray or RGB"
        )
    if depth.declared is None and settings.value_range is None:
        return (
            f"{depth.kind} do not say which values are black and white. Set "
            "dataset.value_range=[LOW,HIGH], such as [0,1] or [0,4095]"
        )
    return None


def mark_said(use: Use) -> bool:
    """Records that there was a warning about a kind of values; returns whether it is the first."""
    key = (use.kind, use.scale)
    news = key not in _said
    _said.add(key)
    return news


def _pixels(
    image: Image.Image,
    header: ImageHeader,
    size: tuple[int, int],
    settings: PictureSettings,
    shrink: Shrink | None,
) -> Tensor:
    """uint8 (3, h, w), turned if only the turned picture has this (width, height)."""
    times = 1 if shrink is None else shrink(size[1], size[0])
    if header.depth is None:
        levels = _rgb_levels(image, times)
    else:
        name = getattr(image, "filename", None) or "the picture"
        fault = range_fault(header.depth, settings)
        if fault is not None:
            raise DatasetError(f"image {name!r}: {fault}.")
        levels, use = to_8_bits(image, header.depth, settings.value_range)
        fault = use.fault()
        if fault is not None and mark_said(use):
            _logger.warning(f"pictures of {use.kind}, such as {name!r}: {fault}")
        levels = np.array(_reduced(Image.fromarray(levels), times)) if times > 1 else levels
        levels = np.repeat(levels[..., None], 3, axis=2) if levels.ndim == 2 else levels
    if header.needs_turning(*size):
        levels = _turned(levels, header.orientation)
    return torch.from_numpy(levels).permute(2, 0, 1)


def _header_of(image: Image.Image) -> ImageHeader:
    depth = declared_depth(image)
    # the PNG class's own getexif decodes the picture, which loses values of more than 8 bits
    exif = image.getexif() if depth is None else Image.Image.getexif(image)
    orientation = exif.get(_ORIENTATION_TAG, 1)
    # additional frames of a phone's MPO are previews and depth maps of the same picture
    animated = getattr(image, "is_animated", False) and image.format != "MPO"
    return ImageHeader(image.size, orientation, animated, depth)


def _ends_with(image: Image.Image, mark: bytes) -> bool:
    file = getattr(image, "fp", None)
    if file is None:  # already decoded, so complete
        return True
    place = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    tail = file.read()
    file.seek(place)
    return mark in tail


def _load(image: Image.Image, times: int) -> int:
    """Decodes a picture, at reduced size if its format can; returns the remaining factor."""
    width, height = image.size
    if times > 1:
        image.draft(None, (width // times, height // times))
    load(image)
    return times // round(max(width, height) / max(image.size))


def _rgb_levels(image: Image.Image, times: int) -> np.ndarray:
    """Writable (h, w, 3), copied in strips: a full copy of a large picture needs gigabytes."""
    times = _load(image, times)
    width, height = image.size
    rows = max(1, _STRIP // width // times) * times
    if rows >= height:
        return np.array(_reduced(_to_rgb(image), times))
    levels = np.empty((-(-height // times), -(-width // times), 3), np.uint8)
    for top in range(0, height, rows):
        strip = _to_rgb(image.crop((0, top, width, min(top + rows, height))))
        levels[top // times : (top + rows) // times] = np.asarray(_reduced(strip, times))
    return levels


def _reduced(image: Image.Image, times: int) -> Image.Image:
    return image.reduce(times) if times > 1 else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    elif image.mode == "La":  # alpha is multiplied into the gray
        image = image.convert("LA")
    return image.convert("RGB")


def _turned(levels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 7):
        levels = levels.transpose(1, 0, 2)
        return np.ascontiguousarray(levels if orientation == 5 else levels[::-1, ::-1])
    return np.ascontiguousarray(np.rot90(levels, -1 if orientation == 6 else 1))
