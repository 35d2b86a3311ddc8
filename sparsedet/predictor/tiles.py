"""Process large pictures in tiles, with supervision's slicer.

The test transform resizes a large picture so much that small objects vanish. So the picture is cut
into overlapping tiles, and each tile passes through the transform as a separate picture (Akyon et
al., ICIP 2022, "Slicing aided hyper inference").
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

_SAME = 0.5  # boxes of one class are one object if they share more than this of the smaller box
_REACH = 0.02  # a box this close to the border of its tile (share of its side) may be cut there


class Slicer:
    """Detects objects in overlapping tiles of a picture and merges the detections.

    First, boxes that may be cut are left out: a box that ends at a tile border inside the picture,
    if another pass sees the complete object. That is the neighboring tile, if the box is narrower
    than the overlap, or the pass of the whole picture. Then non-maximum suppression merges boxes
    of one class that share more than half of the smaller box.

    Args:
        detect: computes the detections of a list of pictures.
        tile: side of a tile in pixels.
        overlap: overlap of neighboring tiles as a share of their side, in [0, 1).
        whole: also process the whole picture, for objects larger than the overlap.
        batch_size: maximum number of tiles per batch.

    Raises:
        ValueError: a value is outside of its range.
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
                f"Predictor.tiles must be a number of pixels, got {tile!r}. "
                "Set it near the size of the training pictures."
            )
        if not isinstance(overlap, Real) or not 0 <= overlap < 1:
            raise ValueError(f"Predictor.overlap must be in [0, 1), got {overlap!r}. Try 0.2.")
        self._supervision = import_supervision()
        self._detect, self._whole = detect, whole
        step = max(1, tile - round(overlap * tile))
        self._tile, self._overlap, self._batch_size = tile, tile - step, batch_size

    def __call__(self, picture: Picture) -> Detections:
        """The detections in the whole picture; the keep ratio is the mean over all passes."""
        passes: list[Detections] = []
        parts = [self._slicer(passes)(picture.pixels.permute(1, 2, 0).numpy())]
        if len(passes) == 1:  # the picture is no larger than a tile
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
        # relative to the smaller box, since the scales of the passes give tighter or wider boxes
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
        inside = _gaps(found.xyxy, image_size) > gaps + 0.5  # not the border of the picture
        cut = (gaps < reach) & inside
        sides = (found.xyxy[:, 2:] - found.xyxy[:, :2])[:, [0, 1, 0, 1]]
        seen_beside = sides + 2 * reach < self._overlap  # uncut in the neighboring tile
        return found[~(cut & (seen_beside | self._whole)).any(axis=1)]


def _gaps(boxes_xyxy: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Distance of each side of a box (left, top, right, bottom) from that of the image."""
    height, width = image_size
    far = np.array([width, height]) - boxes_xyxy[:, 2:]
    return np.concatenate((boxes_xyxy[:, :2], far), axis=1)


def _with_gaps(detections: Detections) -> Any:
    found = detections.to_supervision()
    found.data["gaps"] = _gaps(found.xyxy, detections.image_size)
    return found


def _filled(template: Detections, found: Any) -> Detections:
    """The template with the objects of ``found``, in descending order of score."""
    if found is None:
        return template.above(np.inf)
    order = np.argsort(-found.confidence, kind="stable")
    return replace(
        template,
        boxes_xyxy=found.xyxy[order].astype(np.float32),
        scores=found.confidence[order].astype(np.float32),
        labels=found.class_id[order].astype(np.int64),
    )
