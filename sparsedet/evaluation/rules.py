"""Object sizes and detection limits in the rules of COCO, VisDrone and AI-TOD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real

_EVERYTHING = 1e10
_SUFFIXES = {"very tiny": "vt", "tiny": "t", "small": "s", "medium": "m", "large": "l"}


@dataclass(frozen=True)
class Rules:
    """The parameters in which benchmarks that follow COCO differ.

    Attributes:
        area_bounds: areas in square pixels, ascending; they divide objects into sizes.
        area_names: names of the sizes, the smallest first.
        max_detections: detections per image and class, ascending. AP uses the last, AR is computed
            at each.
    """

    area_bounds: tuple[float, ...]
    area_names: tuple[str, ...]
    max_detections: tuple[int, ...]

    @property
    def ranges(self) -> list[list[float]]:
        """Lower and upper area bounds, of all objects and of each size."""
        return [[0, _EVERYTHING], *map(list, pairwise((0, *self.area_bounds, _EVERYTHING)))]

    @property
    def suffixes(self) -> list[str]:
        """The letters for the sizes in the names of metrics: `s` of `APs` for small objects."""
        return [_SUFFIXES[name] for name in self.area_names]


_COCO = Rules((32**2, 96**2), ("small", "medium", "large"), (1, 10, 100))
PRESETS = {
    "coco": _COCO,
    "visdrone": replace(_COCO, max_detections=(1, 10, 100, 500)),
    "ai-tod": Rules((8**2, 16**2, 32**2), ("very tiny", "tiny", "small", "medium"), (1, 100, 1500)),
}


def make_rules(
    area_bounds: str | Sequence[float], max_detections: Sequence[int] | None = None
) -> Rules:
    """Build rules from a name or from numbers; errors name the arguments of `COCOEvaluator`.

    Args:
        area_bounds: a key of `PRESETS`, or two areas: objects below the first are small, objects
            of at least the second are large.
        max_detections: None = those of the preset, or COCO's if areas are given.

    Raises:
        ValueError: an argument has another value.
    """
    if isinstance(area_bounds, str):
        if area_bounds not in PRESETS:
            raise ValueError(
                f"COCOEvaluator.area_bounds must be {', '.join(PRESETS)} or two areas in square "
                f"pixels, got {area_bounds!r}. Set dataloader.evaluator.area_bounds."
            )
        rules = PRESETS[area_bounds]
    else:
        rules = replace(_COCO, area_bounds=_ascending_areas(area_bounds))
    if max_detections is None:
        return rules
    counts = tuple(max_detections) if isinstance(max_detections, Sequence) else ()
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
    if not counts or not whole or counts[0] < 1 or any(a >= b for a, b in pairwise(counts)):
        raise ValueError(
            "COCOEvaluator.max_detections must be ascending integers of at least 1, got "
            f"{max_detections}. Set dataloader.evaluator.max_detections, such as [1,10,500]."
        )
    return replace(rules, max_detections=counts)


def _ascending_areas(given: Sequence[float]) -> tuple[float, ...]:
    numbers = isinstance(given, Sequence) and all(isinstance(each, Real) for each in given)
    bounds = tuple(map(float, given)) if numbers else ()
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ValueError(
            "COCOEvaluator.area_bounds must be two ascending areas in square pixels, got "
            f"{given}. Set dataloader.evaluator.area_bounds."
        )
    return bounds
