"""Large pictures in parts, by supervision's slicer.

A detector looks at a picture at the size of its test transform, which small objects of a large
picture do not survive. Overlapping tiles pass through that transform each as a picture of its own
(Akyon et al., ICIP 2022, "Slicing aided hyper inference").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch

from sparsedet.predictor.detections import Detections, import_supervision
from sparsedet.predictor.pictures import Picture

__all__ = ["Slicer"]

_SAME = 0.5  # boxes of one class that share more than this of the smaller are one object
_REACH = 0.02  # a box that ends so close to the border of its tile (share of it) may be cut there


class Slicer:
    """Detects in overlapping tiles of a picture and joins what was found.

    Boxes of one class of which one has more than half of the other in it are joined by non-maximum
    suppression. Before, a box that ends
    at a border inside of the picture is left out where another pass sees all of the object that
    this one saw, and more: the tile beside, if the box is narrower than the overlap, and the whole
    picture.

    Args:
        detect: makes the detections of a list of pictures.
        tile: side of a tile in pixels.
        overlap: share of a tile's side that it has in common with the next, in [0, 1).
        whole: also look at the whole picture, for objects larger than the overlap.
        batch_size: most tiles at a time.

    Raises:
        ValueError: a value outside of its range.
        ImportError: supervision is not installed.
    """

    def __init__(
        self,
        detect: Callable[[list[Picture]], list[Detections]],
        tile: int,
        *,
        overlap: float,
        whole: bool,
        batch_size: int,
    ) -> None:
        if not isinstance(tile, int) or tile < 1:
            raise ValueError(
                f"Predictor.tiles must be a side in pixels, got {tile!r}. "
                "Set it near the size of the pictures that the model was trained on."
            )
        if not isinstance(overlap, Real) or not 0 <= overlap < 1:
            raise ValueError(f"Predictor.overlap must be in [0, 1), got {overlap!r}. Take 0.2.")
        self._supervision = import_supervision()
        self._detect, self._whole = detect, whole
        step = max(1, tile - round(overlap * tile))
        self._tile, self._overlap, self._batch_size = tile, tile - step, batch_size

    def __call__(self, picture: Picture) -> Detections:
        """The detections in the whole picture; the keep ratio is the mean over all passes."""
        passes: list[Detections] = []
        parts = [self._slicer(passes)(picture.pixels.permute(1, 2, 0).numpy())]
        if len(passes) == 1:  # a picture no larger than a tile
            return replace(passes[0], path=picture.path, frame=picture.frame)
        parts[0] = self._without_cut_boxes(parts[0], picture.size)
        if self._whole:
            passes += self._detect([picture])
            parts.append(passes[-1].to_supervision())
        parts = [part for part in parts if len(part)]
        found = self._join(parts) if parts else None
        ratios = [each.keep_ratio for each in passes if each.keep_ratio is not None]
        template = replace(
            passes[0],
            image_size=picture.size,
            keep_ratio=sum(ratios) / len(ratios) if ratios else None,
            path=picture.path,
            frame=picture.frame,
        )
        return _filled(template, found)

    def _join(self, parts: list[Any]) -> Any:
        # of the smaller box, since passes at other scales draw an object tighter or wider
        smaller = self._supervision.OverlapMetric.IOS
        merged = self._supervision.Detections.merge(parts)
        return merged.with_nms(_SAME, overlap_metric=smaller)

    def _slicer(self, passes: list[Detections]) -> Any:
        def look(tiles: list[np.ndarray]) -> list[Any]:
            found = self._detect(
                [Picture(torch.from_numpy(each).permute(2, 0, 1)) for each in tiles]
            )
            passes.extend(found)
            return [_with_gaps(each) for each in found]

        single = self._batch_size == 1
        return self._supervision.InferenceSlicer(
            callback=(lambda tile: look([tile])[0]) if single else look,
            slice_wh=self._tile,
            overlap_wh=self._overlap,
            overlap_filter=self._supervision.OverlapFilter.NONE,
            batch_size=self._batch_size,
        )

    def _without_cut_boxes(self, found: Any, image_size: tuple[int, int]) -> Any:
        if not len(found):
            return found
        gaps = found.data.pop("gaps")
        reach = _REACH * self._tile
        inside = _gaps(found.xyxy, image_size) > gaps + 0.5  # this border is not the picture's
        cut = (gaps < reach) & inside
        sides = (found.xyxy[:, 2:] - found.xyxy[:, :2])[:, [0, 1, 0, 1]]
        seen_beside = sides + 2 * reach < self._overlap  # and there it does not seem cut as well
        return found[~(cut & (seen_beside | self._whole)).any(axis=1)]


def _gaps(boxes_xyxy: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """How far each side of a box (left, top, right, bottom) is from that of the image."""
    height, width = image_size
    far = np.array([width, height]) - boxes_xyxy[:, 2:]
    return np.concatenate((boxes_xyxy[:, :2], far), axis=1)


def _with_gaps(detections: Detections) -> Any:
    found = detections.to_supervision()
    found.data["gaps"] = _gaps(found.xyxy, detections.image_size)
    return found


def _filled(template: Detections, found: Any) -> Detections:
    """The template with the objects of ``found``, the best first."""
    if found is None:
        return template.above(np.inf)
    order = np.argsort(-found.confidence, kind="stable")
    return replace(
        template,
        boxes_xyxy=found.xyxy[order].astype(np.float32),
        scores=found.confidence[order].astype(np.float32),
        labels=found.class_id[order].astype(np.int64),
    )
