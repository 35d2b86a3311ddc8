"""Warnings about settings that do not fit the data, with the override that helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from sparsedet.survey.looking import large_pictures, look_misfits
from sparsedet.survey.numbers import SMALL_SIDE, InputSizes, Part
from sparsedet.survey.settings import Ranges, Settings
from sparsedet.survey.suggest import (
    SIDES,
    Suggestion,
    choose_sizes,
    limited_scales,
    mean_pixels,
    seen_by,
    side_overrides,
)

__all__ = ["find_misfits"]

_NAMES_SHOWN = 5
_SMALL_SHARE = 0.05  # share of boxes below SMALL_SIDE that gives a warning
_VANISHED_SHARE = 0.01  # share of boxes with a side below a pixel that gives a warning
_THIN = 0.5  # a picture is thin if max_size reduces its short side to less than this share
# the range of the distances of tokens in a box, as shares of its longer side
_SPANS = {"sides": (0.5, 1.0), "center": (0.0, 0.5), "half_size": (0.5, 0.5)}


def find_misfits(
    parts: Sequence[Part],
    sizes: Mapping[str, InputSizes | str],
    settings: Settings,
    suggestion: Suggestion,
) -> list[str]:
    """Sentences about objects that are lost, the most serious kinds first.

    Args:
        parts: parts of the data set, the training part first.
        sizes: the sizes at the model's input of each part, or why they are unknown.
        settings: settings of the config.
        suggestion: the suggestion for the same parts and settings.
    """
    return [
        *_nothing_to_learn(parts[0]),
        *_too_small(parts, sizes, settings, suggestion),
        *_too_many(parts, settings, suggestion),
        *_out_of_range(parts[0], sizes[parts[0].name], settings, suggestion),
        *_look(parts[0], sizes[parts[0].name], settings, suggestion),
        *_never_seen(parts),
    ]


def _look(
    part: Part, sizes: InputSizes | str, settings: Settings, suggestion: Suggestion
) -> Iterator[str]:
    """Boxes that are lost by choosing tiles; a recommendation to choose tiles if it would help."""
    yield from large_pictures(part, None if isinstance(sizes, str) else sizes.boxes, settings)
    seen = seen_by(part, settings, settings.test_short_side, settings.max_size)
    if seen is not None:
        glance = suggestion.line("model.regions.glance", "model.num_levels", "model.criterion")
        yield from look_misfits(seen, {"glance": glance, "look": suggestion.line(seen.looking.key)})


def _nothing_to_learn(part: Part) -> Iterator[str]:
    """A training part without boxes."""
    if not len(part.boxes):
        regions = ", only ignore regions" if part.ignored.any() else ""
        yield (
            f"There are no {part.its('boxes')}{regions}, so a model cannot be trained on these "
            "pictures, and AP is undefined. `sparsedet eval` writes predictions.json for them."
        )


def _too_small(
    parts: Sequence[Part],
    sizes: Mapping[str, InputSizes | str],
    settings: Settings,
    suggestion: Suggestion,
) -> Iterator[str]:
    """Boxes that are too small at the model's input, because of `max_size` or in general."""
    lost = []
    for part in parts:
        given = sizes[part.name]
        if isinstance(given, str):
            continue
        small, vanished = given.share_small, given.share_vanished
        if small >= _SMALL_SHARE or vanished >= _VANISHED_SHARE:
            gone = f" ({_percent(vanished)} have a side below 1)" if vanished else ""
            lost.append(f"{_percent(small)} of the {part.its('boxes')}{gone}")
    if not lost:
        return
    thin = [text for part in parts for text in _thin(part, settings)]
    text = (
        f"{_join(lost)} are below {SMALL_SIDE:.0f} pixels at the model's input, where detectors "
        f"find little.{''.join(thin)}"
    )
    yield f"{text} {_larger(parts, settings, suggestion)}"


def _larger(parts: Sequence[Part], settings: Settings, suggestion: Suggestion) -> str:
    """The sizes that help, their cost, and the share of boxes that stay too small."""
    side, limit = settings.test_short_side, settings.max_size
    hope = "Cut the pictures into tiles before training, or use closer shots."
    if side is None or limit is None:
        return f"Enlarge the model's input. {hope}"
    line, sizes = suggestion.line(*SIDES), suggestion.sizes
    if sizes is None or _small_at(parts, sizes.short_side, sizes.max_size) >= _SMALL_SHARE:
        dearer = choose_sizes(parts[0], settings, SMALL_SIDE, bounded=False)
        if dearer is not None and dearer.sides != (side, limit):
            sizes, line = dearer, " ".join(map(str, side_overrides(settings, dearer)))
    if sizes is None or not line:
        return hope
    now, then = (_small_at(parts, *pair) for pair in ((side, limit), sizes.sides))
    if then >= now:
        return hope
    times = sizes.pixels / mean_pixels(parts[0], side, limit)
    left = f"{_percent(then)} of all boxes are" if then else "no box is"
    return (
        f"With {line}, {left} below {SMALL_SIDE:.0f} pixels instead of "
        f"{_percent(now)}, at {times:.3g} times the pixels and time."
        + (f" {hope}" if then >= _SMALL_SHARE else "")
    )


