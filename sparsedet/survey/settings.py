"""The settings of a run that must fit its data, with their config keys."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsedet.config import ConfigError, setting
from sparsedet.config.naming import keyword_parameters, locate
from sparsedet.evaluation.rules import Rules, make_rules

__all__ = ["Looking", "Ranges", "Settings", "read_settings"]

_AT_LEAST_1 = (
    "dataset.test_short_side",
    "dataset.max_size",
    "model.query_initializer.num_queries",
    "model.max_detections",
    "dataloader.train.total_batch_size",
    "train.accumulation_steps",
    "train.max_iter",
)


@dataclass(frozen=True)
class Ranges:
    """The size ranges of a foreground loss.

    Attributes:
        key: config key of the ranges.
        pairs: (low, high] for each level, fine to coarse.
        distance: the distance that must be in the range, see `sparsedet.modeling.ForegroundLoss`.
    """

    key: str
    pairs: tuple[tuple[float, float], ...]
    distance: str


@dataclass(frozen=True)
class Looking:
    """The settings of a model that chooses tiles in a downscaled picture (the glance).

    Attributes:
        glance_factor: the glance is the picture with its sides divided by this factor.
        tile: side of a tile in pixels of the input.
        min_visible: objects whose longer side has this many pixels in the glance are found there.
        look_ratio: share of the tiles that are chosen; None if unknown.
        key: config key of `look_ratio`.
        levels: number of levels of the glance.
    """

    glance_factor: int
    tile: int
    min_visible: int
    look_ratio: float | None
    key: str
    levels: int

    @property
    def bound(self) -> int:
        """Longer side, in pixels of the input, below which an object is found only in its tile."""
        return self.min_visible * self.glance_factor


@dataclass(frozen=True)
class Settings:
    """The settings that must fit the data; None if a config does not have them.

    Attributes:
        short_sides: short sides in training, in pixels of the model's input. This and the next two
            are also None if pictures keep their sizes.
        test_short_side: short side in evaluation.
        max_size: upper limit of the long side in both.
        num_queries: number of queries of the model.
        max_detections: maximum number of detections per image.
        counted: detections per image and class that are evaluated.
        area_bounds: the two area bounds of the evaluator, in square pixels of the file.
        ranges: size ranges of each foreground loss.
        strides: strides of the feature maps, fine to coarse.
        batch_size: pictures per iteration.
        max_iter: number of iterations.
        eval_period: iterations between evaluations.
        looking: the settings of a model that chooses tiles.
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
    looking: Looking | None


def read_settings(cfg: Any) -> Settings:
    """Read the settings of a config.

    Args:
        cfg: a config for `sparsedet train`.

    Raises:
        ConfigError: a number is below 1, or size ranges are not pairs.
    """
    for key in _AT_LEAST_1:
        value = setting(cfg, key)
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{key} must be at least 1, got {value}. Set {key}.")
    rules = _rules(setting(cfg, "dataloader.evaluator"))
    resized = _resizes(cfg)
    sides = setting(cfg, "dataset.short_sides") if resized else None
    sides = [sides] if isinstance(sides, int) else sides
    batch_size = setting(cfg, "dataloader.train.total_batch_size")
    return Settings(
        short_sides=tuple(sides) if sides else None,
        test_short_side=setting(cfg, "dataset.test_short_side") if resized else None,
        max_size=setting(cfg, "dataset.max_size") if resized else None,
        num_queries=_argument(setting(cfg, "model.query_initializer"), "num_queries"),
        max_detections=_argument(setting(cfg, "model"), "max_detections"),
        counted=None if rules is None else rules.max_detections[-1],
        area_bounds=rules.area_bounds
        if rules is not None and len(rules.area_bounds) == 2
        else None,
        ranges=_ranges(cfg),
        strides=tuple(setting(cfg, "model.neck.strides") or ()),
        batch_size=batch_size and batch_size * (setting(cfg, "train.accumulation_steps") or 1),
        max_iter=setting(cfg, "train.max_iter"),
        eval_period=setting(cfg, "train.eval_period"),
        looking=_looking(cfg),
    )


def _resizes(cfg: Any) -> bool:
    """Whether the test set's pictures are resized; True if the config does not say."""
    transforms = setting(cfg, "dataloader.test.mapper.transforms")
    return transforms is None or len(transforms) > 0


def _looking(cfg: Any) -> Looking | None:
    regions = setting(cfg, "model.regions")
    numbers = [_argument(regions, name) for name in ("glance_factor", "tile", "min_visible")]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return None  # no regions, or a custom class
    ratio, key = _argument(regions, "look_ratio"), "model.regions.look_ratio"
    if ratio is None:
        key = "model.regions.selector.keep_ratio"
        ratio = setting(cfg, key)
    levels = setting(cfg, "model.neck.num_levels") or 1
    return Looking(*numbers, look_ratio=ratio, key=key, levels=levels)


def _rules(evaluator: Any) -> Rules | None:
    if "max_detections" not in _arguments(evaluator):
        return None  # a custom evaluator
    bounds = _argument(evaluator, "area_bounds")
    return make_rules(bounds, _argument(evaluator, "max_detections"))


def _ranges(cfg: Any) -> tuple[Ranges, ...]:
    found = []
    terms = [
        (f"model.criterion.{group}.{place}", term)
        for group in ("unmatched", "regions")
        for place, term in enumerate(setting(cfg, f"model.criterion.{group}") or ())
    ]
    for name, term in terms:
        pairs = _argument(term, "size_ranges")
        if pairs is not None:
            key = f"{name}.size_ranges"
            try:
                numbers = tuple((float(low), float(high)) for low, high in pairs)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{key} must be pairs [low, high], one for each level, got {pairs}. Set {key}."
                ) from error
            found.append(Ranges(key, numbers, _argument(term, "distance") or "sides"))
    return tuple(found)


def _argument(node: Any, name: str) -> Any:
    """The value of an argument of a call, or its default."""
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
