"""What a set holds and what a model gets of it, as JSON holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsedet.survey.numbers import InputSizes, Part
from sparsedet.survey.report import QUANTILES

__all__ = ["describe_part"]


def describe_part(part: Part, sizes: InputSizes | str) -> dict[str, Any]:
    """The counts and sizes of a part, in JSON's types.

    Args:
        part: of a set.
        sizes: at the model's input, or why they are not known.

    Returns:
        `name`; `pictures`, `empty` (pictures without a box), `boxes`, `ignore_regions`, `most`
        (boxes in one picture); `classes` with `class`, `boxes`, `pictures`; `file` and `input`:
        `short_side`, `long_side` and `box_size` (square root of the area), each the percentiles
        10, 50 and 90 in pixels; `input` has also `share_small` and `share_vanished`, and is
        null where it is not known, as `unknown` says.
    """
    number = len(part.dataset.class_names)
    pairs = np.unique(part.picture * number + part.label) % number
    boxes, pictures = (np.bincount(each, minlength=number) for each in (part.label, pairs))
    known = None if isinstance(sizes, str) else sizes
    return {
        "name": part.name,
        "source": str(part.dataset.source),
        "pictures": len(part.pictures),
        "empty": int((part.objects == 0).sum()),
        "boxes": len(part.boxes),
        "ignore_regions": int(part.ignored.sum()),
        "most": part.most,
        "classes": [
            {"class": name, "boxes": int(boxes[i]), "pictures": int(pictures[i])}
            for i, name in enumerate(part.dataset.class_names)
        ],
        "file": _spreads(part.pictures, part.sides),
        "input": None if known is None else _input(known),
        "unknown": sizes if known is None else None,
    }


def _input(sizes: InputSizes) -> Mapping[str, Any]:
    return {
        **_spreads(sizes.pictures, sizes.sides),
        "share_small": sizes.share_small,
        "share_vanished": sizes.share_vanished,
    }


def _spreads(pictures: np.ndarray, sides: np.ndarray) -> dict[str, Sequence[float] | None]:
    values = {
        "short_side": pictures.min(axis=1),
        "long_side": pictures.max(axis=1),
        "box_size": sides,
    }
    found: dict[str, Sequence[float] | None] = {}
    for name, each in values.items():
        each = each[~np.isnan(each)]
        found[name] = np.quantile(each, QUANTILES).round(1).tolist() if len(each) else None
    return found
