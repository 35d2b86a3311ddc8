"""Deformable DETR with learned queries and all of Focus-DETR, keep ratio 0.3."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import (
    DualAttentionEncoder,
    ForegroundLoss,
    ForegroundScorer,
    TopKSelector,
)

_host = get_config("projects/deformable_detr/configs/deformable_detr_r50_refine_50ep.py")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
model, optimizer, lr_multiplier = _host.model, _host.optimizer, _host.lr_multiplier

model.scorer = L(ForegroundScorer)(embed_dim="${..embed_dim}", num_levels="${..num_levels}")
model.selector = L(TopKSelector)(keep_ratio=0.3, layer_ratios=[0.5, 0.4, 0.3, 0.3, 0.2, 0.1])
model.encoder._target_ = DualAttentionEncoder
model.criterion.unmatched = [L(ForegroundLoss)(weight=1.5)]
train.output_dir = "output/focus_detr_learned_focus_50ep"
