"""Suggest settings that fit a data set, as overrides with reasons.

The rules use the sizes of the training boxes at the model's input in evaluation.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsedet.evaluation.rules import PRESETS
from sparsedet.survey.looking import Seen, wanted_glance, wanted_look, wanted_ranges
from sparsedet.survey.numbers import Part
from sparsedet.survey.settings import Ranges, Settings

__all__ = [
    "SIDES",
    "Override",
    "Sizes",
    "Suggestion",
    "choose_sizes",
    "limited_scales",
    "mean_pixels",
    "seen_by",
    "side_overrides",
    "suggest",
]

SIDES = "dataset.short_sides", "dataset.test_short_side", "dataset.max_size"

_CELLS = 4  # cells of the finest map that a box should cover
_QUANTILE = 0.1  # share of the boxes that may be smaller
_MORE_PIXELS = 4.0  # limit of pixels, relative to a 4:3 picture at the sizes of the config
_ENLARGED = 2.0  # limit of enlargement if boxes are too small in the file
_EASY = 2  # pictures are not enlarged beyond this multiple of the goal
_BETTER = 1.1  # minimum gain of the 10th percentile for sides that do not reach the goal
_WORTH = 0.5  # smaller sides are suggested only if they leave at most this share of the pixels
_STEP = 16  # step of sides, in pixels
_NEAR = 1.3  # size ranges within this factor are considered equal
_ROUNDS = 10  # minimum number of epochs
_EVALUATIONS = 10
_SPARE = 1.5  # queries and detections per object in the picture with most objects
_MOST_QUERIES = 1500
_SHARE_OF_A_SIZE = 0.05  # minimum share of boxes for a size (small, medium, large) to count
_APART = 1.2  # minimum ratio between large and small sides
_COCO_BOUNDS = PRESETS["coco"].area_bounds
_SAMPLED = 2000  # number of pictures on which sizes are tried


@dataclass(frozen=True)
class Override:
    """One suggested setting.

    Attributes:
        key: config key.
        value: number or (nested) list.
        reason: a sentence.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return shlex.quote(f"{self.key}={_flow(self.value)}")


@dataclass(frozen=True)
class Sizes:
    """Side lengths of the model's input, and their effect.

    Attributes:
        short_side: short side in evaluation, and the middle of the training sizes.
        max_size: upper limit of the long side.
        tenth: 10th percentile of the box sizes (square roots of the area).
        pixels: average number of pixels of an image.
    """

    short_side: int
    max_size: int
    tenth: float
    pixels: float

    @property
    def sides(self) -> tuple[int, int]:
        """The short side and the upper limit of the long side."""
        return self.short_side, self.max_size


@dataclass(frozen=True)
class Suggestion:
    """Overrides that fit a data set; empty if the config already fits.

    Attributes:
        overrides: the overrides, in the order to print.
        sizes: sizes at the model's input with the overrides; None if they cannot be chosen.
        goal: the box size that the 10th percentile should reach.
    """

    overrides: tuple[Override, ...]
    sizes: Sizes | None
    goal: float

    def __str__(self) -> str:
        return " ".join(map(str, self.overrides))

    def line(self, *prefixes: str) -> str:
        """The overrides whose keys start with one of the prefixes."""
        return " ".join(str(each) for each in self.overrides if each.key.startswith(prefixes))


def suggest(parts: Sequence[Part], settings: Settings) -> Suggestion:
    """Suggest settings that fit a data set and differ from those of a config.

    Args:
        parts: parts of the data set, the training part first.
        settings: settings of the config.
    """
    goal = float(_CELLS * min(settings.strides, default=4))
    trained = parts[0]
    sizes = choose_sizes(trained, settings, goal)
    overrides = []
    if sizes is not None:
        reason = _why_sides(trained, settings, sizes, goal)
        overrides += side_overrides(settings, sizes, reason)
        for ranges in settings.ranges if settings.looking is None else ():
            overrides += _ranges(trained, settings, ranges, sizes)
    overrides += _look(trained, settings, sizes)
    overrides += _counts(parts, settings)
    judged = next((part for part in parts if part.name == "validation"), trained)
    overrides += _area_bounds(judged, settings)
    overrides += _length(trained, settings)
    return Suggestion(tuple(overrides), sizes, goal)


# --- sizes of the model's input -------------------------------------------------------------------


def limited_scales(pictures: np.ndarray, short_side: float, max_size: float) -> np.ndarray:
    """(P,), scales of pictures (P, 2) for a short side and an upper limit of the long side."""
    return np.minimum(short_side / pictures.min(axis=1), max_size / pictures.max(axis=1))


