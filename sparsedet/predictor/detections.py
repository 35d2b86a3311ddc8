"""The detections of a picture, and their conversion to COCO's format, supervision and drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from sparsedet.predictor.pictures import PictureSource, read_picture
from sparsedet.structures import Boxes, BoxMode, Instances
from sparsedet.visualization import draw_detections, draw_tiles

if TYPE_CHECKING:
    import supervision

__all__ = ["Detections", "import_supervision"]

_LEAST_DRAWN = 480  # pixels of a drawn picture's long side
_DIM = 0.6  # brightness outside of the chosen tiles, where objects must still be visible


def import_supervision() -> Any:
    """Import the package supervision.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            "Tiles and to_supervision() need the package supervision. "
            "Run: pip install 'sparsedet[supervision]'"
        ) from error
    return supervision


@dataclass(frozen=True, eq=False)  # arrays cannot be compared as a whole
class Detections:
    """The objects detected in one picture, in descending order of score.

    Attributes:
        boxes_xyxy: float32 (N, 4), corners in pixels of the picture.
        scores: float32 (N,), in [0, 1].
        labels: int64 (N,), indices of ``class_names``.
        class_names: the classes of the model.
        image_size: (height, width) of the picture.
        keep_ratio: share of the tokens that the encoder updated, the mean over its layers; None
            if the model has none.
        tiles: the tiles of a model that chooses some: ``boxes`` (xyxy, pixels of the picture),
            ``scores`` and ``looked`` (True for chosen tiles); None for other models.
        path: the file of the picture; None for pictures from memory.
        frame: index of the frame in a video, from 0; None for pictures.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    keep_ratio: float | None
    tiles: Instances | None = None
    path: str | None = None
    frame: int | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.image_size
        names = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"Detections({len(self)} in {width} x {height} pixels{': ' if names else ''}{shown})"

    @property
    def names(self) -> list[str]:
        """The class name of each box."""
        return [self.class_names[label] for label in self.labels]

    @property
    def instances(self) -> Instances:
        """The detections as ``Instances`` with ``pred_boxes``, ``scores`` and ``pred_classes``."""
        return Instances(
            self.image_size,
            pred_boxes=Boxes(torch.from_numpy(self.boxes_xyxy)),
            scores=torch.from_numpy(self.scores),
            pred_classes=torch.from_numpy(self.labels),
        )

    def above(self, score: float) -> Detections:
        """The detections with a score of at least ``score``."""
        kept = self.scores >= score
        boxes, scores, labels = self.boxes_xyxy[kept], self.scores[kept], self.labels[kept]
        return replace(self, boxes_xyxy=boxes, scores=scores, labels=labels)

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Rows in COCO's results format, for ``COCO.loadRes``.

        Args:
            image_id: id of the picture.
            category_ids: the id of each class; None = ids from 1, in the order of
                ``class_names``. COCO's own 80 classes have ids with gaps.

        Raises:
            ValueError: the number of ids differs from the number of classes.
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.class_names):
            raise ValueError(
                f"Detections.category_ids must have one id for each of the {len(self.class_names)} "
                f"classes, got {len(ids)}. Give them in the order of class_names."
            )
        boxes = BoxMode.convert(self.boxes_xyxy.astype(float), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[label]),
                "bbox": [round(float(value), 3) for value in box],
                "score": round(float(score), 6),
            }
            for box, score, label in zip(boxes, self.scores, self.labels, strict=True)
        ]

    def to_supervision(self) -> supervision.Detections:
        """The detections for supervision's annotators, trackers, zones and metrics.

        Raises:
            ImportError: supervision is not installed.
        """
        return import_supervision().Detections(
            xyxy=self.boxes_xyxy.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=object).astype(str)},
        )

    def draw(self, picture: PictureSource | None = None, *, tiles: bool = False) -> Image.Image:
        """Draw boxes, classes and scores on a copy of the picture.

        A picture whose long side is below 480 pixels is enlarged by an integer factor, since the
        labels would hide it.

        Args:
            picture: the picture that was processed; None = read its file again.
            tiles: outline the chosen tiles and darken the rest.

        Raises:
            ValueError: no picture is given, and it is not from a file.
        """
        if picture is None and (self.path is None or self.frame is not None):
            raise ValueError(
                "Detections.draw needs the picture, since it is not from a file. Pass it."
            )
        source = self.path if picture is None else picture
        assert source is not None
        shown = read_picture(source).to_pillow()
        times = -(-_LEAST_DRAWN // max(shown.size))
        if times > 1:
            shown = shown.resize((times * shown.width, times * shown.height))
        if tiles and self.tiles is not None:
            shown = draw_tiles(shown, self.tiles, dim=_DIM)
        return draw_detections(
            shown, self.instances, class_names=self.class_names, score_threshold=0.0
        )
