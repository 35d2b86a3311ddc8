"""The settings of a run that have to fit its data, with the keys that change them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsedet.config import setting
from sparsedet.config.naming import keyword_parameters, locate

__all__ = ["Ranges", "Settings", "read_settings"]

# what the evaluator's rules by name stand for, where no numbers are given
_COUNTED = {"visdrone": 500, "ai-tod": 1500}
_COCO_COUNTED, _COCO_BOUNDS = 100, (32.0**2, 96.0**2)


@dataclass(frozen=True)
class Ranges:
    """The size ranges of a foreground loss.

    Attributes:
        key: of the override that changes them.
        pairs: (low, high] for each level, fine to coarse.
        distance: what has to be in them, see `sparsedet.modeling.ForegroundLoss`.
    """

    key: str
    pairs: tuple[tuple[float, float], ...]
    distance: str


@dataclass(frozen=True)
class Settings:
    """What has to fit the data; None where a config does not have it.

    Attributes:
        short_sides: of training, in pixels of the model's input.
        test_short_side: of evaluation.
        max_size: limit of the long side of both.
        num_queries: queries of the model.
        max_detections: the model's answers for an image.
        counted: answers of an image and class that the evaluator looks at.
        area_bounds: of the evaluator, in square pixels of the file, if there are two.
        ranges: of each foreground loss.
        strides: of the feature maps, fine to coarse.
        batch_size: pictures of an iteration.
        max_iter: iterations.
        eval_period: iterations between evaluations.
    """

    short_sides: tuple[int, ...] | None
    test_short_side: int | None
    max_size: int | None
    num_queries: int | None
    max_detections: int | None
    counted: int | None
    area_bounds: tuple[float, ...] | None
    ranges: tuple[Ranges, ...]
    strides: tuple[int, ...]
    batch_size: int | None
    max_iter: int | None
    eval_period: int | None


def read_settings(cfg: Any) -> Settings:
    """The settings of a config.

    Args:
        cfg: as `sparsedet train` takes it.
    """
    evaluator = setting(cfg, "dataloader.evaluator")
    sides = setting(cfg, "dataset.short_sides")
    sides = [sides] if isinstance(sides, int) else sides
    batch_size = setting(cfg, "dataloader.train.total_batch_size")
    return Settings(
        short_sides=tuple(sides) if sides else None,
        test_short_side=setting(cfg, "dataset.test_short_side"),
        max_size=setting(cfg, "dataset.max_size"),
        num_queries=_argument(setting(cfg, "model.query_initializer"), "num_queries"),
        max_detections=_argument(setting(cfg, "model"), "max_detections"),
        counted=_counted(evaluator),
        area_bounds=_area_bounds(evaluator),
        ranges=_ranges(cfg),
        strides=tuple(setting(cfg, "model.neck.strides") or ()),
        batch_size=batch_size and batch_size * (setting(cfg, "train.accumulation_steps") or 1),
        max_iter=setting(cfg, "train.max_iter"),
        eval_period=setting(cfg, "train.eval_period"),
    )


def _counted(evaluator: Any) -> int | None:
    if "max_detections" not in _arguments(evaluator):
        return None
    given, rules = _argument(evaluator, "max_detections"), _argument(evaluator, "area_bounds")
    if given is not None:
        return given if isinstance(given, int) else max(given)
    return _COUNTED.get(rules, _COCO_COUNTED) if isinstance(rules, str) else _COCO_COUNTED


def _area_bounds(evaluator: Any) -> tuple[float, ...] | None:
    bounds = _argument(evaluator, "area_bounds")
    if bounds == "coco":
        return _COCO_BOUNDS
    return None if bounds is None or isinstance(bounds, str) else tuple(bounds)


def _ranges(cfg: Any) -> tuple[Ranges, ...]:
    found = []
    for place, term in enumerate(setting(cfg, "model.criterion.stage") or ()):
        pairs = _argument(term, "size_ranges")
        if pairs is not None:
            key = f"model.criterion.stage.{place}.size_ranges"
            numbers = tuple((float(low), float(high)) for low, high in pairs)
            found.append(Ranges(key, numbers, _argument(term, "distance") or "sides"))
    return tuple(found)


def _argument(node: Any, name: str) -> Any:
    """What a call is given for an argument, or takes by default."""
    if node is not None and name in node:
        return node[name]
    parameter = _arguments(node).get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _arguments(node: Any) -> Mapping[str, inspect.Parameter]:
    target = None if node is None else node.get("_target_")
    if target is None:
        return {}
    target = locate(target) if isinstance(target, str) else target
    return (keyword_parameters(target) or ({}, False))[0]
