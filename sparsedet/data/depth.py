"""Convert pictures of more than 8 bits per channel to 8 bits.

The range of values is `dataset.value_range`, or else the range that the file declares. It is never
taken from the values of a picture, since brightness would then differ between pictures.

- Integers of n bits without sign (TIFF, PNG, PGM, JPEG 2000) declare 0..2^n - 1, where n is rounded
  up to 10, 12, 14 or 16.
- TIFF's MaxSampleValue and SMaxSampleValue declare 0 to their number where that is a whole depth:
  1023, 4095, 16383 or 65535; for floats also 1 and 255. Other numbers are statistics.
- PNG's sBIT declares 0..2^sBIT - 1, unless values are scaled up to 16 bits as the standard demands.
- Signed integers, 32-bit integers and floats declare nothing. Without `dataset.value_range` they
  are refused.
"""

import struct
import sys
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from PIL import Image, TiffImagePlugin

from sparsedet.data.pillow_limit import no_limit

Range = tuple[float, float]

_DEPTHS = (8, 10, 12, 14, 16)
_FULL: Range = (0, 65535)
_ROWS = 1 << 22  # values that are converted at a time
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # TIFF's SampleFormat
_FORMATS = {_UNSIGNED: "integers", _SIGNED: "signed integers", _FLOAT: "floats"}
_BITS, _PHOTOMETRIC, _SAMPLES, _FORMAT = 258, 262, 277, 339
_MIN_MAX = ((280, 281), (340, 341))  # MinSampleValue and so on
_WHITE_IS_ZERO = 0
_GRAY_AND_ALPHA = 4  # PNG's color type


@dataclass(frozen=True)
class Depth:
    """What a file declares about values of more than 8 bits.

    Args:
        kind: the values in words, such as "16-bit integers".
        declared: the values (black, white) that the file declares; None if it does not.
        color: whether there are several channels; Pillow gives only the upper 8 bits of these.
        inverted: whether low values are white.
        shown: the range of values that Pillow's 8 bits of several channels cover.
        only_shown: whether the lower bits cannot be read.
        unit: the factor by which Pillow's numbers are larger than the numbers in the file.
        significant: bits of PNG's sBIT, if they are fewer than the bits of the file.
        stored: numpy dtype of the values, if Pillow misinterprets it.
    """

    kind: str
    declared: Range | None
    color: bool = False
    inverted: bool = False
    shown: Range = _FULL
    only_shown: bool = False
    unit: float = 1
    significant: int | None = None
    stored: str | None = None


@dataclass(frozen=True)
class Use:
    """How the values of pictures use the range with which they are read.

    Args:
        kind: the values in words.
        scale: the values (black, white) that were used.
        low: smallest finite value.
        high: largest finite value.
        outside: largest share of values outside of `scale` in a picture.
    """

    kind: str
    scale: Range
    low: float
    high: float
    outside: float = 0.0

    def joined(self, other: "Use") -> "Use":
        """The use of several pictures of the same kind and scale."""
        return replace(
            self,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            outside=max(self.outside, other.outside),
        )

    def is_dark(self) -> bool:
        """Whether the values stay in the lowest sixteenth of the range, as 12 of 16 bits do."""
        black, white = self.scale
        return self.low < self.high <= black + (white - black) / 16

    def fault(self) -> str | None:
        """What is wrong with the range, and the remedy; None if the values use the range."""
        black, white = self.scale
        span = min(self.high, white) - max(self.low, black)
        if self.high == self.low or (span > (white - black) / 4 and self.outside < 0.1):
            return None
        low, high = _suggestion(self.low, self.high)
        loss = "clipped" if self.outside >= 0.1 else "dark or flat"
        return (
            f"their values lie in {self.low:.6g}..{self.high:.6g} and are read with "
            f"{black:.6g}..{white:.6g} as black and white, so the pictures are {loss}. Set "
            f"dataset.value_range=[{low:.6g},{high:.6g}] if the sensor has that range."
        )


def declared_depth(image: Image.Image) -> Depth | None:
    """What a picture's header declares about its values; None for 8 bits or fewer.

    Args:
        image: a picture that is opened but not yet decoded.
    """
    tags, file = getattr(image, "tag_v2", None), getattr(image, "fp", None)
    if image.format == "TIFF" and tags is not None:
        return _tiff_depth(tags, image.mode)
    if file is not None and image.format in _READERS:
        return _READERS[image.format](image, file)
    if image.mode.startswith("I;16"):
        return Depth("16-bit integers", _FULL)
    if image.mode in ("I", "F"):
        return Depth(f"32-bit {'floats' if image.mode == 'F' else 'integers'}", None)
    return None


