"""The detector and its interchangeable parts."""

from sparsedet.modeling.backbone import TimmBackbone, TorchvisionResNet, TorchvisionSwin
from sparsedet.modeling.criterion import SetCriterion
from sparsedet.modeling.decoder import DeformableDecoder
from sparsedet.modeling.denoising import ContrastiveDenoising, Denoising
from sparsedet.modeling.detector import TokenSparseDetector
from sparsedet.modeling.encoder import DeformableEncoder, DualAttentionEncoder
from sparsedet.modeling.heads import Heads
from sparsedet.modeling.inference import prepare_for_inference
from sparsedet.modeling.losses import (
    BoxL1Loss,
    DecoderAttentionLoss,
    FocalLoss,
    ForegroundLoss,
    GIoULoss,
    SalienceLoss,
)
from sparsedet.modeling.matcher import HungarianMatcher
from sparsedet.modeling.neck import ChannelMapper
from sparsedet.modeling.queries import (
    AnchorQueries,
    EfficientQueries,
    LearnedQueries,
    MixedQueries,
    TwoStageQueries,
)
from sparsedet.modeling.scoring import (
    DAMPredictor,
    ForegroundTokenSelector,
    MultiCategoryScorer,
    ObjectnessScorer,
    OracleScorer,
    RandomScorer,
)
from sparsedet.modeling.selection import (
    AdaptiveSelector,
    DenseSelector,
    ElasticSelector,
    LevelScheduleSelector,
    TopKSelector,
)

__all__ = [
    "AdaptiveSelector",
    "AnchorQueries",
    "BoxL1Loss",
    "ChannelMapper",
    "ContrastiveDenoising",
    "DAMPredictor",
    "DecoderAttentionLoss",
    "DeformableDecoder",
    "DeformableEncoder",
    "Denoising",
    "DenseSelector",
    "DualAttentionEncoder",
    "EfficientQueries",
    "ElasticSelector",
    "FocalLoss",
    "ForegroundLoss",
    "ForegroundTokenSelector",
    "GIoULoss",
    "Heads",
    "HungarianMatcher",
    "LearnedQueries",
    "LevelScheduleSelector",
    "MixedQueries",
    "MultiCategoryScorer",
    "ObjectnessScorer",
    "OracleScorer",
    "RandomScorer",
    "SalienceLoss",
    "SetCriterion",
    "TimmBackbone",
    "TokenSparseDetector",
    "TopKSelector",
    "TorchvisionResNet",
    "TorchvisionSwin",
    "TwoStageQueries",
    "prepare_for_inference",
]
