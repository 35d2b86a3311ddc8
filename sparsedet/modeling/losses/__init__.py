"""Loss terms. A term owns its weight; the criterion multiplies by it, once.

A *matched term* maps ``(SupervisedStages, num_boxes)`` to one number per stage, an *unmatched term*
(``sparsedet.modeling.parts.UnmatchedTerm``) maps a ``DetectorOutput`` and the targets to a scalar.
"""

from sparsedet.modeling.losses.matched import (
    BoxL1Loss,
    CrossEntropyLoss,
    FocalLoss,
    GIoULoss,
    SupervisedStages,
)
from sparsedet.modeling.losses.tokens import DecoderAttentionLoss, ForegroundLoss, SalienceLoss

__all__ = [
    "BoxL1Loss",
    "CrossEntropyLoss",
    "DecoderAttentionLoss",
    "FocalLoss",
    "ForegroundLoss",
    "GIoULoss",
    "SalienceLoss",
    "SupervisedStages",
]
