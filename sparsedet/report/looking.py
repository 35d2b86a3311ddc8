"""What one model makes of a picture at several keep ratios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sparsedet.modeling import DenseSelector, TokenSparseDetector
from sparsedet.modeling.detector import top_queries
from sparsedet.modeling.stages import DetectorOutput
from sparsedet.predictor import Detections, Picture, Predictor
from sparsedet.report.attention import (
    LastCall,
    attention_maps,
    last_call,
    sampling_points,
    shows_maps,
    shows_points,
)

DENSE = 1.0
"""The keep ratio of the same weights without selection."""


@dataclass(frozen=True)
class Attention:
    """Where the queries of some detections look in the last decoder layer.

    Attributes:
        weights: (n, M, L, P) of points, or (n, N) of all tokens.
        points: (n, M, L, P, 2), x and y in [0, 1] of the image; None = there are no points.
    """

    weights: torch.Tensor
    points: torch.Tensor | None


@dataclass(frozen=True)
class Look:
    """One pass of a model over a picture.

    Attributes:
        ratio: the keep ratio that was asked for; None = as the model is.
        found: all detections, whatever their score.
        output: what the detector did; None for detectors without tokens.
        attention: of the best detections; None where it is not known.
    """

    ratio: float | None
    found: Detections
    output: DetectorOutput | None = None
    attention: Attention | None = None


class ExplainedModel:
    """A detector to look into.

    Args:
        name: what it is called on the page.
        predictor: with its weights.

    Attributes:
        name: see above.
        predictor: see above.
        model: the detector.
    """

    def __init__(self, name: str, predictor: Predictor) -> None:
        self.name, self.predictor = name, predictor
        self.model: Any = predictor.model

    @property
    def has_tokens(self) -> bool:
        """Whether it is a detector whose tokens can be looked at."""
        return isinstance(self.model, TokenSparseDetector)

    @property
    def own_ratio(self) -> float | None:
        """The keep ratio that it comes with; None where it has none."""
        return getattr(getattr(self.model, "selector", None), "keep_ratio", None)

    def ratios(self, asked: Sequence[float]) -> list[float | None]:
        """The keep ratios that it can be looked at with, rising; the last is the dense model.

        Args:
            asked: ratios; its own one is added.

        Returns:
            ``[None]`` for a dense detector and one without tokens; ``[None, 1.0]`` for one that
            selects tokens by something else than a ratio.
        """
        if not self.has_tokens or isinstance(self.model.selector, DenseSelector):
            return [None]
        if self.own_ratio is None:
            return [None, DENSE]
        taken = {each for each in (*asked, self.own_ratio) if self._takes(each)}
        return [*sorted(taken - {DENSE}), DENSE]

    def look(self, picture: Picture, ratio: float | None, most: int) -> Look:
        """Detect in a picture.

        Args:
            picture: decoded.
            ratio: one of ``ratios``.
            most: detections of which the attention is recorded, the best ones.
        """
        if not self.has_tokens:
            return Look(ratio, self.predictor(picture, score_threshold=0.0))
        with self.keeping(ratio), last_call(self.model.decoder) as call:
            found, output = self.predictor.explain(picture)
        with torch.inference_mode():
            attention = self._attention(call, output, min(most, len(found)))
        return Look(ratio, found, output, attention)

    @contextmanager
    def keeping(self, ratio: float | None) -> Iterator[None]:
        """The model with another keep ratio, put back afterwards."""
        if ratio is None or not self.has_tokens:
            yield
            return
        model, selector = self.model, self.model.selector
        own = self.own_ratio
        try:
            if own is not None and self._takes(ratio):
                selector.keep_ratio = ratio
            else:  # it has no ratio, or that of its largest layer would be above 1
                model.selector = DenseSelector()
            yield
        finally:
            model.selector = selector
            if own is not None:
                selector.keep_ratio = own

    def _takes(self, ratio: float) -> bool:
        selector, own = self.model.selector, self.own_ratio
        if own is None:
            return False
        try:
            selector.keep_ratio = ratio
        except ValueError:
            return False
        finally:
            selector.keep_ratio = own
        return True

    def _attention(self, call: LastCall, output: DetectorOutput, count: int) -> Attention | None:
        if call.module is None or not count:
            return None
        queries = top_queries(output.decoder[-1], self.model.max_detections)[2][0, :count]
        if shows_maps(self.model.decoder):
            maps = attention_maps(call, self.model.decoder, output.memory, queries)
            return Attention(maps, None)
        points, weights = sampling_points(call, output.memory, queries)
        return Attention(weights, points)


def missing(model: ExplainedModel) -> dict[str, str]:
    """What cannot be shown of a model, in words, by the part of the page that lacks it."""
    kind = type(model.model).__name__
    if not model.has_tokens:
        shown = "detections and its cost" if hasattr(model.model, "detect") else "detections"
        sentence = f"{kind} has no tokens to look at: only its {shown} can be shown."
        return dict.fromkeys(
            ("kept", "scores", "objects", "tiles", "attention", "ratio", "dense"), sentence
        )
    parts, absent = model.model, {}
    selector = type(parts.selector).__name__
    if parts.scorer is None:
        absent["scores"] = "This model has no scorer, so its tokens have no scores."
    if not getattr(parts.encoder, "object_scorer", None):
        kind = type(parts.encoder).__name__
        absent["objects"] = f"{kind} has no object tokens: only dual attention has them."
    if parts.regions is None:
        absent["tiles"] = "This model looks at the whole picture, not at tiles of it."
    if not (shows_points(parts.decoder) or shows_maps(parts.decoder)):
        kind = type(parts.decoder).__name__
        absent["attention"] = f"It is not known where the queries of {kind} look."
    if isinstance(parts.selector, DenseSelector):
        absent["ratio"] = "This model has no keep ratio, so the slider does not change it."
        absent["dense"] = "This model does not choose tokens, so no dense form of it is shown."
    elif model.own_ratio is None:
        absent["ratio"] = f"{selector} has no keep ratio, so the slider does not change this model."
    return absent