def to_8_bits(image: Image.Image, depth: Depth, value_range: Range | None) -> tuple[Any, Use]:
    """Convert a picture to 256 levels, (h, w) or (h, w, 3); also returns its use of the range.

    Values outside of the range become black or white, and NaN becomes black.

    Args:
        image: a picture that is not yet decoded if it has several channels.
        depth: the depth of this picture, with a range unless `value_range` is given.
        value_range: (black, white) instead of the range that the file declares.

    Raises:
        ValueError: Pillow cannot read the values.
    """
    if depth.only_shown or (
        depth.color and (value_range or depth.declared) == depth.shown and not depth.significant
    ):
        levels, step = _converted(image), (depth.shown[1] + 1) / 256
        low, high = (float(bound) for bound in (levels.min(), levels.max()))
        # each level covers `step` values
        return levels, Use(depth.kind, depth.shown, low * step, (high + 1) * step - 1)
    values = _colors(image) if depth.color else _decoded(image)
    if depth.stored is not None:
        values = values.view(depth.stored)
    scale = value_range or _aligned(values, depth)
    levels = np.empty(values.shape, np.uint8)
    parts = np.array_split(np.arange(len(values)), -(-values.size // _ROWS))
    used = [
        _scaled(values[p[0] : p[-1] + 1] / depth.unit, levels[p[0] : p[-1] + 1], scale)
        for p in parts
    ]
    low, high, outside = zip(*used, strict=True)
    if depth.inverted:
        np.subtract(255, levels, out=levels)
    return levels, Use(depth.kind, scale, min(low), max(high), sum(outside) / values.size)


def _scaled(values: np.ndarray, levels: np.ndarray, scale: Range) -> tuple[float, float, int]:
    """Writes the levels of a part; returns its smallest and largest value and number outside."""
    black, white = scale
    numbers = values.astype(np.float64, copy=False)
    finite = numbers[np.isfinite(numbers)]
    outside = int(np.count_nonzero((finite < black) | (finite > white)))
    np.nan_to_num(numbers, copy=False, nan=black, posinf=white, neginf=black)
    np.rint((numbers.clip(black, white) - black) * (255 / (white - black)), out=numbers)
    levels[...] = numbers.astype(np.uint8)
    low, high = (finite.min(), finite.max()) if finite.size else (black, black)
    return float(low), float(high), outside


def _colors(image: Any) -> np.ndarray:
    """All 16 bits of the colors (h, w, 3); Pillow gives one byte at a time, so it reads twice."""
    file, lower_bytes = image.fp, [_of_other_byte(tile) for tile in image.tile]
    upper = _decoded(image)[..., :3].astype(np.uint16)
    with no_limit():
        again: Any = Image.open(file)
    again.tile = lower_bytes
    return upper << 8 | _decoded(again)[..., :3]


def _of_other_byte(tile: Any) -> tuple:
    named = hasattr(tile, "_replace")
    codec, extents, offset, args = tile
    raw, *others = [args] if isinstance(args, str) else args
    if raw not in _OTHER_BYTE:
        raise ValueError(f"the layout {raw} of its 16-bit values is not read")
    other = _OTHER_BYTE[raw]
    changed = other if isinstance(args, str) else (other, *others)
    # tiles are named tuples in newer versions of Pillow, which then use the names
    return tile._replace(args=changed) if named else (codec, extents, offset, changed)


@no_limit()
def _decoded(image: Image.Image) -> np.ndarray:
    image.load()  # numpy would hide errors of the file
    return np.asarray(image)


@no_limit()
def _converted(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"))


_FOREIGN = "B" if sys.byteorder == "little" else "L"
_OTHER_BYTE = {
    f"{colors};16{order}": f"{colors};16{other}"
    for colors in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", "B"), ("B", "L"), ("N", _FOREIGN))
}


def _aligned(values: np.ndarray, depth: Depth) -> Range:
    """The declared range, or the range of PNG's sBIT if values are not scaled up.

    The standard demands that values are scaled up to 16 bits, in one of three ways; then the lower
    bits are 0 or repeat the upper ones.
    """
    assert depth.declared is not None
    if depth.significant is None:
        return depth.declared
    limit = 1 << depth.significant
    rest = (1 << (16 - depth.significant)) - 1
    scaled = values.max() >= limit or (values & rest).max() <= 1
    return depth.declared if scaled else (0, limit - 1)


def _tiff_depth(tags: Any, mode: str) -> Depth | None:
    bits, form = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (_UNSIGNED,)))
    if bits <= 8 and form == _UNSIGNED:
        return None
    color = mode not in ("F", "I", "L") and not mode.startswith("I;")
    declared = _tagged(tags, floats=form == _FLOAT)
    if declared is None and form == _UNSIGNED and bits <= 16:
        declared = (0, _limit(bits))
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and bits > 8
    stored = {(_SIGNED, 8): "i1", (_UNSIGNED, 32): "u4"}.get((form, bits))
    kind = f"{bits}-bit {_FORMATS.get(form, 'values')}"
    if color and mode not in ("RGB", "RGBA"):
        return Depth(kind, _FULL, color=True, only_shown=True)
    return Depth(kind, declared, color=color, inverted=inverted, stored=stored)


def _tagged(tags: Any, *, floats: bool) -> Range | None:
    """The range in the tags of sample values, if it is that of a whole bit depth."""
    known = {_limit(bits) for bits in _DEPTHS[1:]} | ({1, 255} if floats else set())
    for low, high in _MIN_MAX:
        limits = [
            max(tags[tag]) if isinstance(tags[tag], tuple) else tags[tag]
            for tag in (low, high)
            if tag in tags
        ]
        if high in tags and limits[-1] in known and limits[0] in (0, limits[-1]):
            return 0, limits[-1]
    return None


def _limit(bits: int) -> int:
    return (1 << min(depth for depth in _DEPTHS if depth >= bits)) - 1


def _png_depth(image: Image.Image, file: Any) -> Depth | None:
    """Reads the chunks before the pixels; restores the file position."""
    place = file.tell()
    try:
        file.seek(8)
        bits, color, significant = 0, 0, None
        while True:
            head = file.read(8)
            length, name = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"IDAT")
            if name == b"IDAT":
                break
            content = file.read(length) if name in (b"IHDR", b"sBIT") else b""
            if name == b"IHDR":
                bits, color = content[8], content[9]
            elif name == b"sBIT":
                significant = max(content[: 1 if color in (0, 4) else 3])
            file.seek(length - len(content) + 4, 1)
    finally:
        file.seek(place)
    if bits <= 8:
        return None
    fewer = significant if significant is not None and 8 <= significant < bits else None
    alone = color == _GRAY_AND_ALPHA
    return Depth(
        f"{bits}-bit integers",
        _FULL,
        color=color != 0,
        only_shown=alone,
        significant=None if alone else fewer,
    )


