"""Image files: what their header says, and their pixels as 8-bit RGB."""

import os
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import DatasetError

_ORIENTATION_TAG = 274
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 256
# What Pillow raises for files that are not images, are cut, or claim an absurd size.
_READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says about itself without being decoded.

    Args:
        size: stored (width, height).
        orientation: EXIF orientation, 1 = upright.
        animated: whether more than one frame is there.
    """

    size: tuple[int, int]
    orientation: int
    animated: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) of the picture as EXIF turns it."""
        width, height = self.size
        return (height, width) if self.orientation in _TURNED else (width, height)

    def shows(self, width: int, height: int) -> bool:
        """Whether the picture, as stored or as EXIF turns it, has this size."""
        return self.size == (width, height) or self.needs_turning(width, height)

    def needs_turning(self, width: int, height: int) -> bool:
        """Whether only the turned picture has this size; the size decides which frame holds."""
        stored = self.size
        return (
            self.orientation in _TURNED and stored != (width, height) and stored == (height, width)
        )

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) of the picture as EXIF turns it."""
        width, height = self.size
        return (height, width) if self.orientation in _TURNED else (width, height)

    @property
    def is_ambiguous(self) -> bool:
        """Whether stored and shown picture differ though their sizes are equal."""
        square = self.size[0] == self.size[1]
        return self.orientation in (2, 3, 4) or (self.orientation in _TURNED and square)


def inspect_image(path: str) -> ImageHeader | str:
    """Reads the header of an image file and looks whether the end of the file is there.

    Only a file whose end looks wrong is decoded, so this is fast enough for large sets.

    Returns:
        The header, or the reason why the file cannot be read.
    """
    try:
        if os.path.getsize(path) == 0:
            return "the file is empty"
        with Image.open(path) as image:
            header = _header_of(image)
            mark = _END_MARKS.get(image.format or "")
            if mark is not None and not _ends_with(path, mark):
                image.load()
    except _READ_ERRORS as error:
        return _reason(error)
    return header


def read_image(path: str, size: tuple[int, int] | None = None) -> Tensor:
    """Decodes an image file to 8-bit RGB.

    Gray pictures become three equal channels, 16-bit ones are scaled to 8 bits, palettes become
    their colors, transparency is dropped, and of an animation the first frame is taken. EXIF
    orientation is followed only where `size` is that of the turned picture.

    Args:
        path: any format that Pillow reads.
        size: expected (width, height), that of the annotation file; None takes the stored frame.

    Returns:
        uint8 tensor (3, h, w); its memory is laid out with the channels last.

    Raises:
        DatasetError: the file cannot be decoded, or it has another size.
    """
    try:
        with Image.open(path) as image:
            header = _header_of(image)
            if size is not None and not header.shows(*size):
                raise DatasetError(size_mismatch(path, header.size, size))
            return _pixels(image, size or header.size)
    except DatasetError:
        raise
    except _READ_ERRORS as error:
        raise DatasetError(
            f"image file {path!r} cannot be read ({_reason(error)}). "
            "Fetch it again or delete its entry."
        ) from None


def upright_pixels(image: Image.Image | str) -> Tensor:
    """The pixels of a picture without annotations: `read_image` of the size to which EXIF turns it.

    Args:
        image: a picture, or the path of a file.

    Raises:
        DatasetError: it cannot be decoded.
    """
    name = f"image file {image!r}" if isinstance(image, str) else "the picture"
    try:
        with Image.open(image) if isinstance(image, str) else nullcontext(image) as opened:
            return _pixels(opened, _header_of(opened).upright_size)
    except _READ_ERRORS as error:
        raise DatasetError(f"{name} cannot be read ({_reason(error)}).") from None


def size_mismatch(path: str, found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Sentence about a file whose size is not that of the annotation file."""
    return (
        f"image file {path!r} is {found[0]}x{found[1]} pixels, but the annotation file says "
        f"{expected[0]}x{expected[1]}. Its boxes may belong to another resolution; correct "
        "width, height and boxes, or restore the original file."
    )


def _pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """uint8 (3, h, w), turned where only the turned picture has this (width, height)."""
    rgb = _to_rgb(image)
    if _header_of(image).needs_turning(*size):
        rgb = ImageOps.exif_transpose(rgb)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _header_of(image: Image.Image) -> ImageHeader:
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    return ImageHeader(image.size, orientation, getattr(image, "is_animated", False))


def _ends_with(path: str, mark: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
        return mark in file.read()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    exif = image.getexif()
    if image.mode.startswith("I"):
        image = _gray_to_8_bits(image)
    elif image.mode == "F":
        _check_floats(image)
    elif image.mode == "P":
        image = image.convert("RGBA")
    rgb = image.convert("RGB")
    rgb.info["exif"] = exif.tobytes()  # a conversion may lose what exif_transpose reads
    return rgb


def _gray_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.max(initial=0) > 255:
        values = values >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _check_floats(image: Image.Image) -> None:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 255 or 0 < high <= 1:
        raise ValueError(
            f"its values are floats in [{low:g}, {high:g}], not in 0..255; save it with 8 or 16 "
            "bits"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    return str(error).split("\n")[0]
