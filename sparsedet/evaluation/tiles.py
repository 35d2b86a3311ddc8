"""How many objects lie in the tiles that a model chooses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sparsedet.evaluation.rules import Rules
from sparsedet.structures import Instances


@dataclass(frozen=True)
class LookedTiles:
    """One picture: its chosen tiles, and the tile of each object.

    Attributes:
        looked: (N,), True for chosen tiles.
        tile: (n,), the tile that holds the center of each object.
        area: (n,), area of each object in square pixels of the original image.
    """

    looked: np.ndarray
    tile: np.ndarray
    area: np.ndarray

    @classmethod
    def of(cls, tiles: Instances, centers: np.ndarray, area: np.ndarray) -> LookedTiles:
        """Assign the objects of a picture to its tiles.

        Args:
            tiles: the model's output `tiles`: `boxes`, row by row, and `looked`.
            centers: (n, 2), x and y of the objects in the same pixels.
            area: (n,), their areas in square pixels of the original image.
        """
        starts = np.asarray(tiles.boxes, dtype=float)[:, :2]
        columns, rows = np.unique(starts[:, 0]), np.unique(starts[:, 1])
        # an object beyond the picture belongs to the outermost tile
        column, row = (
            np.searchsorted(each, centers[:, axis], side="right").clip(1) - 1
            for axis, each in enumerate((columns, rows))
        )
        return cls(tiles.looked.cpu().numpy(), row * len(columns) + column, area)

    def counts(self, low: float, high: float) -> np.ndarray:
        """Number of objects with an area in [low, high) in each tile."""
        inside = (self.area >= low) & (self.area < high)
        return np.bincount(self.tile[inside], minlength=len(self.looked))


def tile_recall(images: Iterable[LookedTiles], rules: Rules) -> dict[str, float]:
    """Share of the objects whose center is in a chosen tile, with upper and lower references.

    Returns:
        In percent: `looked`, the share of chosen tiles, the mean over the pictures; `recall`, the
        share of objects in the model's tiles; `oracle`, the largest share that as many tiles of
        each picture can contain; `random`, the average share in as many random tiles. The last
        three are given for all objects and for each size, such as `recall-small`; NaN without
        objects.
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
