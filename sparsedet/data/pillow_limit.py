"""Pillow's own limit of pixels, set aside while a picture is read that ours lets pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from PIL import Image

LARGE_PIXELS = 178_956_970
"""Pillow's limit: what is larger is read at a part of its size where that is all that is needed."""


class _Lifting:
    """A global variable of Pillow, put back when no thread needs it changed."""

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
