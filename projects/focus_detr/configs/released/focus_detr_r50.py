"""The model of detrex's 12-epoch weights: see the README for its differences from the paper."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import (
    DualAttentionEncoder,
    ForegroundLoss,
    ForegroundScorer,
    MultiCategoryScorer,
    TopKSelector,
)

model = get_config("projects/dino/configs/released/dino_r50_4scale.py").model
model.scorer = L(ForegroundScorer)(
    embed_dim="${..embed_dim}",
    num_levels="${..num_levels}",
    align_corners=True,
    modulate_before_norm=True,
)
model.selector = L(TopKSelector)(keep_ratio=0.3, layer_ratios=[0.5, 0.4, 0.3, 0.3, 0.2, 0.1])
model.encoder._target_ = DualAttentionEncoder
model.encoder.value_source = "input"
model.encoder.category_head = "proposal"
model.encoder.object_scorer = L(MultiCategoryScorer)(product="logit")
model.criterion.unmatched = [
    L(ForegroundLoss)(weight=1.5, size_ranges=[(-1, 64), (64, 128), (128, 256), (256, 999999)])
]
