"""Settings that fit a data set, as one line of overrides with reasons.

The rules look at the training boxes, as the config's evaluation size shows them to the model.
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

_CELLS = 4  # of the finest map across a box that can be learned from
_QUANTILE = 0.1  # of the boxes may be smaller than that
_MORE_PIXELS = 4.0  # than a 4:3 picture has at the sizes of the config
_ENLARGED = 2.0  # at most, where boxes are too small in the file
_EASY = 2  # times the goal: pictures are enlarged no further than to that
_BETTER = 1.1  # times the tenth, to suggest larger sides that do not reach the goal
_WORTH = 0.5  # of the pixels must be saved to suggest smaller sides
_STEP = 16  # of sides, in pixels
_NEAR = 1.3  # the factor within which size ranges are as good
_ROUNDS = 10  # through the training pictures
_EVALUATIONS = 10
_SPARE = 1.5  # queries and detections for each object of the fullest picture
_MOST_QUERIES = 1500
_SHARE_OF_A_SIZE = 0.05  # of the boxes, for small, medium or large to mean something
_APART = 1.2  # the factor between sides that tells small from large
_COCO_BOUNDS = PRESETS["coco"].area_bounds
_SAMPLED = 2000  # pictures that sizes are chosen by


@dataclass(frozen=True)
class Override:
    """One setting.

    Attributes:
        key: of the config.
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
    """Side lengths of the model's input, and what they come to.

    Attributes:
        short_side: of evaluation, and in the middle of the training sizes.
        max_size: limit of the long side.
        tenth: 10th percentile of the box sizes (square roots of the area).
        pixels: of an image, on average.
    """

    short_side: int
    max_size: int
    tenth: float
    pixels: float

    @property
    def sides(self) -> tuple[int, int]:
        """The short side and the limit of the long one."""
        return self.short_side, self.max_size


@dataclass(frozen=True)
class Suggestion:
    """Overrides that fit a set; empty where the config fits as it is.

    Attributes:
        overrides: in the order to print.
        sizes: at the model's input, with the overrides; None where they cannot be chosen.
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
    """Settings that fit a set and differ from those of a config.

    Args:
        parts: of the set, that of training first.
        settings: of the config.
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
    """(P,), by which pictures (P, 2) are scaled to a short side, the long one limited."""
    return np.minimum(short_side / pictures.min(axis=1), max_size / pictures.max(axis=1))


def choose_sizes(
    part: Part, settings: Settings, goal: float, *, bounded: bool = True
) -> Sizes | None:
    """The smallest input at which at most a tenth of the boxes is below the goal.

    Where that costs too much, the sizes that come nearest to it. Pictures are not enlarged beyond
    their own resolution, unless boxes are below the goal in the file already.

    Args:
        part: the training part.
        settings: of the config.
        goal: in pixels of the model's input.
        bounded: whether the number of pixels is limited.

    Returns:
        The sizes; None where there is no box, pictures have no known sizes or the config has no
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
    """The side of the config; a smaller one where that only blows up what is large enough."""
    own = float(np.median(part.pictures.min(axis=1)))
    easy = own * _EASY * goal / float(np.quantile(part.sides, _QUANTILE))
    smaller = _rounded(max(own, easy))
    return smaller if smaller**2 <= _WORTH * side**2 else side


class _Trial:
    """What sizes of the model's input come to, by some of the pictures of a large set."""

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
        """By which the median picture is scaled."""
        return float(np.median(limited_scales(self._pictures, *sizes.sides)))

    def tightened(self, sizes: Sizes) -> Sizes:
        """The same with the short side that is reached, where the long one limits all pictures."""
        short = limited_scales(self._all, *sizes.sides) * self._all.min(axis=1)
        reached = float(short.max())
        return replace(sizes, short_side=min(sizes.short_side, _rounded(reached, up=True)))


def side_overrides(settings: Settings, sizes: Sizes, reason: str = "") -> list[Override]:
    """What changes the sizes of a config.

    Args:
        settings: of the config.
        sizes: to have.
        reason: for them.
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
    """Pixels of an image at the model's input, on average."""
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
            "pictures are now enlarged more than needed: even with this size only a tenth of the "
            f"{part.its('boxes')} is below {sizes.tenth:.0f} pixels; {cost}"
        )
    return (
        f"a tenth of the {part.its('boxes')} is then below {sizes.tenth:.0f} pixels, now below "
        f"{now.tenth:.0f} (goal: {goal:.0f}); {cost}"
    )


