"""The selector of a threshold, above which an image's tokens are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparsedet.layers.constants import constants
from sparsedet.modeling.selection.calibration import ScoreCurve
from sparsedet.modeling.selection.shares import (
    ROUNDING,
    ShareSelector,
    best_tokens,
    cascade,
    check_share,
    new_spelling,
)
from sparsedet.modeling.stages import MultiScaleFeatures, TokenScores, TokenSelection
from sparsedet.registry import SELECTORS, retires

_UNCALIBRATED = (
    "AdaptiveSelector must know how the scores of some images lie before it can take its threshold "
    "from keep_ratio, and these weights come without that. Calibrate them with "
    "sparsedet calibrate or sparsedet.analysis.calibrate_selector(model, batches)."
)


def _without_mass(name: str, arguments: Mapping[str, Any]) -> str:
    """What to write instead of a share of the summed scores, below a cap named ``keep_ratio``."""
    cap = arguments.get("keep_ratio")
    was_cap = "" if cap is None else f", and max_ratio={cap} for the cap that it was,"
    return (
        f"{name}.mass is gone and keep_ratio is the mean share of the tokens over layers and "
        f"images: write the share as keep_ratio{was_cap} instead."
    )


@SELECTORS.register()
@retires("mass", _without_mass)
@retires("schedule", new_spelling)
class AdaptiveSelector(ShareSelector):
    """The tokens that score above a threshold, one for all images, so that plain images keep fewer.

    Image i keeps its tokens whose score lies above the threshold: at least one, and at most what
    ``TopKSelector`` keeps with ``max_ratio``. More or better-scored tokens never mean that fewer
    are kept, an image without a good token keeps one, and an image's count depends on that image
    alone.

    The threshold follows from ``keep_ratio``: it is the score above which that share of the tokens
    lay, the mean over the layers and over the images that the selector was calibrated on. A
    training pass adds its batch to what it knows, old batches fading, and uses what it knew before
    (nothing in its first pass, which keeps the best ``keep_ratio`` of each image). With several
    processes the images of the first one count, whose buffers ``DistributedDataParallel``
    broadcasts. Weights that were trained with another selector, or are to be used on other images,
    are calibrated by ``sparsedet.analysis.calibrate_selector`` or ``sparsedet calibrate``.

    The host has to know the largest count of a batch, for which it waits once per batch. A compiled
    or exported model does not wait, nor does one that a CUDA graph records: it computes as many
    tokens as ``max_ratio`` allows and keeps those above the threshold, the same result at the cost
    of ``max_ratio``. The target of ``DecoderAttentionLoss`` then counts as that cap does
    (``TokenSelection.max_counts``).

    Args:
        keep_ratio: share of the tokens that a layer updates, the mean over the encoder layers and
            the images; None = the mean of ``layer_ratios``. Where the largest layer's is 1, every
            image keeps ``max_ratio`` in it.
        max_ratio: cap on the share that an image keeps in the layer that keeps most, in (0, 1].
            Where it takes effect, the mean falls below ``keep_ratio``.
        layer_ratios: see ``TopKSelector``; an image's layers keep shares of this shape.

    Raises:
        ValueError: for numbers outside of these ranges.
    """

    def __init__(
        self,
        keep_ratio: float | None = None,
        *,
        max_ratio: float = 1.0,
        layer_ratios: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keep_ratio, layer_ratios)
        check_share(max_ratio, "AdaptiveSelector", "max_ratio")
        self.max_ratio = max_ratio
        self.curve = ScoreCurve()

    @property
    def depends_on_image(self) -> bool:
        """Whether how many tokens are kept depends on what an image shows."""
        return self.keep_ratio * self._peak < 1 - ROUNDING

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers, of which there are ``layer_ratios``.

        Raises:
            ValueError: in evaluation without calibration.
        """
        best = best_tokens(scores, features, self._counts(self.max_ratio / self._peak, features))
        limits = None
        if self.depends_on_image:
            limits = self._limits(scores, features, best)
            if host_may_wait() and len(limits) == len(best.max_counts):  # not one count for all
                best, limits = best.prefix(self._on_host(limits)), None
            elif not (self.training or torch.compiler.is_exporting()):
                # the one check that a graph can hold; torch has no public name for it
                known = self.curve.num_images > 0
                torch._assert_async(known, _UNCALIBRATED)  # pyright: ignore[reportPrivateImportUsage]
        if self.training:
            self.calibrate(scores, features, fading=True)
        return cascade(best, self._factors, num_layers, "AdaptiveSelector", limits)

    def forget(self) -> None:
        """Begin the calibration anew."""
        self.curve.forget()

    def calibrate(
        self, scores: TokenScores | None, features: MultiScaleFeatures, *, fading: bool = False
    ) -> None:
        """Add the images of a batch to those that the threshold is taken from.

        Args:
            scores: of the batch.
            features: of the batch.
            fading: see ``ScoreCurve.add``.
        """
        assert scores is not None
        self.curve.add(scores.logits.detach(), features.padding_mask, fading=fading)

    def _limits(
        self, scores: TokenScores | None, features: MultiScaleFeatures, best: TokenSelection
    ) -> Int[Tensor, " B"]:
        """Tokens of each image above the threshold, within the bounds."""
        assert scores is not None
        device = features.tokens.device
        threshold = self.curve.threshold(self.keep_ratio * self._peak)
        above = scores.logits.detach().float() > threshold
        limits = (above & ~features.padding_mask).sum(1)
        if self.training:
            same_share = constants(self._counts(self.keep_ratio, features), device, torch.int64)
            limits = torch.where(self.curve.num_images > 0, limits, same_share)
        return limits.clamp(min=1).minimum(constants(best.max_counts, device, torch.int64))

    def _on_host(self, limits: Int[Tensor, " B"]) -> list[int]:
        """The limits, once it is known that there is a threshold: both in one wait."""
        *counts, num_images = torch.cat((limits, self.curve.num_images[None])).tolist()
        if not (num_images or self.training):
            raise ValueError(_UNCALIBRATED)
        return counts


def host_may_wait() -> bool:
    """Whether the device can be asked for numbers: not in a program, nor in a CUDA graph."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
