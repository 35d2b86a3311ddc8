"""Colors, fonts and pixel conversion for all drawings."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageFont

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (32, 32, 32)
TEXT = 14  # font size

# viridis at five points, without its darkest part, which is invisible on a dimmed image
_RAMP = np.array([(72, 60, 160), (49, 104, 200), (33, 165, 150), (110, 206, 88), (253, 231, 37)])


@cache
def font(size: float = TEXT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The default font of Pillow."""
    return ImageFont.load_default(size)


def text_width(text: str) -> int:
    """Width of a line of text in pixels."""
    return int(np.ceil(font().getlength(text)))


def ink_on(color: Color) -> Color:
    """Black or white, whichever is readable on a color."""
    brightness = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]
    return (0, 0, 0) if brightness > 128 else (255, 255, 255)


def ramp(shares: np.ndarray) -> np.ndarray:
    """Colors (..., 3) of numbers in [0, 1]."""
    places = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(shares, places, channel) for channel in _RAMP.T], axis=-1)


def steps(count: int) -> np.ndarray:
    """`count` colors (count, 3), from violet to yellow; a single one is yellow."""
    return ramp(np.linspace(0, 1, count + 1)[1:])


def rgb(color: np.ndarray) -> Color:
    """A color as a tuple for Pillow."""
    red, green, blue = (round(float(part)) for part in color)
    return red, green, blue


def to_picture(pixels: np.ndarray) -> Image.Image:
    """A picture from numbers (h, w, 3) in 0..255."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
