"""Opening picture files: how they are to be read, and whose fault it is where that fails."""

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

# What the name of a file or its content can cause; other errors of the system are not its fault.
_OF_THE_FILE = {
    None,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,  # a broken file makes its reader seek to impossible places
}
_MENDS = {
    errno.EMFILE: "Raise the file descriptor limit (ulimit -n 65536), or lower num_workers.",
    errno.ENFILE: "Close other programs, or raise the system's limit of open files.",
    errno.EACCES: "Give this user the right to read it.",
    errno.EPERM: "Give this user the right to read it.",
}
_BYTES_PER_PIXEL = 7.4  # measured; a copy in Pillow, one in numpy, and a strip
# What Pillow raises where a file is no image, is cut, or holds nonsense.
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
    """How picture files are read, in training, evaluation and prediction alike.

    Args:
        value_range: the values (black, white) of pictures with more than 8 bits for each channel,
            such as (0, 4095) for a sensor of 12 bits. None takes the range that a file declares.
            Pictures of 8 bits are not changed by it.
        max_pixels: largest width x height that is decoded. Reading takes up to 7.4 bytes of memory
            for each pixel, so 3.7 GB for 500 million; 14 with colors of 16 bits, and 26 if they are
            scaled to `value_range`.
        cache_dir: folder for copies of files from other machines; None =
            `~/.cache/sparsedet/pictures`.
        cache_gigabytes: size of that folder; the copies that were not used for longest are removed.

    Raises:
        ValueError: `value_range` is no pair of rising numbers, or another number is not positive.
    """

    value_range: tuple[float, float] | None = None
    max_pixels: int = 500_000_000
    cache_dir: str | None = None
    cache_gigabytes: float = 20

    def __post_init__(self) -> None:
        if self.value_range is not None:
            if not _is_range(self.value_range):
                raise ValueError(
                    "PictureSettings.value_range must be two numbers, the values of black and of "
                    f"white, got {self.value_range!r}. Set dataset.value_range=[0,4095] or the "
                    "like, or null for what each file declares."
                )
            object.__setattr__(self, "value_range", tuple(self.value_range))
        if not _is_number(self.max_pixels) or self.max_pixels < 1 or self.max_pixels % 1:
            raise ValueError(
                f"PictureSettings.max_pixels must be a positive integer, got {self.max_pixels!r}. "
                "Set dataset.max_image_pixels=500000000 or the like."
            )
        if not _is_number(self.cache_gigabytes) or self.cache_gigabytes <= 0:
            raise ValueError(
                "PictureSettings.cache_gigabytes must be a positive number, got "
                f"{self.cache_gigabytes!r}. Set dataset.cache_gigabytes=20 or the like."
            )
        if self.cache_dir is not None and not (isinstance(self.cache_dir, str) and self.cache_dir):
            raise ValueError(
                f"PictureSettings.cache_dir must be a folder or null, got {self.cache_dir!r}. Set "
                "dataset.cache_dir."
            )


DEFAULT_SETTINGS = PictureSettings()


class BrokenPictureError(Exception):
    """Why a file cannot be decoded, in a few words."""


@contextmanager
def open_picture(
    source: str | Image.Image, settings: PictureSettings = DEFAULT_SETTINGS
) -> Iterator[Image.Image]:
    """Opens a picture; what goes wrong with it in the block is told apart.

    Pillow's own limit of pixels is lifted while a header is read, in the whole process, and put
    back; `settings.max_pixels` takes its place.

    Args:
        source: path of a file, or a picture that Pillow has opened.
        settings: how it is to be read.

    Raises:
        BrokenPictureError: the file is no picture, is broken or too large.
        StorageError: the file may be whole and cannot be reached.
    """
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with _opened(source, settings) as file, _identified(file, source) as image:
            width, height = image.size
            if width * height > settings.max_pixels:
                raise BrokenPictureError(
                    f"{width}x{height} pixels are more than dataset.max_image_pixels="
                    f"{settings.max_pixels:.0f}; raise it if there are "
                    f"{_BYTES_PER_PIXEL * width * height / 1e9:.1f} GB of memory to decode them"
                )
            yield image
    except (StorageError, DatasetError):
        raise
    except (BrokenPictureError, *_DECODER_ERRORS) as error:
        if isinstance(source, str) and is_address(source):  # its copy may be what is broken
            forget(source, settings.cache_dir, settings.cache_gigabytes)
        if isinstance(error, BrokenPictureError):
            raise
        raise BrokenPictureError(_reason(error, source)) from error


def load(image: Image.Image) -> None:
    """Decodes a picture that `open_picture` has let pass."""
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
    if not stat.S_ISREG(mode):  # pipes and devices are waited for, or never end
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
