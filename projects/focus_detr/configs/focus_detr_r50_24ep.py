"""Focus-DETR (ICCV 2023), ResNet-50, 24 epochs: DINO that updates 30 % of the tokens."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import (
    DualAttentionEncoder,
    ForegroundLoss,
    ForegroundScorer,
    TopKSelector,
)

_host = get_config("projects/dino/configs/dino_r50_4scale_24ep.py")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
model, optimizer, lr_multiplier = _host.model, _host.optimizer, _host.lr_multiplier

model.scorer = L(ForegroundScorer)(embed_dim="${..embed_dim}", num_levels="${..num_levels}")
model.selector = L(TopKSelector)(keep_ratio=0.3, layer_ratios=[0.5, 0.4, 0.3, 0.3, 0.2, 0.1])
model.encoder._target_ = DualAttentionEncoder
model.criterion.unmatched = [L(ForegroundLoss)(weight=1.5)]
train.output_dir = "output/focus_detr_r50_24ep"
