"""Drawing with exactly defined arithmetic: lines, filled outlines, colors that stand out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsedet.data.shapes.chance import Chance

CONTRAST_FLOOR = 32  # gray levels between a shape and what is behind it
_RING_HOLE = 0.6  # inner over outer diameter
# cosine and sine of multiples of 36 degrees, as literals: libraries differ in the last digit
_COS36 = (1.0, 0.809017, 0.309017, -0.309017, -0.809017, -1.0)
_SIN36 = (0.0, 0.587785, 0.951057, 0.951057, 0.587785, 0.0)


@dataclass(frozen=True)
class Shape:
    """A shape to draw.

    Args:
        name: its class; empty for a distractor without a class.
        center: (x, y) in pixels.
        diameter: the diameter in pixels.
    """

    name: str
    center: tuple[float, float]
    diameter: float


def without_color(image: np.ndarray) -> np.ndarray:
    """Three equal channels."""
    mean = (image[..., :1] + image[..., 1:2] + image[..., 2:]) / np.float32(3)
    return np.repeat(mean, 3, axis=2)


def smooth_noise(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Linear interpolation of (n, n, 3) to (height, width, 3)."""
    for axis, length in ((0, height), (1, width)):
        place = np.linspace(0, grid.shape[axis] - 1, length, dtype=np.float32)
        low = np.minimum(place.astype(np.int64), grid.shape[axis] - 2)
        part = (place - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = grid.take(low, axis), grid.take(low + 1, axis)
        grid = first + part * (second - first)
    return grid


def draw_line(canvas: np.ndarray, chance: Chance) -> None:
    """Paints a thin line of random color across the canvas."""
    height, width = canvas.shape[:2]
    cosine, sine = chance.direction()
    x, y = chance.uniform(0, width), chance.uniform(0, height)
    color = np.array(chance.color(), dtype=np.float32)
    half = chance.uniform(0.5, 1.0)
    columns = (np.arange(width) + 0.5 - x) * sine
    rows = (np.arange(height) + 0.5 - y) * cosine
    cover = (half + 0.5 - np.abs(columns[None, :] - rows[:, None])).clip(0, 1)
    ys, xs = np.nonzero(cover)
    alpha = cover[ys, xs, None].astype(np.float32)
    canvas[ys, xs] += alpha * (color - canvas[ys, xs])


def draw_shape(
    canvas: np.ndarray, owner: np.ndarray, place: int, shape: Shape, chance: Chance, gray: bool
) -> int:
    """Paints a shape and marks its pixels in `owner`.

    Returns:
        The number of its pixels, including those outside of the picture.
    """
    height, width = owner.shape
    reach = int(shape.diameter * 0.5) + 2
    left, top = int(shape.center[0]) - reach, int(shape.center[1]) - reach
    side = 2 * reach + 1
    cover = rasterize(shape, chance, left, top, side)
    inner = (
        slice(max(0, -top), min(side, height - top)),
        slice(max(0, -left), min(side, width - left)),
    )
    whole = int((cover >= 0.5).sum())
    visible = cover[inner]
    window = canvas[max(0, top) : top + side, max(0, left) : left + side]
    _paint(window, visible, shape.diameter, chance, gray)
    owner[max(0, top) : top + side, max(0, left) : left + side][visible >= 0.5] = place
    return whole


def rasterize(shape: Shape, chance: Chance, left: int, top: int, side: int) -> np.ndarray:
    """Covered share of each pixel of a window (side, side), from 2 x 2 samples per pixel."""
    place = (np.arange(2 * side) + 0.5) * 0.5
    x, y = place + (left - shape.center[0]), place + (top - shape.center[1])
    radius = 0.5 * shape.diameter
    if shape.name in ("dot", "ring"):
        square = x[None, :] * x[None, :] + y[:, None] * y[:, None]
        inside = square <= radius * radius
        if shape.name == "ring":
            inside &= square >= (_RING_HOLE * radius) ** 2
    else:
        cosine, sine = chance.direction()
        outline = np.array(_OUTLINES[shape.name]) if shape.name else _distractor(chance)
        corners = radius * outline
        # spelled out, since a matrix product may be summed in another order elsewhere
        turned_x = corners[:, 0] * cosine - corners[:, 1] * sine
        turned_y = corners[:, 0] * sine + corners[:, 1] * cosine
        inside = _fill(np.stack((turned_x, turned_y), axis=1), x, y)
    return inside.reshape(side, 2, side, 2).sum(axis=(1, 3)) * 0.25


def _fill(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points of a grid are inside of a polygon (even-odd rule): (len(y), len(x))."""
    inside = np.zeros((len(y), len(x)), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        rows = np.flatnonzero((y0 <= y) != (y1 <= y))
        if len(rows):
            crossing = x0 + (y[rows] - y0) * ((x1 - x0) / (y1 - y0))
            inside[rows] ^= x[None, :] < crossing[:, None]
    return inside


def _paint(
    window: np.ndarray, cover: np.ndarray, diameter: float, chance: Chance, gray: bool
) -> None:
    """Mixes a contrasting, perhaps textured color into the window."""
    textured = chance.uniform() < 0.4
    opacity = chance.uniform(0.85, 1.0)
    cosine, sine = chance.direction()
    period, depth = chance.uniform(2.5, 6.0) + 0.05 * diameter, chance.uniform(10, 24)
    covered = cover >= 0.5
    count = int(covered.sum())
    behind = window.astype(np.int64)[covered].sum(axis=0) / count if count else np.full(3, 128.0)
    color = _contrasting(behind, chance, gray).astype(np.float32)
    ys, xs = np.nonzero(cover)
    if not len(ys):
        return
    fill = np.broadcast_to(color, (len(ys), 3))
    if textured:
        phase = (xs * cosine + ys * sine) / period
        stripe = np.where(phase - np.floor(phase) < 0.5, -depth, depth)
        fill = fill + stripe[:, None].astype(np.float32)
    alpha = (opacity * cover[ys, xs, None]).astype(np.float32)
    window[ys, xs] += alpha * (fill.clip(0, 255) - window[ys, xs])


def _contrasting(behind: np.ndarray, chance: Chance, gray: bool) -> np.ndarray:
    """A random color; on average its channels differ from the ground by the least contrast."""
    for _ in range(30):
        color = np.array([chance.uniform(0, 255)] * 3 if gray else chance.color())
        if np.abs(color - behind).sum() >= 3 * CONTRAST_FLOOR / 0.85:
            return color
    return np.where(behind < 128, 255.0, 0.0)


def _star(points: Sequence[float]) -> list[tuple[float, float]]:
    """Ten corners; every second one is at the radius points[1]."""
    angles = [*range(6), *range(4, 0, -1)]
    signs = [1] * 6 + [-1] * 4
    return [
        (points[i % 2] * _COS36[a], points[i % 2] * sign * _SIN36[a])
        for i, (a, sign) in enumerate(zip(angles, signs, strict=True))
    ]


_THIRD, _HALF = 0.866025, 0.707107  # sines of 60 and 45 degrees
_OUTLINES = {  # corners for radius 1
    "plus": [
        (0.3, 1.0), (0.3, 0.3), (1.0, 0.3), (1.0, -0.3), (0.3, -0.3), (0.3, -1.0),
        (-0.3, -1.0), (-0.3, -0.3), (-1.0, -0.3), (-1.0, 0.3), (-0.3, 0.3), (-0.3, 1.0),
    ],
    "triangle": [(1.0, 0.0), (-0.5, _THIRD), (-0.5, -_THIRD)],
    "square": [(_HALF, _HALF), (-_HALF, _HALF), (-_HALF, -_HALF), (_HALF, -_HALF)],
    "star": _star((1.0, 0.42)),
    "bar": [(1.0, 1 / 6), (-1.0, 1 / 6), (-1.0, -1 / 6), (1.0, -1 / 6)],
}  # fmt: skip


def _distractor(chance: Chance) -> np.ndarray:
    """Corners of a pentagon or of an irregular blob, for radius 1."""
    pentagon = _star((1.0, 1.0))
    if chance.uniform() < 0.5:
        return np.array(pentagon[::2])
    return np.array([chance.uniform(0.45, 1.0) for _ in pentagon])[:, None] * np.array(pentagon)
