"""Whether a model that looks at some tiles of a picture looks where the objects are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sparsedet.evaluation.rules import Rules
from sparsedet.structures import Instances


@dataclass(frozen=True)
class LookedTiles:
    """One picture: which of its tiles were looked at, and in which of them its objects are.

    Attributes:
        looked: (N,), True at the tiles that were looked at.
        tile: (n,), the tile that holds the center of each object.
        area: (n,), area of each object in square pixels of the original image.
    """

    looked: np.ndarray
    tile: np.ndarray
    area: np.ndarray

    @classmethod
    def of(cls, tiles: Instances, centers: np.ndarray, area: np.ndarray) -> LookedTiles:
        """Put the objects of a picture into its tiles.

        Args:
            tiles: what a model says under `tiles`: `boxes`, row by row, and `looked`.
            centers: (n, 2), x and y of the objects in the same pixels.
            area: (n,), their areas in square pixels of the original image.
        """
        starts = np.asarray(tiles.boxes, dtype=float)[:, :2]
        columns, rows = np.unique(starts[:, 0]), np.unique(starts[:, 1])
        # what lies beyond the picture is in its outermost tile
        column, row = (
            np.searchsorted(each, centers[:, axis], side="right").clip(1) - 1
            for axis, each in enumerate((columns, rows))
        )
        return cls(tiles.looked.cpu().numpy(), row * len(columns) + column, area)

    def counts(self, low: float, high: float) -> np.ndarray:
        """Objects of these areas in each tile."""
        inside = (self.area >= low) & (self.area < high)
        return np.bincount(self.tile[inside], minlength=len(self.looked))


def tile_recall(images: Iterable[LookedTiles], rules: Rules) -> dict[str, float]:
    """Share of the objects whose center was looked at, beside the most and the least to expect.

    Returns:
        In percent: `looked`, the share of the tiles, the mean over the pictures; `recall`, that of
        the model; `oracle`, the most that as many tiles of every picture can hold; `random`, what
        as many tiles hold on average if they are drawn by chance. The last three of all objects,
        and of each size, as `recall-small`; NaN where there is no object.
    """
    images = list(images)
    found = {"looked": _percent(sum(each.looked.mean() for each in images), len(images))}
    names = ["", *(f"-{name}" for name in rules.area_names)]
    for name, (low, high) in zip(names, rules.ranges, strict=True):
        objects, hits = 0, np.zeros(3)
        for image in images:
            counts, number = image.counts(low, high), int(image.looked.sum())
            objects += counts.sum()
            best = np.sort(counts)[::-1]
            hits += (counts @ image.looked, best[:number].sum(), counts.sum() * image.looked.mean())
        for kind, share in zip(("recall", "oracle", "random"), hits, strict=True):
            found[kind + name] = _percent(share, objects)
    return found


def _percent(part: float, whole: float) -> float:
    return 100 * float(part) / float(whole) if whole else float("nan")
