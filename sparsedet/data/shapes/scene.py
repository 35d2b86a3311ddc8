"""The contents of a picture: classes, sizes, places, occlusion, boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsedet.data.shapes.chance import Chance
from sparsedet.data.shapes.drawing import Shape, draw_line, draw_shape, smooth_noise, without_color

_SPLITS = {"train": 0, "val": 1}
_VAL_SEED = 0  # the same for every training seed, so that validation numbers stay comparable

# name: least and greatest diameter in pixels
_BANDS = {
    "dot": (5, 10),
    "plus": (8, 16),
    "triangle": (12, 32),
    "square": (12, 32),
    "star": (16, 40),
    "ring": (28, 72),
    "bar": (30, 90),
}
CLASS_NAMES = tuple(_BANDS)
_DISTRACTOR_BAND = (10, 50)
_OCTAVES = ((4, 1.0), (10, 0.6), (32, 0.35), (80, 0.2))  # grid size, weight
_MIN_VISIBLE_SHARE, _MIN_VISIBLE_AREA, _MIN_VISIBLE_SIDE = 0.35, 5, 3


@dataclass(frozen=True)
class ShapesOptions:
    """What the pictures look like.

    Args:
        size: (height, width) in pixels.
        objects: mean number of objects in addition to the first one.
        scale: factor on the sizes of all classes.
        clutter: share of lines and unlabeled distractors, in [0, 1].
        scene: "mixed"; "sparse" has one or two small objects on calm ground, the best case for
            keeping few tokens; "dense" is crowded, the worst case.
        gray: whether the three channels are equal.

    Raises:
        ValueError: a value is out of its range.
    """

    size: tuple[int, int] = (160, 160)
    objects: float = 7.0
    scale: float = 1.0
    clutter: float = 1.0
    scene: str = "mixed"
    gray: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("size", min(self.size) >= 32, "at least 32x32"),
            ("objects", 0 <= self.objects <= 100, "in [0, 100]"),
            ("scale", 0.5 <= self.scale <= 10, "in [0.5, 10]"),
            ("clutter", 0 <= self.clutter <= 1, "in [0, 1]"),
            ("scene", self.scene in ("mixed", "sparse", "dense"), "mixed, sparse or dense"),
        )
        require(self, checks)


def require(options: object, checks: Sequence[tuple[str, bool, str]]) -> None:
    """Refuse options that are out of their ranges.

    Args:
        options: what the pictures of a set look like.
        checks: name of each option, whether its value is fine, and what it must be.

    Raises:
        ValueError: naming the first option that is not fine.
    """
    for name, fine, rule in checks:
        if not fine:
            raise ValueError(
                f"{type(options).__name__}.{name} must be {rule}, got {getattr(options, name)!r}."
            )


@dataclass(frozen=True)
class ShapesSample:
    """A picture and its objects.

    Args:
        image: uint8 RGB (height, width, 3).
        boxes_xywh: (N, 4) integers, tight around the visible pixels.
        classes: (N,) indices into `CLASS_NAMES`.
    """

    image: np.ndarray
    boxes_xywh: np.ndarray
    classes: np.ndarray


def shapes_sample(
    seed: int, split: str, index: int, options: ShapesOptions | None = None
) -> ShapesSample:
    """Makes one picture; the same arguments give the same pixels everywhere.

    Args:
        seed: the seed of the training split; the validation split has its own fixed one.
        split: "train" or "val".
        index: which picture, from 0.
        options: what the pictures look like.

    Raises:
        ValueError: an unknown split, or a negative seed or index.
    """
    options = options or ShapesOptions()
    chance = Chance(stream(seed, split, index))
    canvas = _background(chance, options)
    owner = np.full(options.size, -1, dtype=np.int16)
    shapes = _place_shapes(chance, options)
    whole = [
        draw_shape(canvas, owner, place, shape, chance, options.gray)
        for place, shape in enumerate(shapes)
    ]
    boxes, classes = _visible_objects(owner, shapes, whole)
    image = develop(canvas, chance, noise=9, gray=options.gray)
    return ShapesSample(image, boxes, classes)


def stream(seed: int, split: str, index: int) -> list[int]:
    """The seeds of the random numbers of a picture.

    Args:
        seed: the seed of the training split; the validation split has its own fixed one.
        split: "train" or "val".
        index: which picture, from 0.

    Raises:
        ValueError: an unknown split, or a negative seed or index.
    """
    if split not in _SPLITS or seed < 0 or index < 0:
        raise ValueError(
            "A picture needs split 'train' or 'val', seed >= 0 and index >= 0, "
            f"got split={split!r}, seed={seed}, index={index}."
        )
    return [_VAL_SEED if split == "val" else seed, _SPLITS[split], index]


def _background(chance: Chance, options: ShapesOptions) -> np.ndarray:
    """Smoothed noise in four octaves and thin lines: float32 (height, width, 3)."""
    height, width = options.size
    noise = np.zeros((height, width, 3), dtype=np.float32)
    for cells, weight in _OCTAVES:
        noise += np.float32(weight) * smooth_noise(chance.grid(cells, cells, 3), height, width)
    tint = np.array([chance.uniform(70, 185) for _ in range(3)], dtype=np.float32)
    contrast = chance.uniform(0.3, 0.9) * (0.4 if options.scene == "sparse" else 1.0)
    canvas = tint + np.float32(contrast * 70) * noise
    clutter = 0.0 if options.scene == "sparse" else options.clutter
    for _ in range(int(chance.integer(0, 6) * clutter)):
        draw_line(canvas, chance)
    return (without_color(canvas) if options.gray else canvas).clip(0, 255)


def _place_shapes(chance: Chance, options: ShapesOptions) -> list[Shape]:
    """Everything to draw, in the order of drawing."""
    height, width = options.size
    shapes = []
    if chance.uniform() >= 0.04:
        shapes += [
            _make(chance, options, label, (chance.uniform(0, width), chance.uniform(0, height)))
            for label in _labels(chance, options)
        ]
        if options.scene != "sparse" and chance.uniform() < 0.25:
            shapes += _cluster(chance, options)
    clutter = 0.0 if options.scene == "sparse" else options.clutter
    for _ in range(int(chance.integer(0, 3) * clutter + 0.5)):
        center = (chance.uniform(0, width), chance.uniform(0, height))
        shapes.append(_make(chance, options, -1, center))
    keys = [chance.uniform() for _ in shapes]
    return [shapes[place] for place in np.argsort(keys, kind="stable")]


def _labels(chance: Chance, options: ShapesOptions) -> list[int]:
    if options.scene == "sparse":
        return [chance.integer(0, 2) for _ in range(chance.integer(1, 2))]
    mean = options.objects * (5 if options.scene == "dense" else 1)
    return [chance.integer(0, len(CLASS_NAMES) - 1) for _ in range(1 + chance.poisson(mean))]


def _cluster(chance: Chance, options: ShapesOptions) -> list[Shape]:
    """5 to 13 dots and pluses around a place, 16 pixels wide."""
    height, width = options.size
    x, y = chance.uniform(0, width), chance.uniform(0, height)
    count = chance.integer(5, 13)
    offsets = 16 * options.scale * chance.bells(count, 2).astype(np.float64)
    centers = [(x + dx, y + dy) for dx, dy in offsets.tolist()]
    inside = [c for c in centers if 0 <= c[0] < width and 0 <= c[1] < height]
    return [_make(chance, options, chance.integer(0, 1), center) for center in inside]


def _make(chance: Chance, options: ShapesOptions, label: int, center: tuple[float, float]) -> Shape:
    name = CLASS_NAMES[label] if label >= 0 else ""
    low, high = _BANDS[name] if name else _DISTRACTOR_BAND
    diameter = chance.log_uniform(low * options.scale, high * options.scale)
    return Shape(name, center, diameter)


def _visible_objects(
    owner: np.ndarray, shapes: list[Shape], whole: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Tight boxes and classes of the labeled shapes that are visible enough."""
    boxes, classes = [], []
    for place, (shape, total) in enumerate(zip(shapes, whole, strict=True)):
        if not shape.name:
            continue
        ys, xs = np.nonzero(owner == place)
        if len(ys) < max(_MIN_VISIBLE_AREA, _MIN_VISIBLE_SHARE * total):
            continue
        x, y = int(xs.min()), int(ys.min())
        width, height = int(xs.max()) + 1 - x, int(ys.max()) + 1 - y
        if min(width, height) >= _MIN_VISIBLE_SIDE:
            boxes.append((x, y, width, height))
            classes.append(CLASS_NAMES.index(shape.name))
    return np.array(boxes, dtype=np.int64).reshape(-1, 4), np.array(classes, dtype=np.int64)


def develop(canvas: np.ndarray, chance: Chance, *, noise: float, gray: bool = False) -> np.ndarray:
    """Gain, noise and rounding: uint8.

    Args:
        canvas: float32 (height, width, 3).
        chance: random numbers for the gain and the noise.
        noise: the largest standard deviation of the noise.
        gray: whether the three channels are equal.
    """
    gain, sigma = chance.uniform(0.75, 1.2), chance.uniform(0, noise)
    image = canvas * np.float32(gain) + np.float32(sigma) * chance.bells(*canvas.shape)
    if gray:
        image = without_color(image)
    return (image + np.float32(0.5)).clip(0, 255).astype(np.uint8)
