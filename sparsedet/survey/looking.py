"""Check the glance (a downscaled picture) and the look (chosen tiles) of a model on a data set."""

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

_TRACE = 3.0  # pixels of the glance that a scorer needs of an object's longer side
_QUANTILE = 0.1  # share of the objects that may be smaller
_FULLEST = 0.9  # share of the pictures for which the look ratio must suffice
_SPARE = 1.2  # factor of spare tiles
_STEP = 0.05  # step of look ratios
_LOST_SHARE = 0.05  # share of the objects that need a look, below which there is a warning
_LARGE = 1600, 1000  # pixels of the long and the short side of large pictures
_SPARSE = 0.1  # share of the area, up to which choosing tiles saves time
_SHRUNK = 0.75  # ratio of object sizes at the model's input and in the file
_FEW_CELLS = 16.0  # pixels of the input below which an object covers few cells


@dataclass(frozen=True)
class Seen:
    """The objects of a part as seen by a model that chooses tiles.

    Attributes:
        part: a part of a data set.
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
        """Share of the objects that are too small for a scorer in such a glance."""
        return float((self.longer / glance_factor < _TRACE).mean())

    @cached_property
    def tiles(self) -> np.ndarray:
        """(P,), share of the tiles of each picture with the center of a hidden object."""
        part, tile = self.part, self.looking.tile
        grid = np.ceil(part.pictures * self.scale[:, None] / tile).astype(int).clip(1)
        places = part.centers * self.scale[part.picture][:, None] // tile
        places = places.astype(int).clip(0, grid[part.picture] - 1)
        held = np.column_stack((part.picture, places))[self.hidden]
        counts = np.bincount(np.unique(held, axis=0)[:, 0], minlength=len(grid))
        return counts / grid.prod(axis=1)

    @property
    def fullest(self) -> float:
        """The look ratio that suffices for nine of ten pictures."""
        return float(np.quantile(self.tiles, _FULLEST))


def wanted_glance(seen: Seen) -> int:
    """The glance factor, halved while too many objects are too small in the glance."""
    factor = seen.looking.glance_factor
    while factor % 4 == 0 and seen.share_without_trace(factor) > _QUANTILE:
        factor //= 2
    return factor


def wanted_look(seen: Seen) -> float:
    """A look ratio that suffices for nine of ten pictures, with some spare tiles."""
    steps = math.ceil(_SPARE * seen.fullest / _STEP - 1e-9)
    return round(min(max(steps, 1) * _STEP, 1.0), 2)


def wanted_ranges(bound: float, levels: int, *, glance: bool) -> list[list[int]]:
    """Size ranges of levels; the first level is for objects below a bound.

    Args:
        bound: the bound in pixels of the input.
        levels: number of levels.
        glance: for the levels of the glance; False = for all levels of the encoder.
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
        f"in the glance (the picture at 1/{looking.glance_factor}), the longer side of a box has "
        f"{'  '.join(f'{value:.0f}' for value in at_glance)} pixels (10th, 50th and 90th "
        f"percentile); {seen.hidden.mean():.0%} of the boxes are below {looking.min_visible} "
        "pixels there, and their tiles must be chosen",
        f"such boxes lie in {tiles.mean():.1%} of the tiles of {looking.tile} pixels on average, "
        f"and in {seen.fullest:.1%} or more in a tenth of the pictures",
    ]
    if looking.look_ratio is not None:
        lines[1] += f"; {looking.look_ratio:.1%} are chosen"
    return lines


def look_misfits(seen: Seen, mends: dict[str, str]) -> Iterator[str]:
    """Sentences about objects that the model cannot find because of its glance or look ratio.

    Args:
        seen: the training part.
        mends: the suggested overrides for `glance` and `look`, if any.
    """
    looking, its = seen.looking, seen.part.its
    lost = seen.share_without_trace(looking.glance_factor)
    if lost > _QUANTILE:
        mend = mends.get("glance")
        yield (
            f"{lost:.0%} of the {its('boxes')} are below {_TRACE:.0f} pixels in the glance (the "
            f"picture at 1/{looking.glance_factor}), where a scorer can hardly detect them. "
            + (f"Add {mend}." if mend else "Enlarge the model's input.")
        )
    if seen.hidden.mean() < _LOST_SHARE:
        yield (
            f"{1 - seen.hidden.mean():.0%} of the {its('boxes')} have {looking.min_visible} pixels "
            "or more in the glance, which suffices to find them, so choosing tiles only costs "
            "time. Use a model that processes the whole picture at a smaller size, such as one of "
            "projects/focus_detr."
        )
    elif looking.look_ratio is not None and looking.look_ratio < seen.fullest:
        mend = mends.get("look") or f"a larger {looking.key}"
        yield (
            f"Boxes too small for the glance lie in {seen.fullest:.0%} or more of the tiles "
            f"in a tenth of the {its('pictures')}, but only {looking.look_ratio:.0%} of the tiles "
            f"are chosen; the others are processed only in the glance. Add {mend}."
        )


def large_pictures(part: Part, shown: np.ndarray | None, settings: Settings) -> Iterator[str]:
    """Recommend a model that chooses tiles for a data set of small objects in large pictures.

    Args:
        part: the training part.
        shown: (N, 2), its boxes at the model's input; None if unknown.
        settings: settings of the config.
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
        f"objects small and few: a tenth is below {here:.0f} pixels at the model's input "
        f"({there:.0f} in the file), and all cover {covered:.1%} of the area. The configs of "
        "projects/large_images process such pictures at full size, but only the tiles that may "
        "have small objects."
    )