def choose_sizes(
    part: Part, settings: Settings, goal: float, *, bounded: bool = True
) -> Sizes | None:
    """The smallest input size at which at most a tenth of the boxes is below the goal.

    If that is too expensive, the sizes that come closest. Pictures are not enlarged beyond their
    own resolution, unless boxes are below the goal even in the file.

    Args:
        part: the training part.
        settings: settings of the config.
        goal: box size in pixels of the model's input.
        bounded: whether the number of pixels is limited.

    Returns:
        The sizes; None if there is no box, the sizes of pictures are unknown or the config has no
        sides.
    """
    side, limit = settings.test_short_side, settings.max_size
    if side is None or limit is None or not len(part.boxes) or np.isnan(part.pictures).any():
        return None
    try_out = _Trial(part)
    present = try_out(side, limit)
    own = float(np.median(part.pictures.min(axis=1)))
    first = _first_side(part, side, goal)
    largest = _MORE_PIXELS * side * side * 4 / 3 if bounded else math.inf
    if first == side and present.tenth >= goal:
        return present
    enough = 1.0 if float(np.quantile(part.sides, _QUANTILE)) >= goal else _ENLARGED
    longest = float((part.pictures.max(axis=1) / part.pictures.min(axis=1)).max())
    ratio = limit / side
    ratios = np.geomspace(ratio, longest, 16) if longest > ratio else [ratio]
    sides = [first, *range(_STEP * (first // _STEP + 1), 8 * side, _STEP)]
    tried = [try_out(short, _rounded(short * each, up=True)) for short in sides for each in ratios]
    fitting = [
        each
        for each in tried
        if each.pixels <= largest and try_out.scale(each) <= max(enough, first / own)
    ]
    reaching = [each for each in fitting if each.tenth >= goal]
    if reaching:
        chosen = min(reaching, key=lambda each: (each.pixels, each.short_side, each.max_size))
        return try_out.tightened(chosen)
    best = max(
        [present, *fitting],
        key=lambda each: (round(each.tenth, 1), -each.pixels, -each.short_side, -each.max_size),
    )
    return try_out.tightened(best) if best.tenth >= _BETTER * present.tenth else present


def _first_side(part: Part, side: int, goal: float) -> int:
    """The side of the config, or a smaller one if it enlarges pictures unnecessarily."""
    own = float(np.median(part.pictures.min(axis=1)))
    easy = own * _EASY * goal / float(np.quantile(part.sides, _QUANTILE))
    smaller = _rounded(max(own, easy))
    return smaller if smaller**2 <= _WORTH * side**2 else side


class _Trial:
    """Computes the effect of input sizes, on a sample of the pictures of a large data set."""

    def __init__(self, part: Part) -> None:
        step = math.ceil(len(part.pictures) / _SAMPLED)
        chosen = part.picture % step == 0
        if not chosen.any():
            step, chosen = 1, np.ones(len(part.picture), dtype=bool)
        self._all, self._pictures = part.pictures, part.pictures[::step]
        self._sides, self._places = part.sides[chosen], part.picture[chosen] // step

    def __call__(self, short_side: int, max_size: int) -> Sizes:
        scales = limited_scales(self._pictures, short_side, max_size)
        tenth = float(np.quantile(self._sides * scales[self._places], _QUANTILE))
        pixels = float((self._pictures.prod(axis=1) * scales**2).mean())
        return Sizes(short_side, max_size, tenth, pixels)

    def scale(self, sizes: Sizes) -> float:
        """The scale of the median picture."""
        return float(np.median(limited_scales(self._pictures, *sizes.sides)))

    def tightened(self, sizes: Sizes) -> Sizes:
        """The sizes with the actual short side if `max_size` limits all pictures."""
        short = limited_scales(self._all, *sizes.sides) * self._all.min(axis=1)
        reached = float(short.max())
        return replace(sizes, short_side=min(sizes.short_side, _rounded(reached, up=True)))


def side_overrides(settings: Settings, sizes: Sizes, reason: str = "") -> list[Override]:
    """The overrides that set sizes in a config.

    Args:
        settings: settings of the config.
        sizes: the sizes to set.
        reason: the reason for them.
    """
    side, limit = settings.test_short_side, settings.max_size
    overrides = []
    if side is not None and sizes.short_side != side:
        overrides.append(Override("dataset.test_short_side", sizes.short_side, reason))
        reason = "scales with the short side"
        spread = settings.short_sides or ()
        step = 8 if sizes.short_side >= 160 else 2
        scaled = sorted({_rounded(each * sizes.short_side / side, step=step) for each in spread})
        if scaled:
            overrides.append(
                Override("dataset.short_sides", scaled, "training sizes around test_short_side")
            )
    if sizes.max_size != limit:
        overrides.append(Override("dataset.max_size", sizes.max_size, reason))
    return overrides


def mean_pixels(part: Part, short_side: int, max_size: int) -> float:
    """Average number of pixels of an image at the model's input."""
    scales = limited_scales(part.pictures, short_side, max_size)
    return float((part.pictures.prod(axis=1) * scales**2).mean())


def _why_sides(part: Part, settings: Settings, sizes: Sizes, goal: float) -> str:
    side, limit = settings.test_short_side, settings.max_size
    assert side is not None and limit is not None
    now = _Trial(part)(side, limit)
    times = sizes.pixels / now.pixels
    shown = f"{times:.2g}" if times < 100 else f"{times:.0f}"
    cost = (
        f"images have {shown} times the pixels, and an iteration takes about {shown} times as long"
    )
    if times < 1:
        return (
            "the config enlarges pictures more than needed: even with this size only a tenth of "
            f"the {part.its('boxes')} is below {sizes.tenth:.0f} pixels; {cost}"
        )
    return (
        f"the 10th percentile of the {part.its('boxes')} rises from {now.tenth:.0f} to "
        f"{sizes.tenth:.0f} pixels (goal: {goal:.0f}); {cost}"
    )


# --- the other settings ---------------------------------------------------------------------------


def _ranges(part: Part, settings: Settings, ranges: Ranges, sizes: Sizes) -> list[Override]:
    """Ranges that double from level to level, with the median object in the middle levels."""
    levels = len(ranges.pairs)
    if levels < 2:
        return []
    scales = limited_scales(part.pictures, sizes.short_side, sizes.max_size)[part.picture]
    longer = float(np.median(part.boxes.max(axis=1) * scales))
    least = 2 * sorted(settings.strides)[1] if len(settings.strides) > 1 else 16
    top = max(least, 0.2 * sizes.short_side)
    first = 4 * round(min(max(longer / 2 ** (levels / 2 - 1), least), top) / 4)
    bounds = [first * 2**level for level in range(levels - 1)]
    highest = int(ranges.pairs[-1][1])
    lows, highs = [-1, *(bound // 2 for bound in bounds)], [*bounds, highest]
    lows[-1] = bounds[-1] // 2
    value = [[low, high] for low, high in zip(lows, highs, strict=True)]
    if _fits(ranges, first):
        return []
    reason = (
        f"the longer side of the median box has {longer:.0f} pixels at the model's input and "
        "should be in the middle levels"
    )
    return [Override(ranges.key, value, reason)]


def _fits(ranges: Ranges, first: int) -> bool:
    """Whether ranges double from level to level and start near `first`."""
    highs = [high for _, high in ranges.pairs[:-1]]
    doubled = all(high == highs[0] * 2**level for level, high in enumerate(highs))
    return doubled and first / _NEAR <= highs[0] <= first * _NEAR


def seen_by(
    part: Part, settings: Settings, short_side: int | None, max_size: int | None
) -> Seen | None:
    """A part as seen by a model that chooses tiles; None for other models, or if unknown.

    Args:
        part: the training part.
        settings: settings of the config.
        short_side: short side of the model's input; None = pictures keep their sizes.
        max_size: upper limit of the long side; None = pictures keep their sizes.
    """
    looking = settings.looking
    if looking is None or not len(part.boxes) or np.isnan(part.pictures).any():
        return None
    scale = np.ones(len(part.pictures))
    if short_side is not None and max_size is not None:
        scale = limited_scales(part.pictures, short_side, max_size)
    return Seen(part, looking, scale)


def _look(part: Part, settings: Settings, sizes: Sizes | None) -> list[Override]:
    """A glance in which objects are visible, and a look ratio for all tiles that need it."""
    seen = seen_by(part, settings, *((None, None) if sizes is None else sizes.sides))
    if seen is None:
        return []
    overrides, factor = [], wanted_glance(seen)
    if factor != seen.looking.glance_factor:
        share = seen.share_without_trace(seen.looking.glance_factor)
        reason = f"{share:.0%} of the {part.its('boxes')} are too small in the current glance"
        overrides.append(Override("model.regions.glance_factor", factor, reason))
        seen = replace(seen, looking=replace(seen.looking, glance_factor=factor))
    looking = seen.looking
    strides = settings.strides
    levels = looking.levels + sum(stride < factor * strides[0] for stride in strides)
    if overrides:
        reason = "tiles add finer levels than the glance has"
        overrides.append(Override("model.num_levels", levels, reason))
    for ranges in settings.ranges:
        glance = ranges.key.startswith("model.criterion.regions")
        number = looking.levels if glance else levels
        moved = glance and ranges.pairs[0][1] != looking.bound
        if moved or len(ranges.pairs) != number:
            wanted = wanted_ranges(looking.bound, number, glance=glance)
            reason = f"a box below {looking.bound} pixels is found only in its tile"
            overrides.append(Override(ranges.key, wanted, reason))
    ratio, wanted = looking.look_ratio, wanted_look(seen)
    if ratio is not None and not seen.fullest <= ratio <= 2 * wanted and seen.hidden.any():
        reason = (
            f"in nine of ten pictures, boxes that are too small in the glance lie in at most "
            f"{seen.fullest:.0%} of the tiles of {looking.tile} pixels"
        )
        overrides.append(Override(looking.key, wanted, reason))
    return overrides


def _counts(parts: Sequence[Part], settings: Settings) -> list[Override]:
    most = max(part.most for part in parts)
    wanted = min(_MOST_QUERIES, 50 * math.ceil(_SPARE * most / 50))
    where = f"a picture has up to {most} objects"
    overrides, queries = [], settings.num_queries
    if queries is not None and wanted > queries:
        queries = wanted
        key = "model.query_initializer.num_queries"
        overrides.append(Override(key, wanted, f"{where}, and a query finds at most one"))
    if settings.max_detections is not None and wanted > settings.max_detections:
        reason = f"{where}, and detections beyond the limit are dropped"
        overrides.append(Override("model.max_detections", wanted, reason))
    of_a_class = max(int(part.objects_of_a_class.max(initial=0)) for part in parts)
    if settings.counted is not None and of_a_class > settings.counted:
        reason = (
            f"a picture has up to {of_a_class} objects of one class, but only {settings.counted} "
            "detections are evaluated"
        )
        key = "dataloader.evaluator.max_detections"
        overrides.append(Override(key, [1, 10, wanted], reason))
    return overrides


def _area_bounds(part: Part, settings: Settings) -> list[Override]:
    """COCO's bounds, or thirds, if the config's bounds put nearly all boxes into one size."""
    if settings.area_bounds is None or len(part.boxes) == 0:
        return []
    present, key = settings.area_bounds, "dataloader.evaluator.area_bounds"
    if _tells_apart(part, present):
        return []
    now = f"now {_size_shares(part, present)} of the {part.its('boxes')}"
    if _tells_apart(part, _COCO_BOUNDS):
        then = f"by COCO's bounds {_size_shares(part, _COCO_BOUNDS)}"
        return [Override(key, list(_COCO_BOUNDS), f"{now}; {then}")]
    small, large = (max(1, round(float(q))) for q in np.quantile(part.sides, (1 / 3, 2 / 3)))
    if large < _APART * small:
        return []  # all boxes have about the same size
    then = f"bounds at {small} x {small} and {large} x {large} pixels give each size a third"
    return [Override(key, [small**2, large**2], f"{now}; {then}. AP itself does not change")]


def _tells_apart(part: Part, bounds: Sequence[float]) -> bool:
    """Whether at least two of small, medium and large have more than a few boxes."""
    return int((_shares(part, bounds) >= _SHARE_OF_A_SIZE).sum()) > 1


def _shares(part: Part, bounds: Sequence[float]) -> np.ndarray:
    return np.histogram(part.boxes.prod(axis=1), [0, *bounds, np.inf])[0] / len(part.boxes)


def _size_shares(part: Part, bounds: Sequence[float]) -> str:
    small, medium, large = (f"{100 * share:.0f}" for share in _shares(part, bounds))
    return f"{small} % small, {medium} % medium and {large} % large"


def _length(part: Part, settings: Settings) -> list[Override]:
    if settings.max_iter is None or settings.batch_size is None:
        return []
    rounds = _ROUNDS * len(part.pictures) / settings.batch_size
    wanted = 50 * math.ceil(rounds / 50)
    if wanted <= settings.max_iter:
        return []
    reason = f"{_ROUNDS} epochs of {len(part.pictures)} pictures"
    overrides = [Override("train.max_iter", wanted, reason)]
    if settings.eval_period:
        period = 10 * math.ceil(wanted / _EVALUATIONS / 10)
        overrides.append(Override("train.eval_period", period, f"{_EVALUATIONS} evaluations"))
    return overrides


def _rounded(value: float, *, step: int = _STEP, up: bool = False) -> int:
    """The nearest multiple of a step, at least one step."""
    return step * max(1, math.ceil(value / step - 1e-9) if up else round(value / step))


def _flow(value: Any) -> str:
    """A value as YAML on one line, without spaces."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_flow, value))}]"
    return str(value)
