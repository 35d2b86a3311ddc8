"""Two-stage Deformable DETR with Sparse DETR's token selection, keep ratio 0.3."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import DAMPredictor, DecoderAttentionLoss, TopKSelector

_host = get_config("projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
model, optimizer, lr_multiplier = _host.model, _host.optimizer, _host.lr_multiplier

model.scorer = L(DAMPredictor)(embed_dim="${..embed_dim}")
model.selector = L(TopKSelector)(keep_ratio=0.3)
model.encoder_aux_loss = True
model.criterion.unmatched = [L(DecoderAttentionLoss)(weight=1.0)]
train.output_dir = "output/focus_detr_two_stage_sparse_50ep"
