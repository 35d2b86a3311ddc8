"""Disable Pillow's own limit of pixels while a picture is read that our limit allows."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from PIL import Image

LARGE_PIXELS = 178_956_970
"""Pillow's limit; larger pictures are read at reduced size if that suffices."""


class _Lifting:
    """The state of a global variable of Pillow, which the last user restores."""

    def __init__(self) -> None:
        self.lock, self.users, self.limit = Lock(), 0, Image.MAX_IMAGE_PIXELS


_lifting = _Lifting()


@contextmanager
def no_limit() -> Iterator[None]:
    """Lets Pillow read a picture of any size, in the whole process, until the block ends."""
    with _lifting.lock:
        if not _lifting.users:
            _lifting.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _lifting.users += 1
    try:
        yield
    finally:
        with _lifting.lock:
            _lifting.users -= 1
            if not _lifting.users:
                Image.MAX_IMAGE_PIXELS = _lifting.limit
