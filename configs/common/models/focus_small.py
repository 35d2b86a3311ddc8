"""A Focus-DETR small enough for a CPU; configs set its backbone and the size ranges that fit."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import (
    DualAttentionEncoder,
    ForegroundLoss,
    ForegroundScorer,
    TopKSelector,
)

from .dino import model

model.embed_dim = 64
model.scorer = L(ForegroundScorer)(embed_dim="${..embed_dim}", num_levels="${..num_levels}")
model.selector = L(TopKSelector)(keep_ratio=0.2925, layer_ratios=[0.39, 0.195])
model.encoder._target_ = DualAttentionEncoder
model.encoder.update(num_heads=4, feedforward_dim=256, num_layers=2, num_objects=60)
model.decoder.update(num_heads=4, feedforward_dim=256, num_layers=3)
model.query_initializer.num_queries = 150
model.max_detections = 100
model.criterion.matched[0].weight = 2.0
model.criterion.unmatched = [L(ForegroundLoss)(weight=1.5)]
