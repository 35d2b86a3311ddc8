"""Token scorers: they decide how good a token is, never how many are kept."""

from sparsedet.modeling.scoring.baselines import ObjectnessScorer, OracleScorer, RandomScorer
from sparsedet.modeling.scoring.dam import DAMPredictor
from sparsedet.modeling.scoring.mask_predictor import MaskPredictor

__all__ = ["DAMPredictor", "MaskPredictor", "ObjectnessScorer", "OracleScorer", "RandomScorer"]
