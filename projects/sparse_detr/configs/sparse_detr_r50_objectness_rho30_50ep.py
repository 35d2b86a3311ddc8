"""The paper's ablation: tokens chosen by an objectness score instead of the DAM predictor."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import ObjectnessScorer

from .sparse_detr_r50_rho30_50ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.scorer = L(ObjectnessScorer)()
model.criterion.unmatched = []
train.output_dir = "output/sparse_detr_r50_objectness_rho30_50ep"
