"""Token scorers: they score the tokens, and selectors decide how many are kept."""

from sparsedet.modeling.scoring.baselines import ObjectnessScorer, OracleScorer, RandomScorer
from sparsedet.modeling.scoring.dam import DAMPredictor
from sparsedet.modeling.scoring.foreground import ForegroundScorer, ForegroundTokenSelector
from sparsedet.modeling.scoring.mask_predictor import MaskPredictor
from sparsedet.modeling.scoring.multi_category import MultiCategoryScorer
from sparsedet.modeling.scoring.poll import PollScorer
from sparsedet.modeling.scoring.teacher import TeacherScorer

__all__ = [
    "DAMPredictor",
    "ForegroundScorer",
    "ForegroundTokenSelector",
    "MaskPredictor",
    "MultiCategoryScorer",
    "ObjectnessScorer",
    "OracleScorer",
    "PollScorer",
    "RandomScorer",
    "TeacherScorer",
]
