"""The pictures in which a detector does worst, with what went wrong in each."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sparsedet.evaluation.confusion import NONE, Matches

LOOSE_IOU = 0.75
"""A box that overlaps its object by less is called loose."""
_MOST = 12  # pictures of each kind


def worst_pictures(
    pictures: Iterable[tuple[dict[str, Any], Matches]],
    names: Sequence[str],
    *,
    score_threshold: float,
    iou: float = 0.5,
) -> dict[str, Any]:
    """The pictures with the most faults of each kind, as `worst.json` has them.

    The kinds: `missed`, objects that no detection takes; `false`, detections that take no object,
    ranked by the sum of their scores; `loose`, detections of the right class whose box overlaps its
    object by less than `LOOSE_IOU`, ranked by the sum of what is lacking.

    Args:
        pictures: of the set, each as its record and its matches.
        names: of the classes.
        score_threshold: that the matches were made with.
        iou: likewise.

    Returns:
        `score_threshold`, `iou`, `loose_iou`; `totals` over the whole set; `pictures` with `file`,
        `height`, `width`, `truth` and `found`; and for each kind the numbers of its pictures, the
        worst first. Boxes are x, y, width, height in pixels of the file. A box of `found` has
        `object`, the number of its object or null, and the `iou` with it. `fault` of either is a
        kind, `class` (right place, wrong class) or null.
    """
    heaps: dict[str, list[tuple[float, int, dict[str, Any], Matches]]] = {k: [] for k in _RANKS}
    totals = dict.fromkeys(("objects", "detections", "class", *_RANKS), 0)
    for number, (record, matches) in enumerate(pictures):
        _count(totals, matches)
        for kind, rank in _RANKS.items():
            amount = rank(matches)
            if amount > 0:  # of equals the first stay
                heapq.heappush(heaps[kind], (amount, -number, record, matches))
                if len(heaps[kind]) > _MOST:
                    heapq.heappop(heaps[kind])
    chosen: dict[int, dict[str, Any]] = {}
    order = {kind: sorted(heap, key=lambda each: each[:2])[::-1] for kind, heap in heaps.items()}
    for each in order.values():
        for _, number, record, matches in each:
            chosen.setdefault(number, _described(record, matches, names))
    places = {number: place for place, number in enumerate(chosen)}
    return {
        "score_threshold": score_threshold,
        "iou": iou,
        "loose_iou": LOOSE_IOU,
        "totals": totals,
        "pictures": list(chosen.values()),
        **{kind: [places[each[1]] for each in found] for kind, found in order.items()},
    }


def _right(matches: Matches) -> np.ndarray:
    """Detections that take an object of their class."""
    own = np.zeros(len(matches.taken), dtype=bool)
    taken = matches.taken >= 0
    own[taken] = matches.truth[matches.taken[taken], 4] == matches.found[taken, 5]
    return own


def _loose(matches: Matches) -> np.ndarray:
    return _right(matches) & (matches.overlap < LOOSE_IOU)


_RANKS: dict[str, Callable[[Matches], float]] = {
    "missed": lambda matches: float(len(matches.missed)),
    "false": lambda matches: float(matches.found[matches.taken == NONE, 4].sum()),
    "loose": lambda matches: float((LOOSE_IOU - matches.overlap[_loose(matches)]).sum()),
}


def _count(totals: dict[str, int], matches: Matches) -> None:
    taken = matches.taken >= 0
    totals["objects"] += int((matches.truth[:, 5] != 1).sum())
    totals["detections"] += len(matches.found)
    totals["missed"] += len(matches.missed)
    totals["false"] += int((matches.taken == NONE).sum())
    totals["loose"] += int(_loose(matches).sum())
    totals["class"] += int((taken & ~_right(matches)).sum())


def _described(record: dict[str, Any], matches: Matches, names: Sequence[str]) -> dict[str, Any]:
    missed, right, loose = set(matches.missed.tolist()), _right(matches), _loose(matches)
    objects = np.flatnonzero(matches.truth[:, 5] != 1).tolist()
    found = []
    for number, row in enumerate(matches.found):
        taken = int(matches.taken[number])
        fault = "false" if taken == NONE else None
        if taken >= 0:
            fault = "loose" if loose[number] else None if right[number] else "class"
        found.append(
            {
                "box": _pixels(row[:4]),
                "class": names[int(row[5])],
                "score": round(float(row[4]), 4),
                "object": objects.index(taken) if taken >= 0 else None,
                "iou": round(float(matches.overlap[number]), 3),
                "fault": fault,
            }
        )
    truth = [
        {
            "box": _pixels(matches.truth[place, :4]),
            "class": names[int(matches.truth[place, 4])],
            "fault": "missed" if place in missed else None,
        }
        for place in objects
    ]
    size = {"height": record["height"], "width": record["width"]}
    return {"file": str(record["file_name"]), **size, "truth": truth, "found": found}


def _pixels(box: np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in box]