def _thin(part: Part, settings: Settings) -> Iterator[str]:
    side, limit = settings.test_short_side, settings.max_size
    if side is None or limit is None or np.isnan(part.pictures).any():
        return
    scales = limited_scales(part.pictures, side, limit)
    short = part.pictures.min(axis=1) * scales
    thin = short < _THIN * side
    if thin.any():
        inside = _percent(float(thin[part.picture].mean())) if len(part.boxes) else "none"
        yield (
            f" {int(thin.sum())} of {len(thin)} {part.its('pictures')} ({inside} of the boxes) are "
            f"so elongated that dataset.max_size={limit} reduces their short side to "
            f"{np.median(short[thin]):.0f} pixels instead of {side}."
        )


def _small_at(parts: Sequence[Part], short_side: int, max_size: int) -> float:
    sides = [
        part.sides * limited_scales(part.pictures, short_side, max_size)[part.picture]
        for part in parts
    ]
    return float((np.concatenate(sides) < SMALL_SIDE).mean())


def _too_many(parts: Sequence[Part], settings: Settings, suggestion: Suggestion) -> Iterator[str]:
    """Pictures with more objects than queries, or than detections."""
    limits: tuple[tuple[str, int | None, str, str, Callable[[Part], np.ndarray]], ...] = (
        (
            "model.query_initializer.num_queries",
            settings.num_queries,
            "cannot be matched with a query",
            "a picture",
            lambda part: part.objects,
        ),
        (
            "model.max_detections",
            settings.max_detections,
            "exceed the model's number of detections",
            "a picture",
            lambda part: part.objects,
        ),
        (
            "dataloader.evaluator.max_detections",
            settings.counted,
            "cannot be found in the evaluation",
            "one class in a picture",
            lambda part: part.objects_of_a_class,
        ),
    )
    for key, limit, fate, unit, count in limits:
        if limit is None:
            continue
        most = max(int(count(part).max(initial=0)) for part in parts)
        if most > limit:
            beyond = [(part, np.maximum(count(part) - limit, 0)) for part in parts]
            lost = [_share_beyond(part, excess) for part, excess in beyond if excess.any()]
            mend = suggestion.line(key) or f"a larger {key}"
            yield (
                f"{_join(lost)} {fate}: {key} is {limit}, and {unit} has up to {most} objects. "
                f"Add {mend}."
            )


def _share_beyond(part: Part, excess: np.ndarray) -> str:
    """The number of objects beyond a limit, in words; `excess` is their number by picture."""
    share = _percent(excess.sum() / len(part.boxes))
    return (
        f"{excess.sum()} of {len(part.boxes)} {part.its('objects')} ({share}, in "
        f"{int((excess > 0).sum())} of {len(part.pictures)} pictures)"
    )


def _out_of_range(
    part: Part, sizes: InputSizes | str, settings: Settings, suggestion: Suggestion
) -> Iterator[str]:
    """Boxes without a token that a foreground loss labels as foreground in any level."""
    if isinstance(sizes, str) or len(sizes.boxes) == 0:
        return
    for ranges in settings.ranges:
        share = float((~_covered(sizes.boxes.max(axis=1), ranges)).mean())
        if share > 0:
            mend = suggestion.line(ranges.key) or f"ranges without gaps as {ranges.key}"
            yield (
                f"{_percent(share)} of the {part.its('boxes')} have a size at the model's input "
                f"that is in none of {ranges.key}, so the token scorer learns that they are "
                f"background. Add {mend}."
            )


def _covered(longer: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Whether a distance in a box with this longer side is in the range of any level."""
    nearest, farthest = (part * longer for part in _SPANS[ranges.distance])
    covered = np.zeros(len(longer), dtype=bool)
    for low, high in ranges.pairs:
        covered |= (nearest <= high) & (farthest > low)
    return covered


def _never_seen(parts: Sequence[Part]) -> Iterator[str]:
    """Classes without a training object."""
    trained, *others = parts
    if trained.name != "training" or not others:
        return
    names = trained.dataset.class_names
    objects = np.bincount(trained.label, minlength=len(names))
    absent = np.flatnonzero(objects == 0)
    for part in others:
        share = np.isin(part.label, absent).sum() / max(1, len(part.label))
        if share > 0:
            shown = ", ".join(repr(names[i]) for i in absent[:_NAMES_SHOWN])
            more = f" and {len(absent) - _NAMES_SHOWN} more" if len(absent) > _NAMES_SHOWN else ""
            yield (
                f"{len(absent)} of {len(names)} classes ({shown}{more}) have no training box, so "
                f"the model cannot find {_percent(share)} of the {part.its('boxes')}, which are of "
                "these classes. Split the pictures into parts again."
            )


def _percent(share: float) -> str:
    """A share in percent that is never rounded to 0 or 100."""
    percent = 100 * share
    if 0 < percent < 1:
        return f"{percent:.1g} %"
    return f"{percent:.3g} %" if 99 < percent < 100 else f"{percent:.0f} %"


def _join(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
