"""What a glance shows of a set, and how much of its pictures is worth a look."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sparsedet.survey.numbers import Part
from sparsedet.survey.settings import Looking, Settings

__all__ = [
    "Seen",
    "describe_look",
    "large_pictures",
    "look_misfits",
    "wanted_glance",
    "wanted_look",
    "wanted_ranges",
]

_TRACE = 3.0  # pixels of the glance that the longer side of an object has, for a scorer to see it
_QUANTILE = 0.1  # of the objects may be smaller than that
_FULLEST = 0.9  # of the pictures have at most so many tiles to look at
_SPARE = 1.2  # tiles for each that is worth it
_STEP = 0.05  # of look ratios
_LOST_SHARE = 0.05  # of the objects is worth a word
_LARGE = 1600, 1000  # pixels of a long and of a short side
_SPARSE = 0.1  # of the area, that objects cover where looking at parts pays
_SHRUNK = 0.75  # of their size is left to pictures at the model's input
_FEW_CELLS = 16.0  # pixels of the input below which an object covers few cells


@dataclass(frozen=True)
class Seen:
    """The objects of a part as a model that glances and looks gets them.

    Attributes:
        part: of a set.
        looking: the settings of the regions.
        scale: (P,), side of a picture at the model's input / in the file.
    """

    part: Part
    looking: Looking
    scale: np.ndarray

    @cached_property
    def longer(self) -> np.ndarray:
        """(N,), longer side of each object in pixels of the input."""
        return self.part.boxes.max(axis=1) * self.scale[self.part.picture]

    @property
    def hidden(self) -> np.ndarray:
        """(N,), True for objects that need a look."""
        return self.longer < self.looking.bound

    def share_without_trace(self, glance_factor: int) -> float:
        """Share of the objects of which such a glance shows next to nothing."""
        return float((self.longer / glance_factor < _TRACE).mean())

    @cached_property
    def tiles(self) -> np.ndarray:
        """(P,), share of the tiles of each picture that hold the center of a hidden object."""
        part, tile = self.part, self.looking.tile
        grid = np.ceil(part.pictures * self.scale[:, None] / tile).astype(int).clip(1)
        places = part.centers * self.scale[part.picture][:, None] // tile
        places = places.astype(int).clip(0, grid[part.picture] - 1)
        held = np.column_stack((part.picture, places))[self.hidden]
        counts = np.bincount(np.unique(held, axis=0)[:, 0], minlength=len(grid))
        return counts / grid.prod(axis=1)

    @property
    def fullest(self) -> float:
        """Share of the tiles to look at that is enough for nine of ten pictures."""
        return float(np.quantile(self.tiles, _FULLEST))


def wanted_glance(seen: Seen) -> int:
    """The glance factor, halved where most of the smallest objects would leave no trace."""
    factor = seen.looking.glance_factor
    while factor % 4 == 0 and seen.share_without_trace(factor) > _QUANTILE:
        factor //= 2
    return factor


def wanted_look(seen: Seen) -> float:
    """A look ratio that is enough for nine of ten pictures, with some tiles to spare."""
    steps = math.ceil(_SPARE * seen.fullest / _STEP - 1e-9)
    return round(min(max(steps, 1) * _STEP, 1.0), 2)


def wanted_ranges(bound: float, levels: int, *, glance: bool) -> list[list[int]]:
    """Size ranges of levels whose first one answers for what is below a bound.

    Args:
        bound: in pixels of the input.
        levels: how many there are.
        glance: of the levels of a glance; False = of all that the encoder sees.
    """
    first, width = int(bound), 8 if glance else 4
    highs = [first, *(first * width * 2**n for n in range(levels - 2)), 999999]
    lows = [-1, first, *(high // 2 for high in highs[1:-1])]
    return [[low, high] for low, high in zip(lows[:levels], highs, strict=True)]


def describe_look(seen: Seen) -> list[str]:
    """Lines of a report about the glance and the look."""
    looking, tiles = seen.looking, seen.tiles
    at_glance = np.quantile(seen.longer / looking.glance_factor, (0.1, 0.5, 0.9))
    lines = [
        f"at a glance of 1/{looking.glance_factor}, the longer side of a box has "
        f"{'  '.join(f'{value:.0f}' for value in at_glance)} pixels (10th, 50th and 90th "
        f"percentile); {seen.hidden.mean():.0%} of the boxes are below {looking.min_visible} "
        "pixels there and need a look",
        f"such boxes lie in {tiles.mean():.1%} of the tiles of {looking.tile} pixels on average, "
        f"in {seen.fullest:.1%} or more in a tenth of the pictures",
    ]
    if looking.look_ratio is not None:
        lines[1] += f"; {looking.look_ratio:.1%} are looked at"
    return lines


def look_misfits(seen: Seen, mends: dict[str, str]) -> Iterator[str]:
    """Sentences about objects that a glance and a look lose.

    Args:
        seen: the training part.
        mends: by `glance` and `look`, the overrides that are suggested, if any.
    """
    looking, its = seen.looking, seen.part.its
    lost = seen.share_without_trace(looking.glance_factor)
    if lost > _QUANTILE:
        mend = mends.get("glance")
        yield (
            f"{lost:.0%} of the {its('boxes')} are below {_TRACE:.0f} pixels at a glance of "
            f"1/{looking.glance_factor}, where a scorer can hardly tell that something is there. "
            + (f"Add {mend}." if mend else "Enlarge the model's input.")
        )
    if seen.hidden.mean() < _LOST_SHARE:
        yield (
            f"{1 - seen.hidden.mean():.0%} of the {its('boxes')} have {looking.min_visible} pixels "
            "or more at the glance, which finds them by itself: the look is paid for nothing. Take "
            "a model that sees the whole picture at a smaller size, such as one of "
            "projects/focus_detr."
        )
    elif looking.look_ratio is not None and looking.look_ratio < seen.fullest:
        mend = mends.get("look") or f"a larger {looking.key}"
        yield (
            f"Boxes that need a look lie in {seen.fullest:.0%} or more of the tiles in a tenth of "
            f"the {its('pictures')}, and {looking.look_ratio:.0%} of the tiles are looked at: the "
            f"others are seen at the resolution of the glance alone. Add {mend}."
        )


def large_pictures(part: Part, shown: np.ndarray | None, settings: Settings) -> Iterator[str]:
    """A word for a model that looks, where a set is one of small objects in large pictures.

    Args:
        part: the training part.
        shown: (N, 2), its boxes at the model's input; None where that is not known.
        settings: of the config.
    """
    pictures = part.pictures
    if settings.looking is not None or shown is None or not len(shown) or np.isnan(pictures).any():
        return
    long, short = np.median(np.sort(pictures, axis=1)[:, ::-1], axis=0)
    covered = float(part.boxes.prod(axis=1).sum() / pictures.prod(axis=1).sum())
    there, here = (np.quantile(np.sqrt(x.prod(axis=1)), 0.1) for x in (part.boxes, shown))
    large = long >= _LARGE[0] and short >= _LARGE[1]
    if not large or covered > _SPARSE or here >= min(_FEW_CELLS, _SHRUNK * there):
        return
    yield (
        f"The {part.its('pictures')} are large (a median long side of {long:.0f} pixels) and their "
        f"objects small and few: a tenth is below {here:.0f} pixels at the model's input, "
        f"{there:.0f} in the file, and all cover {covered:.1%} of the area. The configs of "
        "projects/large_images take such pictures at their own size and look closely only where "
        "something small may be."
    )