# --- the other settings ---------------------------------------------------------------------------


def _ranges(part: Part, settings: Settings, ranges: Ranges, sizes: Sizes) -> list[Override]:
    """Each range twice as large as the one before, the median object on the middle levels."""
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
        f"the longer side of the median box has {longer:.0f} pixels at the model's input, which "
        "belongs to the middle levels"
    )
    return [Override(ranges.key, value, reason)]


def _fits(ranges: Ranges, first: int) -> bool:
    """Whether ranges double from level to level and begin near a bound."""
    highs = [high for _, high in ranges.pairs[:-1]]
    doubled = all(high == highs[0] * 2**level for level, high in enumerate(highs))
    return doubled and first / _NEAR <= highs[0] <= first * _NEAR


def seen_by(
    part: Part, settings: Settings, short_side: int | None, max_size: int | None
) -> Seen | None:
    """What a model that looks gets of a part; None for other models, and where it is not known.

    Args:
        part: the training part.
        settings: of the config.
        short_side: of the model's input; None = pictures keep their sizes.
        max_size: limit of the long side; None likewise.
    """
    looking = settings.looking
    if looking is None or not len(part.boxes) or np.isnan(part.pictures).any():
        return None
    scale = np.ones(len(part.pictures))
    if short_side is not None and max_size is not None:
        scale = limited_scales(part.pictures, short_side, max_size)
    return Seen(part, looking, scale)


def _look(part: Part, settings: Settings, sizes: Sizes | None) -> list[Override]:
    """A glance that shows a trace of the objects, and a look at all tiles that need one."""
    seen = seen_by(part, settings, *((None, None) if sizes is None else sizes.sides))
    if seen is None:
        return []
    overrides, factor = [], wanted_glance(seen)
    if factor != seen.looking.glance_factor:
        share = seen.share_without_trace(seen.looking.glance_factor)
        reason = f"{share:.0%} of the {part.its('boxes')} leave no trace at the present glance"
        overrides.append(Override("model.regions.glance_factor", factor, reason))
        seen = replace(seen, looking=replace(seen.looking, glance_factor=factor))
    looking = seen.looking
    strides = settings.strides
    levels = looking.levels + sum(stride < factor * strides[0] for stride in strides)
    if overrides:
        reason = "the levels that tiles give, finer than those of the glance"
        overrides.append(Override("model.num_levels", levels, reason))
    for ranges in settings.ranges:
        glance = ranges.key.startswith("model.criterion.regions")
        number = looking.levels if glance else levels
        moved = glance and ranges.pairs[0][1] != looking.bound
        if moved or len(ranges.pairs) != number:
            wanted = wanted_ranges(looking.bound, number, glance=glance)
            reason = f"a box below {looking.bound} pixels needs a look"
            overrides.append(Override(ranges.key, wanted, reason))
    ratio, wanted = looking.look_ratio, wanted_look(seen)
    if ratio is not None and not seen.fullest <= ratio <= 2 * wanted and seen.hidden.any():
        reason = (
            f"boxes that need a look lie in {seen.fullest:.0%} of the tiles of {looking.tile} "
            "pixels or in less, in nine of ten pictures"
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
            f"a picture has up to {of_a_class} objects of one class, and the evaluation counts "
            f"{settings.counted} detections"
        )
        key = "dataloader.evaluator.max_detections"
        overrides.append(Override(key, [1, 10, wanted], reason))
    return overrides


def _area_bounds(part: Part, settings: Settings) -> list[Override]:
    """COCO's bounds, or thirds, where the config's put nearly all boxes into one size."""
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
        return []  # boxes of one size: there is nothing to tell apart
    then = f"bounds at {small} x {small} and {large} x {large} pixels give each size a third"
    return [Override(key, [small**2, large**2], f"{now}; {then}. AP itself does not change")]


def _tells_apart(part: Part, bounds: Sequence[float]) -> bool:
    """Whether two of small, medium and large have more than a few boxes."""
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
    """The nearest multiple of a step, at least one."""
    return step * max(1, math.ceil(value / step - 1e-9) if up else round(value / step))


def _flow(value: Any) -> str:
    """YAML in one line, without spaces."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_flow, value))}]"
    return str(value)
