"""Draw a picture: the background, clutter, and objects with the patterns of their classes."""

import math
from dataclasses import dataclass

import numpy as np

from sparsedet.data.shapes.chance import Chance
from sparsedet.data.shapes.drawing import (
    CONTRAST_FLOOR,
    Shape,
    draw_line,
    draw_shape,
    rasterize,
    smooth_noise,
)
from sparsedet.data.shapes.scene import ShapesSample, develop, require, stream

CLASS_NAMES = ("rows", "columns", "checks", "slanted")

_SET = 1  # separates its random numbers from those of other data sets
_FIELD = 128  # objects are in some of the squares with this side
_OCTAVES = ((256, 1.0), (64, 0.7), (20, 0.6), (8, 0.5))  # pixels between grid points, weight
_DEPTH = 45  # gray levels of a pattern's lines above and below their mean
_GAP = 3  # pixels between objects
_CROWDED = 0.25  # largest share of the picture that objects may cover
_BOULDERS = (40, 120)  # diameters of large unlabeled shapes
_TRIES = 200  # number of tries to place a disc; the last one is used

Disc = tuple[float, float, float]
"""Center (x, y) and diameter in pixels."""


@dataclass(frozen=True)
class HaystackOptions:
    """Options of the pictures.

    Args:
        size: (height, width) in pixels.
        objects: number of objects.
        diameters: smallest and largest diameter of the objects, in pixels.
        clutter: number of unlabeled look-alikes per object; it also scales the number of lines and
            large unlabeled shapes.
        area_share: share of the squares of 128 pixels in which objects and look-alikes may be, in
            (0, 1].
        grain: width of the lines that define the class, in pixels. The class is no longer visible
            if a picture is reduced by twice this factor.

    Raises:
        ValueError: a value is outside of its range, or there is no room for all objects.
    """

    size: tuple[int, int] = (1024, 1024)
    objects: int = 20
    diameters: tuple[int, int] = (12, 32)
    clutter: float = 1.0
    area_share: float = 1.0
    grain: int = 2

    def __post_init__(self) -> None:
        least, most = self.diameters
        checks = (
            ("size", min(self.size) >= _FIELD, f"at least {_FIELD}x{_FIELD}"),
            ("objects", self.objects >= 0, "at least 0"),
            ("diameters", 4 * self.grain <= least <= most <= _FIELD // 2, self._range()),
            ("clutter", 0 <= self.clutter <= 10, "in [0, 10]"),
            ("area_share", 0 < self.area_share <= 1, "in (0, 1]"),
            ("grain", self.grain >= 2, "at least 2"),  # slanted lines of 1 are checks
        )
        require(self, checks)
        room = _CROWDED * self.area_share * self.size[0] * self.size[1] / (most + _GAP) ** 2
        if self.number > room:
            raise ValueError(
                f"HaystackOptions.objects: there is room for {int(room)} objects and look-alikes, "
                f"got {self.number}. Choose fewer, or a larger size or area_share."
            )

    def _range(self) -> str:
        return f"ascending, from {4 * self.grain} (four times the grain) to {_FIELD // 2}"

    @property
    def number(self) -> int:
        """Number of objects and look-alikes."""
        return self.objects + round(self.clutter * self.objects)


def haystack_sample(
    seed: int, split: str, index: int, options: HaystackOptions | None = None
) -> ShapesSample:
    """Makes one picture; the same arguments give the same pixels on every machine.

    Args:
        seed: seed of the training split; the validation split has its own fixed seed.
        split: "train" or "val".
        index: index of the picture, from 0.
        options: options of the pictures.

    Raises:
        ValueError: the split is unknown, or the seed or index is negative.
    """
    options = options or HaystackOptions()
    chance = Chance([*stream(seed, split, index), _SET])
    canvas = _ground(chance, options)
    boxes, classes = [], []
    for number, (x, y, diameter) in enumerate(_places(chance, options)):
        label = chance.integer(0, len(CLASS_NAMES) - 1) if number < options.objects else -1
        box = draw_disc(canvas, Shape("dot", (x, y), diameter), label, options.grain, chance)
        if label >= 0:
            boxes.append(box)
            classes.append(label)
    image = develop(canvas, chance, noise=6)
    return ShapesSample(
        image, np.array(boxes, dtype=np.int64).reshape(-1, 4), np.array(classes, dtype=np.int64)
    )


def _ground(chance: Chance, options: HaystackOptions) -> np.ndarray:
    """Smoothed noise, lines, and large unlabeled shapes: float32 (height, width, 3)."""
    height, width = options.size
    noise = np.zeros((height, width, 3), dtype=np.float32)
    for step, weight in _OCTAVES:
        grid = chance.grid(height // step + 2, width // step + 2, 3)
        noise += np.float32(weight) * smooth_noise(grid, height, width)
    tint = np.array([chance.uniform(90, 165) for _ in range(3)], dtype=np.float32)
    canvas = (tint + np.float32(chance.uniform(15, 45)) * noise).clip(0, 255)
    owner = np.zeros((height, width), dtype=np.int16)
    plenty = options.clutter * height * width / 512**2
    for _ in range(round(chance.uniform(0, 2) * plenty)):
        draw_line(canvas, chance)
    for _ in range(round(chance.uniform(0, 2) * plenty)):
        center = chance.uniform(0, width), chance.uniform(0, height)
        boulder = Shape("", center, chance.log_uniform(*_BOULDERS))
        draw_shape(canvas, owner, 1, boulder, chance, gray=False)
    return canvas


def _places(chance: Chance, options: HaystackOptions) -> list[Disc]:
    """Discs that do not touch and lie inside the canvas."""
    rows, columns = (math.ceil(length / _FIELD) for length in options.size)
    keys = [chance.uniform() for _ in range(rows * columns)]
    count = max(1, round(options.area_share * rows * columns))
    fields = [divmod(int(n), columns) for n in np.argsort(keys, kind="stable")[:count]]
    found: list[Disc] = []
    for _ in range(options.number):
        diameter = chance.log_uniform(*options.diameters)
        found.append(_place(chance, options.size, fields, diameter, found))
    return found


def _place(
    chance: Chance,
    size: tuple[int, int],
    fields: list[tuple[int, int]],
    diameter: float,
    others: list[Disc],
) -> Disc:
    """A free place in one of the fields (row, column)."""
    height, width = size
    taken, margin, tries = np.array(others).reshape(-1, 3), diameter / 2 + 1, 0
    while True:
        row, column = fields[chance.integer(0, len(fields) - 1)]
        x, y = (
            min(max(start * _FIELD + chance.uniform(0, _FIELD), margin), length - margin)
            for start, length in ((column, width), (row, height))
        )
        tries += 1
        if tries == _TRIES or _is_free(taken, (x, y, diameter)):
            return x, y, diameter


def _is_free(others: np.ndarray, disc: Disc) -> bool:
    x, y = others[:, 0] - disc[0], others[:, 1] - disc[1]
    apart = (others[:, 2] + disc[2]) * 0.5 + _GAP
    return bool((x * x + y * y > apart * apart).all())


def draw_disc(
    canvas: np.ndarray, disc: Shape, label: int, grain: int, chance: Chance
) -> tuple[int, int, int, int]:
    """Paints a disc with the pattern of a class; returns its tight box (x, y, width, height).

    Args:
        canvas: float32 (height, width, 3); the disc lies on it.
        disc: its position and size.
        label: index in `CLASS_NAMES`, or -1 for a look-alike without a pattern.
        grain: width of the pattern's lines.
        chance: source of the color and of the pattern's offset.
    """
    reach = int(disc.diameter * 0.5) + 2
    left, top = int(disc.center[0]) - reach, int(disc.center[1]) - reach
    cover = rasterize(disc, chance, left, top, 2 * reach + 1)
    ys, xs = np.nonzero(cover)
    ys, xs, alpha = ys + top, xs + left, cover[ys, xs, None].astype(np.float32)
    behind = canvas[ys, xs].astype(np.int64).sum(axis=0) / len(ys)
    begin = chance.integer(0, 2 * grain - 1), chance.integer(0, 2 * grain - 1)
    sign = _pattern(label, (ys + begin[0]) // grain, (xs + begin[1]) // grain, (ys + xs) // grain)
    fill = _color(behind, chance) + (_DEPTH * sign[:, None]).astype(np.float32)
    canvas[ys, xs] += alpha * (fill - canvas[ys, xs])
    ys, xs = (each[alpha[:, 0] >= 0.5] for each in (ys, xs))
    x, y = int(xs.min()), int(ys.min())
    return x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y


def _pattern(label: int, row: np.ndarray, column: np.ndarray, slant: np.ndarray) -> np.ndarray:
    """1 and -1 in the lines of a class, which cancel in every square of two lines' width."""
    if label < 0:
        return np.zeros(row.shape, dtype=np.int64)
    line = (row, column, row + column, slant)[label]
    return 1 - 2 * (line % 2)


def _color(behind: np.ndarray, chance: Chance) -> np.ndarray:
    """A color that differs from the background and leaves room for a pattern."""
    low, high = _DEPTH + 5, 250 - _DEPTH
    for _ in range(30):
        color = np.array([chance.uniform(low, high) for _ in range(3)])
        if np.abs(color - behind).sum() >= 3 * CONTRAST_FLOOR:
            return color.astype(np.float32)
    return np.where(behind < 128, high, low).astype(np.float32)