def _pgm_depth(image: Image.Image, file: Any) -> Depth | None:
    tiles = getattr(image, "tile", [])
    args = tiles[0][3] if tiles else ()
    if image.mode == "F":
        return Depth("32-bit floats", None)
    if isinstance(args, str):  # Pillow does not scale the values
        return Depth("16-bit integers", _FULL) if image.mode == "I" else None
    limit = args[1] if len(args) > 1 and isinstance(args[1], int) else 0
    if limit <= 255:
        return None
    declared = (0, limit)
    kind, color = f"{limit.bit_length()}-bit integers", image.mode != "I"
    unit = 1 if color else 65535 / limit
    return Depth(kind, declared, color=color, shown=declared, only_shown=color, unit=unit)


def _jpeg2000_depth(image: Image.Image, file: Any) -> Depth | None:
    """Pillow shifts values to 8 or 16 bits; the SIZ segment has the original number of bits."""
    place = file.tell()
    try:
        file.seek(0)
        _, found, segment = file.read(1 << 16).partition(b"\xff\x4f\xff\x51")
    finally:
        file.seek(place)
    bits = (segment[38] & 127) + 1 if found and len(segment) > 38 else 8
    if bits <= 8:
        return None
    color = not image.mode.startswith("I")
    limit = (1 << bits) - 1
    unit = 1 if color else 2.0 ** (16 - bits)
    kind, declared = f"{bits}-bit integers", (0, limit)
    return Depth(kind, declared, color=color, shown=declared, only_shown=color, unit=unit)


_READERS = {"PNG": _png_depth, "PPM": _pgm_depth, "JPEG2000": _jpeg2000_depth}


def describe_tiff(file: IO[bytes]) -> str | None:
    """Describes a TIFF that Pillow does not read; None for other files."""
    try:
        file.seek(0)
        head = file.read(8)
        if not head.startswith((b"II*\0", b"MM\0*")):
            return None
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        if _PHOTOMETRIC not in tags:
            return None
        bits, form = tags.get(_BITS, (1,)), tags.get(_FORMAT, (_UNSIGNED,))
        count, kind = tags.get(_SAMPLES, 1), _FORMATS.get(form[0], "values")
    except Exception:  # a broken file cannot be described
        return None
    return (
        f"it is a TIFF of {count} channel{'s' * (count > 1)} of {max(bits)}-bit {kind}, which "
        "Pillow cannot read; save it with 8 or 16 bits and one or three channels"
    )


def _suggestion(low: float, high: float) -> Range:
    """The range of a whole bit depth, or of the values if they are far from 0."""
    if 0 <= low < high / 4 and high <= 1:
        return 0, 1
    if low >= 0 and 1 < high <= 65535:
        limit = _limit(max(8, int(high).bit_length()))
        if low < high / 4 or high - low > limit / 4:
            return 0, limit
    return float(np.floor(low)), float(np.ceil(high))
