"""The selector that keeps the tokens above a score threshold."""

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
    "AdaptiveSelector derives its threshold from keep_ratio and the scores of some images, and "
    "these weights have no such calibration. Calibrate them with "
    "sparsedet calibrate or sparsedet.analysis.calibrate_selector(model, batches)."
)


def _without_mass(name: str, arguments: Mapping[str, Any]) -> str:
    """Advice for the removed ``mass``, a share of the summed scores with the cap ``keep_ratio``."""
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
    """Keeps the tokens above one threshold for all images, so that plain images keep fewer.

    An image keeps its tokens whose score is above the threshold: at least one, and at most as many
    as ``TopKSelector`` keeps with ``max_ratio``. More tokens or higher scores never reduce the
    number of kept tokens, and the count of an image depends on that image alone.

    The threshold follows from ``keep_ratio``: it is the score that this share of the tokens
    exceeds, in the mean over the layers and the calibration images. A training pass adds its batch
    to the calibration, in which old batches fade, and uses the calibration before it (the first
    pass has none, and keeps the best ``keep_ratio`` of each image). With several processes, the
    images of the first one are used: ``DistributedDataParallel`` broadcasts its buffers. For
    weights that were trained with another selector, or for other images, calibrate with
    ``sparsedet.analysis.calibrate_selector`` or ``sparsedet calibrate``.

    The host needs the largest count of a batch, for which it synchronizes once per batch. A
    compiled or exported model, or one recorded in a CUDA graph, does not synchronize: it computes
    as many tokens as ``max_ratio`` allows and keeps those above the threshold, with the same result
    at the cost of ``max_ratio``. The target of ``DecoderAttentionLoss`` then has as many tokens as
    this cap (``TokenSelection.max_counts``).

    Args:
        keep_ratio: mean share of the tokens that a layer updates, over the encoder layers and the
            images; None = the mean of ``layer_ratios``. If the largest ratio of a layer is 1, every
            image keeps ``max_ratio`` in it.
        max_ratio: cap on the share that an image keeps in the layer that keeps most, in (0, 1]. If
            it takes effect, the mean is below ``keep_ratio``.
        layer_ratios: see ``TopKSelector``; the shares of an image's layers are proportional to
            them.

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
        """Whether the number of kept tokens depends on the content of an image."""
        return self.keep_ratio * self._peak < 1 - ROUNDING

    def forward(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection for each of ``num_layers`` layers, as many as ``layer_ratios``.

        Raises:
            ValueError: in evaluation, if there is no calibration.
        """
        best = best_tokens(scores, features, self._counts(self.max_ratio / self._peak, features))
        limits = None
        if self.depends_on_image:
            limits = self._limits(scores, features, best)
            if host_may_wait() and len(limits) == len(best.max_counts):  # not one count for all
                best, limits = best.prefix(self._on_host(limits)), None
            elif not (self.training or torch.compiler.is_exporting()):
                # the only check that a graph can contain; torch has no public name for it
                known = self.curve.num_images > 0
                torch._assert_async(known, _UNCALIBRATED)  # pyright: ignore[reportPrivateImportUsage]
        if self.training:
            self.calibrate(scores, features, fading=True)
        return cascade(best, self._factors, num_layers, "AdaptiveSelector", limits)

    def forget(self) -> None:
        """Discard the calibration."""
        self.curve.forget()

    def calibrate(
        self, scores: TokenScores | None, features: MultiScaleFeatures, *, fading: bool = False
    ) -> None:
        """Add the images of a batch to the calibration.

        Args:
            scores: token scores of the batch.
            features: features of the batch.
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
        """The limits on the host, after a check for a calibration; both in one synchronization."""
        *counts, num_images = torch.cat((limits, self.curve.num_images[None])).tolist()
        if not (num_images or self.training):
            raise ValueError(_UNCALIBRATED)
        return counts


def host_may_wait() -> bool:
    """Whether the host may read numbers of the device: not in a program or a CUDA graph."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
