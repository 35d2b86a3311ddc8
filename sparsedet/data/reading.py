"""Open picture files: settings, and the distinction between broken and unreachable files."""

import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from sparsedet.data.depth import describe_tiff
from sparsedet.data.errors import DatasetError, StorageError
from sparsedet.data.pillow_limit import no_limit
from sparsedet.data.roots import forget, is_address, open_file
from sparsedet.data.unread import describe_unread

# System errors that the name or content of a file can cause; others are not due to the file.
_OF_THE_FILE = {
    None,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,  # a broken file may make its reader seek to an invalid position
}
_MENDS = {
    errno.EMFILE: "Raise the file descriptor limit (ulimit -n 65536), or lower num_workers.",
    errno.ENFILE: "Close other programs, or raise the system's limit of open files.",
    errno.EACCES: "Give this user permission to read it.",
    errno.EPERM: "Give this user permission to read it.",
}
_BYTES_PER_PIXEL = 7.4  # measured: a copy in Pillow, one in numpy, and a strip
# Errors that Pillow raises for files that are not images, are truncated or invalid.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def _is_range(value: Any) -> bool:
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return pair and all(map(_is_number, value)) and value[0] < value[1]


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -1e300 < value < 1e300


@dataclass(frozen=True)
class PictureSettings:
    """How picture files are read in training, evaluation and prediction.

    Args:
        value_range: the values (black, white) of pictures with more than 8 bits per channel, such
            as (0, 4095) for a 12-bit sensor. None = the range that a file declares. It does not
            affect 8-bit pictures.
        max_pixels: largest width x height that is decoded. Reading takes up to 7.4 bytes of memory
            per pixel, so 3.7 GB for 500 million; 14 bytes with 16-bit colors, and 26 bytes if these
            are scaled to `value_range`.
        cache_dir: folder for copies of remote files; None = `~/.cache/sparsedet/pictures`.
        cache_gigabytes: maximum size of that folder; the least recently used copies are removed.

    Raises:
        ValueError: `value_range` is not a pair of ascending numbers, or another number is not
            positive.
    """

    value_range: tuple[float, float] | None = None
    max_pixels: int = 500_000_000
    cache_dir: str | None = None
    cache_gigabytes: float = 20

    def __post_init__(self) -> None:
        if self.value_range is not None:
            if not _is_range(self.value_range):
                raise ValueError(
                    "PictureSettings.value_range must be two ascending numbers, black and "
                    f"white, got {self.value_range!r}. Set for example "
                    "dataset.value_range=[0,4095], or null for the range that each file declares."
                )
            object.__setattr__(self, "value_range", tuple(self.value_range))
        if not _is_number(self.max_pixels) or self.max_pixels < 1 or self.max_pixels % 1:
            raise ValueError(
                f"PictureSettings.max_pixels must be a positive integer, got {self.max_pixels!r}. "
                "Set for example dataset.max_image_pixels=500000000."
            )
        if not _is_number(self.cache_gigabytes) or self.cache_gigabytes <= 0:
            raise ValueError(
                "PictureSettings.cache_gigabytes must be a positive number, got "
                f"{self.cache_gigabytes!r}. Set for example dataset.cache_gigabytes=20."
            )
        if self.cache_dir is not None and not (isinstance(self.cache_dir, str) and self.cache_dir):
            raise ValueError(
                f"PictureSettings.cache_dir must be a folder or null, got {self.cache_dir!r}. Set "
                "dataset.cache_dir."
            )


DEFAULT_SETTINGS = PictureSettings()


class BrokenPictureError(Exception):
    """A file cannot be decoded; the text gives the reason in a few words."""


@contextmanager
def open_picture(
    source: str | Image.Image, settings: PictureSettings = DEFAULT_SETTINGS
) -> Iterator[Image.Image]:
    """Opens a picture; errors in the block are classified as broken or unreachable files.

    While a header is read, Pillow's own limit of pixels is disabled in the whole process;
    `settings.max_pixels` replaces it.

    Args:
        source: path of a file, or a picture that Pillow has opened.
        settings: how it is read.

    Raises:
        BrokenPictureError: the file is not a picture, is broken or too large.
        StorageError: the file cannot be reached; it may be intact.
    """
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with _opened(source, settings) as file, _identified(file, source) as image:
            width, height = image.size
            if width * height > settings.max_pixels:
                raise BrokenPictureError(
                    f"{width}x{height} pixels exceed dataset.max_image_pixels="
                    f"{settings.max_pixels:.0f}; raise it if there are "
                    f"{_BYTES_PER_PIXEL * width * height / 1e9:.1f} GB of memory to decode the file"
                )
            yield image
    except (StorageError, DatasetError):
        raise
    except (BrokenPictureError, *_DECODER_ERRORS) as error:
        if isinstance(source, str) and is_address(source):  # only its copy may be broken
            forget(source, settings.cache_dir, settings.cache_gigabytes)
        if isinstance(error, BrokenPictureError):
            raise
        raise BrokenPictureError(_reason(error, source)) from error


def load(image: Image.Image) -> None:
    """Decodes a picture that `open_picture` has accepted."""
    with no_limit():
        image.load()


def _identified(file: IO[bytes], name: str) -> Image.Image:
    if not file.seek(0, os.SEEK_END):
        raise BrokenPictureError("the file is empty")
    try:
        with no_limit():
            image: Any = Image.open(file)
    except UnidentifiedImageError:
        told = describe_tiff(file) or describe_unread(file) or "it is not an image"
        raise BrokenPictureError(told) from None
    image.filename = name  # for messages
    return image


def _opened(path: str, settings: PictureSettings) -> IO[bytes]:
    if is_address(path):
        return open_file(path, settings.cache_dir, settings.cache_gigabytes)
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise BrokenPictureError("it is a folder")
    if not stat.S_ISREG(mode):  # pipes and devices may block or never end
        raise BrokenPictureError("it is neither a file nor a link to one")
    return open(path, "rb")


def _reason(error: Exception, source: str | Image.Image) -> str:
    if isinstance(error, OSError) and error.errno not in _OF_THE_FILE:
        raise storage_error(error, source) from error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).split("\n")[0] or type(error).__name__


def storage_error(error: OSError, source: Any) -> StorageError:
    """The error about a file that cannot be reached."""
    mend = _MENDS.get(
        error.errno or 0, "Check the disk or the mount; the file itself may be intact."
    )
    reason = (error.strerror or str(error)).lower()
    return StorageError(f"file {source!r} cannot be reached ({reason}). {mend}")
