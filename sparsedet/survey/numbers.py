"""Count and measure the pictures and boxes of a part, in the file and at the model's input."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sparsedet.data import AnnotatedDataset, DetectionMapper
from sparsedet.structures import BoxMode

__all__ = ["SMALL_SIDE", "InputSizes", "Part", "input_sizes"]

# detectors find few boxes below this size (the square root of the area, in pixels)
SMALL_SIDE = 8.0
_MOST_SAMPLED = 200  # pictures that are augmented to measure their sizes


@dataclass(frozen=True)
class Part:
    """The pictures and boxes of a part of a data set; ignore regions are counted separately.

    Attributes:
        name: "training", "validation" or the name of another part; empty if there is only one.
        dataset: the data set.
        pictures: (P, 2), height and width in pixels; NaN if the file does not give them.
        boxes: (N, 2), height and width in pixels.
        centers: (N, 2), y and x of the box centers in pixels.
        picture: (N,), index of the picture of each box.
        label: (N,), class of each box.
        ignored: (C,), number of ignore regions of each class.
    """

    name: str
    dataset: AnnotatedDataset
    pictures: np.ndarray
    boxes: np.ndarray
    centers: np.ndarray
    picture: np.ndarray
    label: np.ndarray
    ignored: np.ndarray

    @classmethod
    def of(cls, name: str, dataset: AnnotatedDataset) -> Part:
        """Count the pictures and boxes of a data set.

        Args:
            name: name of the part.
            dataset: result of `sparsedet.data.open_dataset`.
        """
        pictures, rows, ignored = [], [], np.zeros(len(dataset.class_names), dtype=int)
        for place, record in enumerate(dataset.records):
            height, width = record["height"], record["width"]
            pictures.append((np.nan, np.nan) if height is None else (height, width))
            for entry in record["annotations"]:
                if entry["iscrowd"]:
                    ignored[entry["category_id"]] += 1
                else:
                    x, y, across, down = entry["bbox"]
                    middle = (y + down / 2, x + across / 2)
                    rows.append((down, across, *middle, place, entry["category_id"]))
        table = np.array(rows, dtype=float).reshape(-1, 6)
        return cls(
            name=name,
            dataset=dataset,
            pictures=np.array(pictures, dtype=float).reshape(-1, 2),
            boxes=table[:, :2],
            centers=table[:, 2:4],
            picture=table[:, 4].astype(int),
            label=table[:, 5].astype(int),
            ignored=ignored,
        )

    def its(self, noun: str) -> str:
        """A noun with the name of the part before it, such as "training boxes"."""
        return f"{self.name} {noun}".strip()

    @cached_property
    def objects(self) -> np.ndarray:
        """(P,), number of objects in each picture."""
        return np.bincount(self.picture, minlength=len(self.pictures))

    @cached_property
    def objects_of_a_class(self) -> np.ndarray:
        """Number of objects of each class in each picture, without zeros."""
        pairs = self.picture * (self.label.max(initial=0) + 1) + self.label
        return np.unique(pairs, return_counts=True)[1]

    @property
    def most(self) -> int:
        """Largest number of objects in a picture."""
        return int(self.objects.max(initial=0))

    @cached_property
    def sides(self) -> np.ndarray:
        """(N,), square root of the area of each box, in pixels of the file."""
        return np.sqrt(self.boxes.prod(axis=1))


@dataclass(frozen=True)
class InputSizes:
    """Sizes of pictures and boxes at the model's input.

    Attributes:
        pictures: (P, 2), height and width in pixels of the model's input.
        boxes: (N, 2), height and width in pixels of the model's input, without boxes outside of a
            crop.
        exact: whether all pictures always get these sizes; otherwise they were measured on a
            sample of pictures, each augmented once.
    """

    pictures: np.ndarray
    boxes: np.ndarray
    exact: bool

    @cached_property
    def sides(self) -> np.ndarray:
        """(N,), square root of the area of each box."""
        return np.sqrt(self.boxes.prod(axis=1))

    @property
    def share_small(self) -> float:
        """Share of the boxes whose `sides` are below `SMALL_SIDE`."""
        return float((self.sides < SMALL_SIDE).mean()) if len(self.boxes) else 0.0

    @property
    def share_vanished(self) -> float:
        """Share of the boxes with a height or width below one pixel."""
        return float((self.boxes.min(axis=1) < 1).mean()) if len(self.boxes) else 0.0


def input_sizes(part: Part, mapper: Any, *, seed: int = 0) -> InputSizes | str:
    """Sizes of the pictures and boxes of a part after a mapper; no picture is read.

    If all transforms can compute their output size, it is exact. Otherwise the transforms are
    applied to images without pixels.

    Args:
        part: a part of a data set.
        mapper: mapper of a loader.
        seed: seed of the augmentation.

    Returns:
        The sizes, or why they are unknown.
    """
    if not isinstance(mapper, DetectionMapper):
        return f"{type(mapper).__name__} does not give them"
    if np.isnan(part.pictures).any():
        return "the file does not give the pictures' sizes"
    known = [mapper.output_size(int(h), int(w)) for h, w in part.pictures]
    if None not in known:
        sizes = np.array(known, dtype=float)
        scales = (sizes / part.pictures)[part.picture]
        return InputSizes(sizes, part.boxes * scales, exact=True)
    try:
        return _drawn_sizes(part, mapper, seed)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return f"a transform needs pixels ({str(error).splitlines()[0][:80]})"


def _drawn_sizes(part: Part, mapper: DetectionMapper, seed: int) -> InputSizes:
    total = len(part.pictures)
    places = np.unique(np.linspace(0, total - 1, min(total, _MOST_SAMPLED)).round().astype(int))
    sizes, boxes = [], []
    for place in places.tolist():
        record = part.dataset.records[place]
        corners = [
            BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS)
            for entry in record["annotations"]
            if not entry["iscrowd"]
        ]
        image, found, _ = mapper.transform(
            torch.empty(3, record["height"], record["width"], dtype=torch.uint8, device="meta"),
            torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
            torch.zeros(len(corners), dtype=torch.int64),
            random.Random(f"{seed}-{place}"),
        )
        height, width = image.shape[-2:]
        sizes.append((height, width))
        limit = torch.tensor((width, height) * 2)
        found = found.clamp(min=torch.zeros(4), max=limit)
        boxes.append((found[:, 2:] - found[:, :2]).flip(-1).numpy())
    extents = np.concatenate(boxes).astype(float) if boxes else np.zeros((0, 2))
    return InputSizes(np.array(sizes, dtype=float), extents[(extents > 0).all(axis=1)], exact=False)
