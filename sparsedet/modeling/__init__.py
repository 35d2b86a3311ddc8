"""The detector, its interchangeable parts, and what they pass to each other.

The protocols of the families are in ``sparsedet.modeling.parts``.
"""

from sparsedet.modeling.backbone import TimmBackbone, TorchvisionResNet, TorchvisionSwin
from sparsedet.modeling.criterion import MatchedTerm, SetCriterion
from sparsedet.modeling.decoder import DeformableDecoder, attention_mass
from sparsedet.modeling.denoising import ContrastiveDenoising, Denoising
from sparsedet.modeling.detector import TokenSparseDetector
from sparsedet.modeling.encoder import DeformableEncoder, DualAttentionEncoder
from sparsedet.modeling.global_attention import GlobalEncoder
from sparsedet.modeling.global_decoder import GlobalDecoder
from sparsedet.modeling.heads import Head, Heads, TokenEmbedder, TokenEmbedding
from sparsedet.modeling.inference import prepare_for_inference
from sparsedet.modeling.inputs import Batch
from sparsedet.modeling.interleaved_decoder import InterleavedDecoder
from sparsedet.modeling.losses import (
    BoxL1Loss,
    CrossEntropyLoss,
    DecoderAttentionLoss,
    FocalLoss,
    ForegroundLoss,
    GIoULoss,
    SalienceLoss,
    SupervisedStages,
)
from sparsedet.modeling.matcher import HungarianMatcher
from sparsedet.modeling.neck import ChannelMapper
from sparsedet.modeling.pooling import PoolSampler
from sparsedet.modeling.queries import (
    AnchorQueries,
    EfficientQueries,
    LearnedQueries,
    MixedQueries,
    PositionQueries,
    TwoStageQueries,
)
from sparsedet.modeling.regions import GlanceAndLook
from sparsedet.modeling.regularizers import PollRegularizer
from sparsedet.modeling.scoring import (
    DAMPredictor,
    ForegroundScorer,
    ForegroundTokenSelector,
    MultiCategoryScorer,
    ObjectnessScorer,
    OracleScorer,
    PollScorer,
    RandomScorer,
    TeacherScorer,
)
from sparsedet.modeling.selection import (
    AdaptiveSelector,
    DenseSelector,
    ElasticSelector,
    LevelScheduleSelector,
    TopKSelector,
)
from sparsedet.modeling.stages import (
    DecoderOutput,
    DenoisingOutput,
    DetectorOutput,
    EncoderOutput,
    Glance,
    Matching,
    MultiScaleFeatures,
    NoisedTargets,
    ObjectTokens,
    PartialMap,
    PooledTokens,
    Prediction,
    Queries,
    Targets,
    TokenScores,
    TokenSelection,
    flatten_maps,
)
from sparsedet.modeling.torchvision_detector import TorchvisionDetector

__all__ = [
    "AdaptiveSelector",
    "AnchorQueries",
    "Batch",
    "BoxL1Loss",
    "ChannelMapper",
    "ContrastiveDenoising",
    "CrossEntropyLoss",
    "DAMPredictor",
    "DecoderAttentionLoss",
    "DecoderOutput",
    "DeformableDecoder",
    "DeformableEncoder",
    "Denoising",
    "DenoisingOutput",
    "DenseSelector",
    "DetectorOutput",
    "DualAttentionEncoder",
    "EfficientQueries",
    "ElasticSelector",
    "EncoderOutput",
    "FocalLoss",
    "ForegroundLoss",
    "ForegroundScorer",
    "ForegroundTokenSelector",
    "GIoULoss",
    "Glance",
    "GlanceAndLook",
    "GlobalDecoder",
    "GlobalEncoder",
    "Head",
    "Heads",
    "HungarianMatcher",
    "InterleavedDecoder",
    "LearnedQueries",
    "LevelScheduleSelector",
    "MatchedTerm",
    "Matching",
    "MixedQueries",
    "MultiCategoryScorer",
    "MultiScaleFeatures",
    "NoisedTargets",
    "ObjectTokens",
    "ObjectnessScorer",
    "OracleScorer",
    "PartialMap",
    "PollRegularizer",
    "PollScorer",
    "PoolSampler",
    "PooledTokens",
    "PositionQueries",
    "Prediction",
    "Queries",
    "RandomScorer",
    "SalienceLoss",
    "SetCriterion",
    "SupervisedStages",
    "Targets",
    "TeacherScorer",
    "TimmBackbone",
    "TokenEmbedder",
    "TokenEmbedding",
    "TokenScores",
    "TokenSelection",
    "TokenSparseDetector",
    "TopKSelector",
    "TorchvisionDetector",
    "TorchvisionResNet",
    "TorchvisionSwin",
    "TwoStageQueries",
    "attention_mass",
    "flatten_maps",
    "prepare_for_inference",
]
