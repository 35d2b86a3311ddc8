"""Arrays and pictures as text that a page can hold."""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
from PIL import Image

_QUALITY = 80


class Pack:
    """Arrays as one compressed text; the page unpacks it when it is first needed.

    Equal arrays are stored once: layers that keep the same tokens cost nothing.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._places: dict[bytes, tuple[int, int]] = {}

    def add(self, array: np.ndarray) -> list[int]:
        """Store an array, little-endian; return its first byte and its number of bytes."""
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        if content not in self._places:
            self._data += bytes(-len(self._data) % 4)  # typed arrays begin at multiples of 4
            self._places[content] = len(self._data), len(content)
            self._data += content
        return list(self._places[content])

    def add_bits(self, values: np.ndarray) -> list[int]:
        """Store booleans, eight in a byte, the first in its lowest bit."""
        return self.add(np.packbits(values.ravel(), bitorder="little"))

    def text(self) -> str:
        """All of it: base64 of zlib."""
        return base64.b64encode(zlib.compress(bytes(self._data), 9)).decode("ascii")


def quantize(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Numbers as uint8, 0 at the lower bound and 255 at the upper one.

    Args:
        values: numbers; one that is not finite is taken as a bound.
        bounds: the lower and the upper one.
    """
    span = max(bounds[1] - bounds[0], 1e-12)
    known = np.nan_to_num(values, nan=bounds[0], posinf=bounds[1], neginf=bounds[0])
    return np.round(np.clip((known - bounds[0]) / span, 0, 1) * 255).astype(np.uint8)


def data_uri(picture: Image.Image, long_side: int) -> str:
    """A JPEG of a picture, made smaller where it is larger than a screen shows.

    Args:
        picture: RGB.
        long_side: of the JPEG, at most, in pixels.
    """
    shown = picture.convert("RGB")
    shown.thumbnail((long_side, long_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    content = io.BytesIO()
    shown.save(content, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
